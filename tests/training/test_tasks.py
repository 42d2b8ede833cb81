"""Networks of any task finetune end to end: with labels, with a teacher, with a loss function; what fits no loss is refused."""

import copy
import math
from dataclasses import replace
from functools import cache, wraps

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import to_ratio
from torch import nn
from torch.nn import functional

import opq
import opq.torch
from opq.training.measurement import measure
from opq.training.objective import Objective
from opq.training.trainer import Trainer

FEW = opq.TrainingConfig(epochs=20, mask_update_epochs=10, learning_rate=0.02, max_grad_norm=1.0)


def batched(inputs, labels, size=8):
    """Batches (inputs, labels)."""
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def pretrained(model, batches, loss, steps=300):
    """Train a dense network with a loss of (model, batch)."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batches[step % len(batches)]).backward()
        optimizer.step()
    return model.eval()


def made_once(make):
    """A function that gives copies of what `make` returns: networks take longer to pretrain than to finetune."""
    kept = cache(make)
    return wraps(make)(lambda *arguments: copy.deepcopy(kept(*arguments)))


@made_once
def regression():
    """Three values of twelve."""
    torch.manual_seed(0)
    x = torch.randn(64, 12)
    model = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 3))
    batches = batched(x, torch.stack([x[:, 0] * 2, x[:, 1] - x[:, 2], x[:, 3].abs()], 1))
    return pretrained(model, batches, lambda m, b: functional.mse_loss(m(b[0]), b[1])), batches, {}


@made_once
def several_labels():
    """Five labels for each input, none of which excludes another."""
    torch.manual_seed(0)
    x = torch.randn(64, 12)
    model = nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 5))
    batches = batched(x, (x[:, :5] + x[:, 5:10] > 0).float())
    loss = functional.binary_cross_entropy_with_logits
    return pretrained(model, batches, lambda m, b: loss(m(b[0]), b[1])), batches, {"loss": "binary_cross_entropy"}


@made_once
def segmentation():
    """A class for each pixel of images that are wider than high."""
    torch.manual_seed(0)
    x = torch.randn(32, 2, 5, 6)
    model = nn.Sequential(nn.Conv2d(2, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 3, 1))
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    labels[:, 0, 0] = -100  # counts for nothing
    batches = batched(x, labels)
    return pretrained(model, batches, lambda m, b: functional.cross_entropy(m(b[0]), b[1])), batches, {}


class Detector(nn.Module):
    """A box and a class for each of four cells."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.boxes, self.classes = nn.Conv2d(48, 4, 1), nn.Conv2d(48, 3, 1)

    def forward(self, pixels):
        features = self.body(pixels)
        return {"boxes": self.boxes(features), "scores": self.classes(features)}


def detection_loss(outputs, batch):
    """The sum of the losses of boxes and classes."""
    boxes = functional.smooth_l1_loss(outputs["boxes"], batch["target"]["boxes"])
    return boxes + functional.cross_entropy(outputs["scores"], batch["target"]["classes"])


@made_once
def detection():
    """Batches are mappings, whose labels are a mapping too; the loss is a function."""
    torch.manual_seed(0)
    x = torch.randn(32, 2, 4, 4)
    cells = functional.max_pool2d(x, 2)
    batches = [
        {"pixels": a, "target": {"boxes": torch.cat([b, -b], 1), "classes": (b[:, 0] > 1).long()}}
        for a, b in zip(x.split(8), cells.split(8), strict=True)
    ]
    model = pretrained(Detector(), batches, lambda m, b: detection_loss(m(b["pixels"]), b))
    return model, batches, {"loss": detection_loss}


TASKS = {task.__name__: task for task in (regression, several_labels, segmentation, detection)}


def check(model, batches, options, ratio=10.0, training=FEW):
    """Finetuning gives a file within its bytes whose loss, the one that it trains, is below that without training."""
    dense = copy.deepcopy(model)
    untrained = opq.load(copy.deepcopy(model), opq.compress(model, ratio=ratio).data)
    objective = Objective(options.get("loss"), training.label_weight, training.temperature)
    teacher = dense if "teacher" in options else None
    result = opq.finetune(model, batches, to_ratio(ratio), training, **options)
    assert result.compressed.file_bytes <= result.budget
    before, after = (measure(network, batches, objective, teacher) for network in (dense, model))
    assert (result.before.loss, result.before.top1) == (pytest.approx(before.loss, rel=1e-4, abs=1e-6), before.top1)
    assert (result.after.loss, result.after.top1) == (pytest.approx(after.loss, rel=1e-4, abs=1e-6), after.top1)
    assert after.loss < max(measure(untrained, batches, objective, teacher).loss, 1e-4)
    assert str(result).count("loss") == 2
    return result


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_any_task_trains_on_labels(task):
    """The loss of the file is lower than without training, for values, several labels, pixels and boxes."""
    result = check(*task())
    assert ("top1" in result.history[0]) == (task is segmentation)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_any_task_learns_from_a_teacher(task):
    """Distillation of values, labels and pixels needs no labels; of a loss function's outputs it has the rest of its weight."""
    model, batches, options = task()
    share = 0.5 if task is detection else 0.0
    training = replace(FEW, label_weight=share, temperature=2.0)
    check(model, batches, options | {"teacher": "dense"}, training=training)


