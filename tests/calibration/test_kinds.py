"""Networks of many kinds, and inputs of any structure: all their weights are calibrated."""

import dataclasses
import logging
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import opq
import opq.torch
from opq.calibration.context_length import context_length
from opq.calibration.inputs import batches_of
from opq.calibration.synthetic import synthesize
from opq.progress import no_progress


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def tokens(*shape, vocabulary=100):
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(3))


class Conv1D(nn.Module):
    """As that of transformers: its weight is (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(inputs, outputs) / inputs**0.5), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        """An affine map of the last axis."""
        return x @ self.weight + self.bias


class Chain(nn.Module):
    """Layers in sequence, with what is done between them; what they return besides a tensor is left out."""

    def __init__(self, *steps):
        super().__init__()
        self.layers = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))
        self.steps = [step if not isinstance(step, nn.Module) else None for step in steps]

    def forward(self, x):
        """The output of the last step."""
        layers = iter(self.layers)
        for step in self.steps:
            x = next(layers)(x) if step is None else step(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Attention(nn.Module):
    """Cross-attention: query and key have different inputs."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, query, memory):
        """The mixed values, in a mapping."""
        return {"mixed": self.attention(query, memory, memory)[0]}


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(1200, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 1200)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        """Logits, as an attribute."""
        return types.SimpleNamespace(logits=self.head(self.body(self.embedding(ids))[0]))


@dataclasses.dataclass
class Detections:
    """The outputs of a detector."""

    boxes: torch.Tensor
    classes: list[torch.Tensor]
    count: int


class Detector(nn.Module):
    """Two heads of different magnitude."""

    def __init__(self):
        super().__init__()
        self.body, self.boxes, self.classes = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 7, 1)

    def forward(self, x):
        """A dataclass with tensors in a list."""
        x = self.body(x).relu()
        return Detections(100.0 * self.boxes(x), [self.classes(x)], 3)


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized when it runs."""

    def forward(self, x):
        """Convolve with the standardized weight."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, centred / centred.std((1, 2, 3), keepdim=True), self.bias)


def pruned():
    layer = nn.Linear(24, 40)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


