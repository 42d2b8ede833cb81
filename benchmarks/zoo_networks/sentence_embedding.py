"""Networks that map a sentence to a vector, and how close the vector stays to that of the dense network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.network import Network
from zoo_networks.texts import sentences


class SentenceEmbedding(Network):
    """A network whose token vectors are averaged.

    Args:
        name: As in `NETWORKS`.
        kind: As in `Network`.
        module: The network.
        tokenizer: Its tokenizer.
        count: Number of sentences.
    """

    measure_name = "cosine to dense"

    def __init__(self, name: str, kind: str, module: nn.Module, tokenizer: Tokenizer, count: int) -> None:
        super().__init__(module, _token_ids(tokenizer, count))
        self.name, self.kind = name, kind

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The vectors of all tokens, (n, length, width), of ids (n, length) and their mask (n, length), 1 where one counts."""
        vectors: Tensor = self.module(ids)
        return vectors

    def run(self, batch: Tensor) -> Tensor:
        """The vectors of the sentences, (n, width), of norm 1."""
        mask = (batch >= 0).long()
        vectors = self.tokens(batch.clamp(min=0), mask) * mask[..., None]
        return functional.normalize(vectors.sum(1) / mask.sum(1, keepdim=True), dim=1)

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The cosine of the angle between the vectors of a sentence."""
        return (outputs.double() * dense.double()).sum(1)


def _token_ids(tokenizer: Tokenizer, count: int) -> Sequence[Tensor]:
    """Batches of sentences of similar length, int64 (25, length); -1 where a sentence has ended."""
    ids = sorted((torch.tensor(encoded.ids) for encoded in tokenizer.encode_batch(sentences(count))), key=len)
    batches = [ids[start : start + 25] for start in range(0, count, 25)]
    return [nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-1) for batch in batches]