def test_half_precision_trains_in_float32():
    """A network of half precision gets a file of half its bytes, in its dtypes, and small updates are not lost."""
    model, batches, _ = regression()
    model.half()
    states = []

    def look(network):
        states.extend(parameter.dtype for parameter in network.parameters())
        return {}

    result = opq.finetune(model, [(x.half(), y) for x, y in batches], to_ratio(4.0), FEW, on_epoch_end=look)
    assert set(states) == {torch.float32}
    assert result.budget == sum(tensor.nbytes for tensor in model.state_dict().values()) // 4
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}
    loaded = opq.torch.load(result.compressed.data)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert result.after.loss < 2.0 * result.history[0]["loss"]


def test_a_failed_training_gives_half_precision_back():
    """After an interruption the network has its dtypes and values."""
    model, batches, _ = regression()
    before = {name: tensor.clone() for name, tensor in model.bfloat16().state_dict().items()}
    with pytest.raises(opq.TrainingError, match="JSON"):
        opq.finetune(model, batches, to_ratio(4.0), FEW, on_epoch_end=lambda network: {"x": object()})
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) and after[name].dtype == torch.bfloat16 for name, tensor in before.items())


def test_frozen_batch_norms_stay_frozen():
    """The statistics of batch norms whose parameters need no gradient stay, those of others follow the data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Linear(24, 10))
    for name in ("running_mean", "running_var"):
        for layer in (model[1], model[3]):
            getattr(layer, name).copy_(torch.rand(24) + 0.5)
    model[1].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    batches = batched(torch.randn(32, 12) + 3.0, torch.arange(32) % 10)
    config = to_ratio(4.0, auxiliary="exact", batch_norm="keep")
    opq.finetune(model, batches, config, opq.TrainingConfig(epochs=2, reserve=0.0))
    after = model.state_dict()
    assert all(torch.equal(before[f"1.{name}"], after[f"1.{name}"]) for name in model[1].state_dict())
    assert not torch.equal(before["3.running_mean"], after["3.running_mean"])


@pytest.mark.parametrize("key", ["labels", "label", "target", "targets"])
def test_labels_have_several_names(key):
    """Labels in a mapping are found under each name, and are not passed to a network that does not take them."""
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(32, 4))

        def forward(self, pixels):
            return {"logits": self.inner(pixels)}

    history = Trainer(Named(), [{"pixels": torch.randn(8, 2, 4, 4), key: torch.arange(8) % 4}], FEW).run()
    assert history[0]["loss"] == pytest.approx(math.log(4), rel=0.5)
    assert "top1" in history[0]


sizes = st.integers(2, 5)


@given(classes=sizes, tokens=sizes, seed=st.integers(0, 99))
def test_the_axis_of_classes_is_that_of_labels(classes, tokens, seed):
    """Logits (n, tokens, classes) have classes last, (n, classes, positions) second, if only that fits; pixels second."""
    generator = torch.Generator().manual_seed(seed)
    for shape, axis in (((3, tokens, classes), 2), ((3, classes, tokens), 1), ((3, classes, tokens, 4), 1)):
        if shape == (3, classes, tokens) and classes == tokens:
            continue
        outputs, taught = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        labels = torch.randint(classes, [size for number, size in enumerate(shape) if number != axis], generator=generator)
        wanted = functional.cross_entropy(outputs.movedim(axis, 1), labels)
        assert float(Objective(None, 1.0, 1.0)(outputs, (None, labels))) == pytest.approx(float(wanted), rel=1e-5)
        p, q = taught.softmax(axis), outputs.softmax(axis)
        divergence = (p * (p / q).log()).sum(axis).mean()
        found = Objective(None, 0.0, 1.0)(outputs, (None, labels), taught)
        assert float(found) == pytest.approx(float(divergence), rel=1e-3, abs=1e-5)


@given(temperature=st.floats(0.5, 8.0), seed=st.integers(0, 99))
def test_several_labels_are_distilled_one_by_one(temperature, seed):
    """The divergence is T^2 times the mean of p log(p / q) + (1 - p) log((1 - p) / (1 - q))."""
    generator = torch.Generator().manual_seed(seed)
    outputs, taught = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (taught / temperature).sigmoid(), (outputs / temperature).sigmoid()
    wanted = temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    found = Objective("binary_cross_entropy", 0.0, temperature)(outputs, (None,), taught)
    assert float(found) == pytest.approx(float(wanted), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (torch.zeros(4, 3), torch.tensor([[0.0, 1.0, 1.0]] * 4), "labels of 0.0 and 1.0 fit several losses"),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "are not classes for logits"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "do not fit outputs of shape"),
        (torch.zeros(4, 3, 5, 5), None, "without labels the network must return logits"),
        (torch.zeros(4, 3), ["a"] * 4, "labels must be a tensor"),
        ({"boxes": torch.zeros(4, 3)}, torch.zeros(4), "for other outputs give loss="),
    ],
)
def test_an_unclear_task_is_refused(outputs, labels, message):
    """If no loss or several fit outputs and labels, the error is one line that says what to give."""
    taught = outputs if labels is None else None
    with pytest.raises(opq.TrainingError, match=message) as caught:
        Objective(None, 0.0, 1.0)(outputs, (None, labels), taught)
    assert "loss=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_loss_is_refused():
    """Unknown names, functions that return no scalar, and a function that a teacher leaves without effect."""
    with pytest.raises(opq.TrainingError, match="loss must be one of cross_entropy"):
        Objective("hinge", 1.0, 1.0)
    with pytest.raises(opq.TrainingError, match=r"a tensor of one value, got shape \(4, 3\)"):
        Objective(lambda outputs, batch: outputs, 1.0, 1.0)(torch.zeros(4, 3), (None, None))
    with pytest.raises(opq.TrainingError, match="label_weight must be above 0"):
        Objective(lambda outputs, batch: outputs.sum(), 0.0, 1.0)(torch.zeros(4, 3), (None, None), torch.zeros(4, 3))


def test_nothing_is_trained_before_an_error():
    """A loss that is not finite, or labels out of range, end the run before the first step; the network keeps its values."""
    model, batches, _ = regression()
    before = copy.deepcopy(model.state_dict())
    for bad, options, message in (
        ([(x, y * math.nan) for x, y in batches], {"loss": "mse"}, "the loss of the first batch is nan"),
        ([(x, torch.full((len(x),), 3)) for x, _ in batches], {}, "labels go from 3 to 3, but the network has 3 classes"),
        ([], {}, "length of at least one batch"),
    ):
        with pytest.raises(opq.TrainingError, match=message):
            opq.finetune(model, bad, to_ratio(8.0), FEW, **options)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def causal(transformers):
    """GPT-2 with its own loss, which shifts the labels."""
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    tokens = (torch.arange(12) + torch.arange(32)[:, None]) % 40
    return transformers.GPT2LMHeadModel(config), [{"input_ids": part, "labels": part} for part in tokens.split(8)]


def encoder(transformers):
    """BERT that classifies."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    tokens = torch.randint(40, (32, 8), generator=torch.Generator().manual_seed(0))
    batches = [
        {"input_ids": part, "labels": part[:, 0] % 3, "attention_mask": torch.ones_like(part)} for part in tokens.split(8)
    ]
    return transformers.BertForSequenceClassification(config), batches


def translation(transformers):
    """T5, which makes the inputs of its decoder from the labels, without which it does not run."""
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    tokens = torch.randint(1, 40, (32, 6), generator=torch.Generator().manual_seed(0))
    return transformers.T5ForConditionalGeneration(config), [{"input_ids": p, "labels": p.flip(1)} for p in tokens.split(8)]


@made_once
def language_network(make):
    """A network of transformers after some training, and its batches."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, batches = make(transformers)
    return pretrained(model.train(), batches, lambda m, b: m(**b).loss, steps=200), batches


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("make", [causal, encoder, translation])
def test_transformers_finetune_with_their_own_loss(make, taught):
    """BERT-, GPT-2- and T5-like networks train on their own loss, or learn from their dense form."""
    model, batches = language_network(make)
    options = {"teacher": "dense"} if taught else {}
    training = replace(FEW, epochs=8, mask_update_epochs=4, learning_rate=0.05, temperature=1.0)
    check(model, batches, options, ratio=16.0, training=training)
