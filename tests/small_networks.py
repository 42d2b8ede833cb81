"""Networks small enough to train in a test, one of each kind of module."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import opq


class Convolutions(nn.Module):
    """Every kind of convolution, on images (n, 2, 8, 8): plain, grouped, depthwise, transposed, in one, two and three axes."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(2, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.grouped = nn.Conv2d(24, 24, 1, groups=2)
        self.transposed = nn.ConvTranspose2d(24, 24, 2, stride=2)
        self.solid = nn.Conv3d(1, 4, 3, padding=1)
        self.solid_transposed = nn.ConvTranspose3d(4, 1, 1)
        self.line = nn.Conv1d(24, 24, 3, padding=1, groups=2)
        self.line_transposed = nn.ConvTranspose1d(24, 24, 2, stride=2)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.plain(x)))
        x = torch.relu(self.transposed(self.grouped(self.depthwise(x))))
        x = self.solid_transposed(torch.relu(self.solid(x[:, None])))[:, 0]
        return self.head(self.line_transposed(self.line(x.mean(3))).mean(2))


class Sequences(nn.Module):
    """Embedding, recurrent layers of each kind, attention, and a head that shares the embedding's weight; (n, time) tokens."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 16)
        self.lstm = nn.LSTM(16, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.rnn = nn.RNN(16, 16, batch_first=True)
        self.cell = nn.GRUCell(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        x = self.rnn(self.gru(self.lstm(self.tokens(x))[0])[0])[0]
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.cell(x[:, 0], x[:, -1]))


def make(kind, seed=0):
    """A network and inputs for it: "convolutions", "sequences" or "dense" layers."""
    torch.manual_seed(seed)
    if kind == "convolutions":
        return Convolutions(), torch.randn(6, 2, 8, 8)
    if kind == "sequences":
        return Sequences(), torch.randint(30, (6, 5))
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 10)), torch.randn(6, 12)


KINDS = ("convolutions", "sequences", "dense")


def images(count=48, labelled=True, seed=0):
    """A loader of small images that shuffles."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 2, 8, 8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    data = TensorDataset(inputs, labels) if labelled else inputs
    return DataLoader(data, batch_size=16, shuffle=True)


def to_ratio(ratio, **settings):
    """A config with this ratio as target."""
    return opq.CompressionConfig(target=opq.Ratio(ratio), **settings)


def flat():
    """Batches for the network of dense layers."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 12, generator=generator), torch.randint(10, (8,), generator=generator)) for _ in range(3)]
