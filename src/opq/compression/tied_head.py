"""Token embeddings that are also the head of a language model.

Errors of a head reach the logits at once, those of the other weights through many layers. So the error of such a weight must
count more than that of another one. A head that is a weight of its own is not enlarged: nothing is gained (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|shared)\.weight$|^token_embd\.weight$")
"""Names of token embeddings in transformers, in Meta's checkpoints and in GGUF."""

_OF_LANGUAGE_MODEL = re.compile(r"^(model|transformer)\.|^token_embd\.|^shared\.")
"""Beginnings of names that only networks with a head have: transformers' base models are saved without them."""

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|predictions|output_projection)(\.|$)")
_FEWEST_ROWS = 1000


def tied_heads(shapes: Mapping[str, tuple[int, ...]], repeats: Mapping[str, str], names: frozenset[str]) -> set[str]:
    """Find the weights that are both token embedding and head.

    Such a weight has a row per token. It is one if another weight has its values, as a state dict in memory has; or if it is
    named as a token embedding, no other matrix has as many rows, and the checkpoint is that of a network with a head.

    Args:
        shapes: {weight: shape}.
        repeats: {weight: an earlier weight with its values}.
        names: Names of all tensors of the checkpoint.

    Returns:
        Names of the weights.
    """
    rows: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and shape[0] >= max(_FEWEST_ROWS, 2 * shape[1]):
            rows.setdefault(shape[0], []).append(name)
    has_head = any(map(_HEAD.search, names))
    found = set()
    for group in rows.values():
        has_own_head = len({repeats.get(name, name) for name in group}) > 1
        is_tied = len(group) > 1
        is_named = any(_EMBEDDING.search(name) and (has_head or _OF_LANGUAGE_MODEL.match(name)) for name in group)
        if not has_own_head and (is_tied or is_named):
            found.update(group)
    return found
