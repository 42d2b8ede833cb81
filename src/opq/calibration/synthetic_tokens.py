"""Synthetic inputs of networks of tokens: texts that a causal language model draws itself, and random tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from opq.calibration.context_length import context_length
from opq.calibration.outputs import device_of, outputs_of
from opq.progress import Progress

TEXTS, LENGTH = 48, 256
"""Texts that a language model draws, and their tokens, if the network takes as many."""

SENTENCES, SENTENCE_LENGTH = 256, 32
"""Random sequences of tokens, and their tokens, likewise."""

_PROBE = 8


def vocabulary_of(model: nn.Module) -> int | None:
    """The number of tokens that a network takes: that of its largest embedding; None if it has no embedding."""
    return max((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), default=None)


@torch.no_grad()
def draws_texts(model: nn.Module, vocabulary: int) -> bool:
    """Whether a network is a causal language model: it maps ids to logits of tokens, and the last token changes only its own.

    Args:
        model: The network, in evaluation mode.
        vocabulary: The number of its tokens.
    """
    probe = context_length(model, _PROBE)
    ids = torch.arange(probe)[None] % vocabulary
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary
    try:
        one, two = (outputs_of(model, ((tokens,), {}))[0] for tokens in (ids, other))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    is_logits = one.ndim == 3 and one.shape[1] == probe and one.shape[2] >= vocabulary
    return is_logits and torch.allclose(one[:, :-1], two[:, :-1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def drawn_texts(model: nn.Module, *, seed: int, report: Progress) -> Tensor:
    """Texts that a causal language model draws, token by token from its own distribution.

    Args:
        model: The network. If it has `generate`, as models of transformers do, this draws them with its cache.
        seed: >= 0.
        report: Called while texts are drawn.

    Returns:
        int64 (texts, length).
    """
    start, length = _first_token(model), context_length(model, LENGTH)
    ids = torch.full((TEXTS, 1), start, dtype=torch.int64, device=device_of(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generate: Callable[..., Tensor] | None = getattr(model, "generate", None)
        if generate is not None:
            options = {"do_sample": True, "top_k": 0, "temperature": 1.0, "pad_token_id": start, "eos_token_id": -1}
            return generate(ids, max_new_tokens=length - 1, **options).cpu()
        for number in range(1, length):
            try:
                logits = outputs_of(model, ((ids,), {}))[0][:, -1]
            except (IndexError, RuntimeError):
                if number < _PROBE:
                    raise
                return ids[:, :-1].cpu()  # a table of positions ends here
            ids = torch.cat([ids, torch.multinomial(logits.float().softmax(-1), 1)], 1)
            report("drawing texts", number, length - 1)
    return ids.cpu()


def _first_token(model: nn.Module) -> int:
    token = getattr(getattr(model, "config", None), "bos_token_id", None)
    return token if isinstance(token, int) and 0 <= token < (vocabulary_of(model) or 0) else 0


def random_tokens(model: nn.Module, vocabulary: int, *, seed: int) -> Tensor:
    """Sequences of random tokens, int64 (sequences, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (SENTENCES, context_length(model, SENTENCE_LENGTH)), generator=generator)
