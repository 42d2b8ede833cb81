"""Networks of PyTorch's own layers, one for each way in which a layer keeps its weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune


class BidirectionalLSTM(nn.Module):
    """An embedding and two bidirectional LSTM layers with projections; (n, time) tokens."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(200, 32)
        self.lstm = nn.LSTM(32, 48, 2, bidirectional=True, batch_first=True, proj_size=24)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        return self.head(self.lstm(self.tokens(x))[0][:, -1])


class TiedGRU(nn.Module):
    """A language model whose head has the weight of its embedding; (n, time) tokens."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(300, 48)
        self.gru = nn.GRU(48, 48, batch_first=True)
        self.head = nn.Linear(48, 300, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(self.gru(self.tokens(x))[0])


class UNet(nn.Module):
    """Two levels, with group norms, skip connections and transposed convolutions; images (n, 3, height, width)."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = _two_convolutions(3, 8), _two_convolutions(8, 16), _two_convolutions(16, 32)
        self.up2, self.merge2 = nn.ConvTranspose2d(32, 16, 2, stride=2), _two_convolutions(32, 16)
        self.up1, self.merge1 = nn.ConvTranspose2d(16, 8, 2, stride=2), _two_convolutions(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        x = self.bottom(nn.functional.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(x), second], 1))
        return self.head(self.merge1(torch.cat([self.up1(x), first], 1)))


def _two_convolutions(inputs, outputs):
    layers = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def dcgan():
    """The generator of DCGAN: noise (n, 32, 1, 1) to images (n, 3, 32, 32)."""
    widths, layers = (32, 64, 32, 16), []
    for inputs, outputs in pairwise(widths):
        stride, padding = (2, 1) if layers else (1, 0)
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh())


def weight_norm(new):
    """Convolutions over time with weight_norm, the new one or the old one; (n, 1, time)."""
    norm = parametrizations.weight_norm if new else nn.utils.weight_norm
    pairs = ((1, 32), (32, 48), (48, 32))
    layers = [[norm(nn.Conv1d(inputs, outputs, 5, padding=2)), nn.LeakyReLU()] for inputs, outputs in pairs]
    return nn.Sequential(*(part for layer in layers for part in layer), norm(nn.ConvTranspose1d(32, 1, 4, stride=2), dim=1))


def spectral_norm():
    """Convolutions and a linear layer with spectral_norm; images (n, 3, height, width)."""
    norm = parametrizations.spectral_norm
    first, second = norm(nn.Conv2d(3, 32, 3, padding=1)), norm(nn.Conv2d(32, 48, 3, padding=1))
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), pool, nn.Flatten(), norm(nn.Linear(192, 10)))


class Attention(nn.Module):
    """Self-attention with a class token and positions, then attention to keys and values of other widths."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, 48))
        self.positions = nn.Parameter(torch.randn(1, 9, 48))
        self.own = nn.MultiheadAttention(48, 4, batch_first=True)
        self.other = nn.MultiheadAttention(48, 4, kdim=32, vdim=24, add_bias_kv=True, batch_first=True)
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x, keys, values):
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        x = self.norm(x + self.own(x, x, x)[0])
        return self.head((x + self.other(x, keys, values)[0])[:, 0])


class TwoInputs(nn.Module):
    """A bilinear layer of two inputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(16, 24), nn.Linear(20, 24)
        self.both = nn.Bilinear(24, 24, 16)

    def forward(self, left, right):
        return self.both(torch.tanh(self.left(left)), torch.tanh(self.right(right)))


class BagOfWords(nn.Module):
    """An EmbeddingBag with padding; (n, words) tokens."""

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(400, 32, padding_idx=0)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.words(x))


class SharedModules(nn.Module):
    """A block under several names, and a table that is also an attribute of the network."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(100, 48)
        self.table = self.tokens.weight
        block = nn.Sequential(nn.Linear(48, 48), nn.LayerNorm(48), nn.GELU())
        self.blocks = nn.ModuleList([block] * 3)
        self.last = block

    def forward(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x) @ self.table.T


class Fourier(nn.Module):
    """A complex parameter and a complex buffer beside a linear layer; (n, 48)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(48, 48)
        self.filter = nn.Parameter(torch.randn(12, 12, dtype=torch.complex64))
        self.outer = nn.Linear(48, 24)
        self.register_buffer("phases", torch.exp(1j * torch.arange(12.0)))

    def forward(self, x):
        x = torch.fft.fft(self.inner(x))[:, :12] * self.phases
        return self.outer(torch.view_as_real(x @ self.filter).flatten(1).repeat(1, 2))


def pruned():
    """Layers pruned by `torch.nn.utils.prune`: single weights, whole rows, and a bias; images (n, 3, 16, 16)."""
    first, second, head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(128, 10)
    prune.l1_unstructured(first, "weight", 0.3)
    prune.ln_structured(second, "weight", 0.25, n=2, dim=0)
    prune.random_unstructured(second, "weight", 0.5)
    prune.random_unstructured(head, "weight", 0.9)
    prune.l1_unstructured(head, "bias", 0.5)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)
