"""Two small language models, which `train_small` trains: a GPT whose head is tied to its embedding, and an LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, CONTEXT = 4096, 256
"""Of the GPT: tokens, and the length of the longest text."""

BYTES = 256
"""The tokens of the LSTM."""


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a layer norm. One matrix has the rows of queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, width) to the same."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A. Radford et al., 2019 (GPT-2), with 5 layers of width 256: 5.1 M parameters. `head.weight` is `tokens.weight`."""

    def __init__(self, width: int = 256, layers: int = 5, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (n, length) to logits (n, length, vocabulary)."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class LSTM(nn.Module):
    """Two layers of 320 units on the bytes of a text, with a head of its own: 1.4 M parameters.

    The 1,280 rows of each matrix are those of the input gate, forget gate, cell and output gate, one after another.
    """

    def __init__(self, width: int = 320, embedding: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, embedding)
        self.lstm = nn.LSTM(embedding, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, BYTES)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (n, length) to logits (n, length, vocabulary)."""
        logits: Tensor = self.head(self.lstm(self.tokens(ids))[0])
        return logits
