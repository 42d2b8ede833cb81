"""Small networks of the kinds that are exported to ONNX, with random weights, and their export."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn import functional


def block(inputs, outputs, size=3, stride=1, groups=1):
    """A convolution, a batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def alexnet():
    """Plain convolutions with biases, pooling, and dense layers."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(), nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip


def mobilenet():
    """Depthwise and pointwise convolutions with batch norms."""
    pairs = ((8, 16, 1), (16, 32, 2), (32, 32, 1))
    layers = [nn.Sequential(block(i, i, 3, stride, i), block(i, o, 1)) for i, o, stride in pairs]
    return nn.Sequential(block(3, 8, 3, 2), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Bottleneck(nn.Module):
    """A residual block of ResNet-50."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(block(inputs, width, 1), block(width, width, 3, stride), block(width, 2 * width, 1)[:2])
        self.shortcut = block(inputs, 2 * width, 1, stride)[:2]

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50():
    """Residual blocks of three convolutions."""
    blocks = Bottleneck(8, 8, 1), Bottleneck(16, 16, 2)
    return nn.Sequential(block(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Attention(nn.Module):
    """A transformer's layer, with layer norms before (ViT, GPT-2) or behind (BERT)."""

    def __init__(self, width, heads, pre_norm, causal=False):
        super().__init__()
        self.heads, self.pre_norm, self.causal = heads, pre_norm, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def mix(self, x):
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def forward(self, x):
        if self.pre_norm:
            x = x + self.mix(self.norm1(x))
            return x + self.inner(self.norm2(x))
        x = self.norm1(x + self.mix(x))
        return self.norm2(x + self.inner(x))


class ViT(nn.Module):
    """Patches, a class token, and embeddings of positions."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.layers = nn.Sequential(*(Attention(32, 2, pre_norm=True) for _ in range(2)))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.layers(x)[:, 0])


class Bert(nn.Module):
    """Embeddings of tokens, positions and types; a pooler."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.types = nn.Embedding(120, 32), nn.Embedding(16, 32), nn.Embedding(2, 32)
        self.norm = nn.LayerNorm(32)
        self.layers = nn.Sequential(*(Attention(32, 4, pre_norm=False) for _ in range(2)))
        self.pooler = nn.Linear(32, 32)

    def forward(self, ids):
        places = torch.arange(ids.shape[1])
        x = self.norm(self.words(ids) + self.places(places) + self.types(torch.zeros_like(ids)))
        return torch.tanh(self.pooler(self.layers(x)[:, 0]))


class Conv1D(nn.Module):
    """The dense layer of GPT-2 in transformers, whose weight is (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class Gpt2(nn.Module):
    """Causal attention, layers with weights (inputs, outputs), and a head that is the embedding."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(120, 32), nn.Embedding(16, 32)
        self.layers = nn.Sequential(*(Attention(32, 2, pre_norm=True, causal=True) for _ in range(2)))
        for layer in self.layers:
            layer.inner[0], layer.inner[2] = Conv1D(32, 64), Conv1D(64, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 120, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        return self.head(self.norm(self.layers(self.wte(ids) + self.wpe.weight[: ids.shape[1]])))


class Lstm(nn.Module):
    """A recurrent layer in both directions, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.lstm, self.up = nn.LSTM(32, 12, bidirectional=True, batch_first=True), nn.ConvTranspose1d(24, 8, 2, 2)

    def forward(self, x):
        return self.up(self.lstm(x)[0].transpose(1, 2))


NETWORKS = {
    "alexnet": (alexnet, "images"), "mobilenet": (mobilenet, "images"), "resnet50": (resnet50, "images"),
    "vit": (ViT, "images"), "bert": (Bert, "tokens"), "gpt2": (Gpt2, "tokens"), "lstm": (Lstm, "sequences"),
}  # fmt: skip


def make(name, seed=0):
    """A network in evaluation mode, and inputs for it; batch norms have statistics of their own."""
    torch.manual_seed(seed)
    maker, kind = NETWORKS[name]
    model = maker()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    shape = {"images": (2, 3, 32, 32), "sequences": (2, 9, 32)}.get(kind)
    return model.eval(), torch.randn(shape) if shape else torch.randint(120, (2, 9))


def export(model, inputs, path, **options):
    """Write the ONNX model of a network with an input x and an output y, by the exporter that needs no other package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and warns of everything that it takes for constant
        torch.onnx.export(model, (inputs,), path, dynamo=False, input_names=["x"], output_names=["y"], **options)
    return path


def run(path, inputs):
    """The output of an ONNX model for torch's inputs, computed by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