KINDS = {
    "perceptron": (lambda: Chain(nn.Linear(24, 40), torch.relu, nn.Linear(40, 10)), normal(32, 24)),
    "convolution 1d": (lambda: Chain(nn.Conv1d(4, 24, 3), torch.relu, nn.Conv1d(24, 8, 3, groups=2)), normal(32, 4, 12)),
    "convolution 2d": (lambda: Chain(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)), normal(32, 3, 8, 8)),
    "convolution 3d": (lambda: Chain(nn.Conv3d(2, 12, 3), torch.relu, nn.Flatten(), nn.Linear(324, 4)), normal(32, 2, 5, 5, 5)),
    "depthwise": (lambda: Chain(nn.Conv2d(24, 24, 5, groups=24), nn.Conv2d(24, 12, 1)), normal(32, 24, 7, 7)),
    "transposed convolution": (lambda: Chain(nn.ConvTranspose2d(16, 6, 3, stride=2), torch.tanh), normal(32, 16, 4, 4)),
    "convolution of a language model": (lambda: Chain(Conv1D(24, 60), torch.relu, Conv1D(60, 8)), normal(32, 5, 24)),
    "long short-term memory": (lambda: Chain(nn.LSTM(12, 20, 2, batch_first=True), nn.Linear(20, 5)), normal(32, 6, 12)),
    "gated recurrent unit": (
        lambda: Chain(nn.GRU(12, 20, bidirectional=True, batch_first=True), nn.Linear(40, 5)),
        normal(32, 6, 12),
    ),
    "embedding": (lambda: Chain(nn.Embedding(100, 24), nn.Linear(24, 10)), tokens(32, 7)),
    "sum of embeddings": (lambda: Chain(nn.EmbeddingBag(100, 24), nn.Linear(24, 10)), tokens(32, 7)),
    "transformer": (
        lambda: Chain(nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, 0.0, batch_first=True), 2)),
        normal(32, 6, 32),
    ),
    "attention of two inputs": (Attention, (normal(32, 4, 32), normal(32, 6, 32))),
    "tied language model": (Tied, tokens(32, 7, vocabulary=1200)),
    "detector": (Detector, normal(32, 3, 8, 8)),
    "standardized convolution": (lambda: Chain(Standardized(3, 24, 3), torch.relu), normal(32, 3, 8, 8)),
    "weight norm": (lambda: Chain(weight_norm(nn.Conv1d(4, 24, 3)), torch.relu, nn.Conv1d(24, 8, 3)), normal(32, 4, 12)),
    "pruned": (lambda: Chain(pruned(), torch.relu, nn.Linear(40, 10)), normal(32, 24)),
    "half precision": (lambda: Chain(nn.Linear(24, 40), torch.relu, nn.Linear(40, 10)).bfloat16(), normal(32, 24)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_calibrated(kind, caplog):
    """All weights are named as calibrated; the file is within its target, valid, of the same tensors, and meets the claim that
    it is no worse than the file from the weights alone.
    """
    make, inputs = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    calibration = opq.calibrate(model, inputs)
    weights = opq.plan(model, ratio=2.5).layers
    with caplog.at_level(logging.INFO, "opq"):
        compressed = calibration.compress(ratio=2.5)
    assert f"{len(weights)} of {len(weights)} weights are calibrated" in caplog.text
    assert "quantized without" not in caplog.text
    assert set(calibration.sensitivity) == set(weights)
    assert compressed.file_ratio >= 2.5
    opq.verify(compressed.data)
    opq.torch.load_model(model, compressed.data)


INPUTS = normal(40, 24)
STRUCTURES = {
    "array": INPUTS.numpy(),
    "batches": list(INPUTS.split(8)),
    "generator": (batch for batch in INPUTS.split(8)),
    "batches with labels": [(batch, torch.zeros(8)) for batch in INPUTS.split(8)],
    "lists": [[batch, torch.zeros(8)] for batch in INPUTS.split(8)],
    "mapping": {"x": INPUTS, "labels": torch.zeros(40)},
    "mappings": [{"x": batch.numpy(), "target": np.zeros(8)} for batch in INPUTS.split(8)],
    "tuple": (INPUTS,),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_inputs_of_any_structure_give_the_same_calibration(structure):
    """Arrays, batches, loaders, mappings and labels give what one tensor gives."""
    torch.manual_seed(0)
    model = Chain(nn.Linear(24, 40), torch.relu, nn.Linear(40, 10))
    plain, other = opq.calibrate(model, INPUTS), opq.calibrate(model, STRUCTURES[structure])
    assert other.sensitivity == plain.sensitivity


class Tokenizer:
    """One token for each letter."""

    def __call__(self, text, *, truncation, max_length):
        """The token ids of a text."""
        assert truncation
        return {"input_ids": [ord(letter) % 100 for letter in text][:max_length]}


def test_texts_are_tokenized():
    """Texts with a tokenizer give what their token ids give; an empty text is left out."""
    torch.manual_seed(0)
    model, texts = Chain(nn.Embedding(100, 24), nn.Linear(24, 10)), ["a text", "", "another one"]
    found = opq.calibrate(model, texts, tokenizer=Tokenizer())
    ids = [torch.tensor([Tokenizer()(text, truncation=True, max_length=512)["input_ids"]]) for text in texts if text]
    assert found.sensitivity == opq.calibrate(model, ids).sensitivity
    with pytest.raises(opq.CalibrationError, match="inputs must be texts, got int"):
        opq.calibrate(model, [5], tokenizer=Tokenizer())


class FewPositions(nn.Module):
    """A network with a table of 12 positions, two of which are for padding; it has logits of tokens if it is causal."""

    def __init__(self, *, causal, config):
        super().__init__()
        self.tokens, self.wpe = nn.Embedding(100, 16), nn.Embedding(12, 16, padding_idx=1 if config else None)
        self.head = nn.Linear(16, 100 if causal else 8)
        self.config = types.SimpleNamespace(max_position_embeddings=12, bos_token_id=9999) if config else None

    def forward(self, ids):
        """(samples, length, classes)."""
        first = 0 if self.config is None else 2
        return self.head(self.tokens(ids) + self.wpe(torch.arange(ids.shape[1]) + first))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("config", [True, False])
def test_inputs_are_as_long_as_the_network_takes(causal, config):
    """Texts, drawn texts and random tokens have no more tokens than the network has positions."""
    torch.manual_seed(0)
    model, longest = FewPositions(causal=causal, config=config), 10 if config else 12
    assert context_length(model, 512) == longest
    made = synthesize(model, None, seed=0, report=no_progress)
    assert max(batch[0][0].shape[1] for batch in made) == longest
    given = batches_of(model, ["a long text of many letters"], Tokenizer())
    assert given[0][0][0].shape == (1, longest)
    model(given[0][0][0])


def test_texts_are_drawn_until_the_network_fails():
    """A network whose table of positions has an unknown name draws texts as long as the table."""
    torch.manual_seed(0)
    model = FewPositions(causal=True, config=False)
    model.wpe, model.forward = (
        None,
        lambda ids, table=model.wpe: model.head(model.tokens(ids) + table(torch.arange(ids.shape[1]))),
    )
    assert {tuple(batch[0][0].shape) for batch in synthesize(model, None, seed=0, report=no_progress)} == {(1, 12)}


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("tied language model", None, "of int64 (1, 24)"),
        ("embedding", None, "256 of int64 (256, 32)"),
        ("convolution 2d", (3, 8, 8), "128 of float32 (128, 3, 8, 8)"),
    ],
)
def test_synthetic_inputs_are_of_the_kind_that_the_network_takes(kind, shape, message, caplog, monkeypatch):
    """A causal language model draws texts, other networks of tokens get random ones, and others images of a shape."""
    monkeypatch.setattr("opq.calibration.synthetic_tokens.TEXTS", 2)
    monkeypatch.setattr("opq.calibration.synthetic_tokens.LENGTH", 24)
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "opq"):
        calibration = opq.calibrate(KINDS[kind][0](), shape=shape)
    assert message in caplog.text
    opq.verify(calibration.compress(ratio=2.5).data)


