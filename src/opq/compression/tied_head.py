"""Token embeddings that are also the head of a language model.

Errors of a head change the logits directly; those of other weights pass through more layers. So the relative error of such a
weight has a larger factor (`role_factors.HEAD_SHARE`). A head with values of its own gets no factor: none was measured to help
(docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|shared|token_embd)\.weight$")
"""Names of token embeddings in transformers, in Meta's checkpoints and in GGUF."""

_OF_LANGUAGE_MODEL = re.compile(
    r"^(model\.((decoder|language_model)\.)?embed_tokens|transformer\.(wte|word_embeddings)|token_embd)\."
)
"""Names of token embeddings in transformers' networks with a head, and in GGUF."""

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|predictions|output_projection)(\.|$)")
_OTHER_HEAD = re.compile(r"(^|\.)(score|classifier|classification_head|qa_outputs|v_head)\.")
_FEWEST_ROWS = 1000


def tied_heads(shapes: Mapping[str, tuple[int, ...]], repeats: Mapping[str, str], names: frozenset[str]) -> set[str]:
    """Find the weights that are both token embedding and head.

    Such a weight has a row per token. It is one if it is tied to a weight that is no embedding. A file may lack the name of the
    head: then it is one if it is named as a token embedding, no other matrix has as many rows, and other names show that the
    checkpoint is that of a language model.

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
    has_other_head = any(map(_OTHER_HEAD.search, names))
    has_decoder = any(name.startswith("decoder.") for name in names)
    found = set()
    for group in rows.values():
        embeddings = [name for name in group if _EMBEDDING.search(name)]
        has_own_head = len({repeats.get(name, name) for name in group}) > 1
        is_tied = len(group) > 1 and len(embeddings) < len(group)
        is_named = any(
            has_head or (_OF_LANGUAGE_MODEL.match(name) and not has_other_head) or (name == "shared.weight" and has_decoder)
            for name in embeddings
        )
        if not has_own_head and (is_tied or is_named):
            found.update(group)
    return found
