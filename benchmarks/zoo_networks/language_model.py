"""Networks that predict the next token, and their perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.network import Network
from zoo_networks.texts import paragraphs


class LanguageModel(Network):
    """A module that maps token ids (n, length) to logits of the next token after each, (n, length, vocabulary).

    Args:
        name: As in `NETWORKS`.
        module: The network.
        batches: Texts, as token ids, each int64 (n, length).
    """

    kind = "language model"
    measure_name = "perplexity"
    higher_is_better = False

    def __init__(self, name: str, module: nn.Module, batches: Sequence[Tensor]) -> None:
        super().__init__(module, batches)
        self.name = name

    def run(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy of each text's tokens after the first, in nats, (n,)."""
        logits = self.module(batch)[:, :-1]
        return functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The cross-entropies."""
        return outputs

    def summarize(self, mean: float) -> float:
        """Perplexity per token."""
        return math.exp(mean)


def held_out(encode: Callable[[str], Tensor], count: int, length: int, size: int) -> Sequence[Tensor]:
    """Batches of `size` of `count` texts of `length` tokens, evenly from the whole held-out text: int64 (size, length).

    `encode` returns the tokens of a text, int64.
    """
    ids = encode("\n\n".join(paragraphs("test")))
    starts = [number * (len(ids) - length) // (count - 1) for number in range(count)]
    return torch.stack([ids[start : start + length] for start in starts]).split(size)