def test_without_suitable_synthetic_inputs_files_are_those_of_the_weights_alone(caplog):
    """For a shape of neither images nor token ids, a warning says that nothing is measured; files are those of `compress`."""
    torch.manual_seed(0)
    model = KINDS["convolution 1d"][0]()
    with caplog.at_level(logging.WARNING, "opq"):
        calibration = opq.calibrate(model, shape=(4, 12))
    assert "not inputs of shape (4, 12), so files are those of the weights alone" in caplog.text
    assert calibration.compress(ratio=2.5).data == opq.compress(model, ratio=2.5).data
    assert set(calibration.sensitivity.values()) == {1.0}


def test_texts_come_from_the_distribution_of_the_network(monkeypatch):
    """A network that always predicts the next token of a cycle draws the cycle; with `generate`, that function draws."""

    class Cycle(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(70, 70)
            nn.init.eye_(self.embedding.weight)

        def forward(self, ids):
            return 100.0 * self.embedding(ids).roll(1, -1)

    monkeypatch.setattr("opq.calibration.synthetic_tokens.LENGTH", 90)
    model = Cycle()
    found = opq.calibrate(model)
    assert all(torch.equal(batch[0][0], (torch.arange(90) % 70)[None]) for batch in found.inputs)
    model.generate = lambda ids, **options: ids.repeat(1, options["max_new_tokens"] + 1)
    assert not any(batch[0][0].any() for batch in opq.calibrate(model).inputs)
