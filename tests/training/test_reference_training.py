"""Training against a reference in NumPy and float64, with the gradients of a linear classifier in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thoroughness import examples
from torch import nn

import opq
from opq.training.trainer import Trainer

INPUTS, CLASSES, BATCHES, EPOCHS = 5, 4, 3, 2


@pytest.fixture(autouse=True, scope="module")
def float32_only():
    """No autocast: bfloat16 would hide what is compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        yield


def softmax(logits, temperature=1.0):
    powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return powers / powers.sum(1, keepdims=True)


def cross_entropy(logits, labels):
    """Mean over the rows of -log p(label); labels are integers, or one row of probabilities per input."""
    wanted = np.eye(logits.shape[1])[labels] if labels.ndim == 1 else labels
    return float(-(wanted * np.log(softmax(logits))).sum(1).mean())


def divergence(teacher, student, temperature):
    """Mean over the rows of the sum of p log(p / q), p the teacher's softened probabilities and q the network's."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return float((p * np.log(p / q)).sum(1).mean())


def config(**fields):
    """A training config; the number of epochs is that of these tests."""
    return opq.TrainingConfig(epochs=EPOCHS, **fields)


def mixed_loss(training, student, labels, teacher):
    """The loss of docs/method.md."""
    if teacher is None:
        return cross_entropy(student, labels)
    soft = training.temperature**2 * divergence(teacher, student, training.temperature)
    return training.label_weight * cross_entropy(student, labels) + (1.0 - training.label_weight) * soft


logits = arrays.arrays(np.float64, (6, CLASSES), elements=st.floats(-8.0, 8.0))
shares, temperatures = st.floats(0.0, 1.0), st.floats(0.5, 20.0)


@given(logits, logits, st.lists(st.integers(0, CLASSES - 1), min_size=6, max_size=6), shares, temperatures)
def test_the_loss_is_the_formula(student, teacher, labels, share, temperature):
    """It is s CE + (1 - s) T^2 KL(teacher, network): s the label weight, probabilities in KL at temperature T."""
    training, labels = config(label_weight=share, temperature=temperature), np.array(labels)
    found = training.loss(torch.tensor(student), torch.tensor(labels), torch.tensor(teacher))
    assert float(found) == pytest.approx(mixed_loss(training, student, labels, teacher), rel=1e-4, abs=1e-4)


@given(logits, st.lists(st.integers(0, CLASSES - 1), min_size=6, max_size=6), shares)
def test_without_a_teacher_the_loss_is_the_cross_entropy(student, labels, share):
    """Without a teacher the label weight has no effect."""
    found = config(label_weight=share).loss(torch.tensor(student), torch.tensor(labels), None)
    assert float(found) == pytest.approx(cross_entropy(student, np.array(labels)), rel=1e-4, abs=1e-5)


@given(logits, logits, logits)
def test_labels_may_be_probabilities(student, teacher, likely):
    """Cross-entropy with probabilities, as of mixed images, is their expectation of -log p."""
    training, labels = config(label_weight=0.25), softmax(likely)
    found = training.loss(torch.tensor(student).float(), torch.tensor(labels).float(), torch.tensor(teacher).float())
    assert float(found) == pytest.approx(mixed_loss(training, student, labels, teacher), rel=1e-4, abs=1e-4)


def test_the_loss_is_not_symmetric():
    """The loss is KL(teacher || network): in this example the other direction has another value."""
    teacher, student = torch.tensor([[math.log(0.9), math.log(0.1)]]), torch.tensor([[0.0, 0.0]])
    found = float(config(temperature=1.0).loss(student, None, teacher))
    assert found == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-5)
    assert found != pytest.approx(-0.5 * math.log(1.8) - 0.5 * math.log(0.2), rel=0.1)


@given(st.floats(0.0, 1.0), st.integers(1, 400))
def test_the_rate_is_a_line_and_then_half_a_cosine(warmup, steps):
    """In the warmup it rises by equal steps, then it is (1 + cos(pi x)) / 2, x the share of the remaining steps."""
    training, rising = config(warmup=warmup), warmup * steps
    for step in range(steps):
        if step < rising:
            wanted = (step + 1) / (rising + 1)
        else:
            wanted = math.cos(0.5 * math.pi * (step - rising) / max(steps - rising, 1)) ** 2  # = (1 + cos 2a) / 2
        assert training.rate_at(step, steps) == pytest.approx(wanted, abs=1e-12)


def test_biases_and_batch_norms_do_not_decay():
    """Parameters of two or more dimensions have the weight decay, others none; parameters without gradient are in no group."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    model[0].bias.requires_grad_(False)
    optimizer = config(learning_rate=0.3, weight_decay=0.07).make_optimizer(model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(group["lr"] == 0.3 for group in optimizer.param_groups)
    named = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert named == {
        "0.weight": 0.07,
        "0.bias": None,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.07,
        "3.bias": 0.0,
    }


def test_another_optimizer_gets_the_same_groups():
    """An optimizer of the user gets groups with the learning rate and the weight decay of the config."""
    seen = []

    def maker(groups):
        seen.extend(groups)
        return torch.optim.AdamW(groups)

    optimizer = config(learning_rate=0.3, weight_decay=0.07, optimizer=maker).make_optimizer(nn.Linear(3, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in seen] == [(0.3, 0.07, 1), (0.3, 0.0, 1)]


def train_by_hand(training, weight, bias, batches, teacher):
    """Train W x + b by the published formulas; weight, bias and the loss of each epoch.

    Clipping: gradients times min(1, max_grad_norm / their norm). Nesterov: v = momentum v + g, w -= rate (g + momentum v).
    Average: a = decay a + (1 - decay) w after every step; it starts at the weights after the first step.
    """
    own = [weight.astype(np.float64), bias.astype(np.float64)]
    speed, mean = [np.zeros_like(part) for part in own], None
    steps, losses = EPOCHS * len(batches), []
    for epoch in range(EPOCHS):
        total = 0.0
        for number, (x, labels) in enumerate(batches):
            student, known = x @ own[0].T + own[1], np.eye(CLASSES)[labels]
            taught = None if teacher is None else x @ teacher[0].T + teacher[1]
            total += mixed_loss(training, student, labels, taught)
            slope = softmax(student) - known
            if taught is not None:
                temperature = training.temperature
                soft = temperature * (softmax(student, temperature) - softmax(taught, temperature))
                slope = training.label_weight * slope + (1.0 - training.label_weight) * soft
            slope = slope / len(x)
            gradients = [slope.T @ x, slope.sum(0)]
            if training.max_grad_norm is not None:
                norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients))
                gradients = [gradient * min(1.0, training.max_grad_norm / norm) for gradient in gradients]
            gradients[0] = gradients[0] + training.weight_decay * own[0]
            rate = training.learning_rate * training.rate_at(epoch * len(batches) + number, steps)
            for at, gradient in enumerate(gradients):
                speed[at] = training.momentum * speed[at] + gradient
                own[at] = own[at] - rate * (gradient + training.momentum * speed[at])
            if training.ema_decay is not None:
                decay = training.ema_decay if mean is not None else 0.0
                mean = [decay * (0.0 if mean is None else mean[at]) + (1.0 - decay) * part for at, part in enumerate(own)]
        losses.append(total / len(batches))
    return (*(own if mean is None else mean), losses)


@given(
    learning_rate=st.floats(0.05, 1.0),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    warmup=st.sampled_from([0.0, 0.5]),
    max_grad_norm=st.sampled_from([None, 0.05, 0.5]),
    ema_decay=st.sampled_from([None, 0.0, 0.5, 0.9]),
    label_weight=st.sampled_from([0.0, 0.3, 1.0]),
    taught=st.booleans(),
    seed=st.integers(0, 99),
)
@examples(60)
def test_training_follows_the_config(seed, taught, **numbers):
    """Schedule, clipping, Nesterov momentum, weight decay, average and loss together give the weights of the reference."""
    rng = np.random.default_rng(seed)
    training = config(temperature=2.0, **numbers)
    batches = [(rng.normal(size=(7, INPUTS)), rng.integers(0, CLASSES, 7)) for _ in range(BATCHES)]
    weight, bias = rng.normal(size=(CLASSES, INPUTS)), rng.normal(size=CLASSES)
    teacher = (rng.normal(size=(CLASSES, INPUTS)), rng.normal(size=CLASSES)) if taught else None
    model = nn.Linear(INPUTS, CLASSES)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
        model.bias.copy_(torch.tensor(bias))
    loader = [(torch.tensor(x).float(), torch.tensor(labels)) for x, labels in batches]
    answers = None
    if teacher is not None:
        own, shift = (torch.tensor(part).float() for part in teacher)
        answers = lambda x: x @ own.T + shift  # noqa: E731
    history = Trainer(model, loader, training, answers).run()
    wanted_weight, wanted_bias, losses = train_by_hand(training, weight, bias, batches, teacher)
    np.testing.assert_allclose(model.weight.detach().numpy(), wanted_weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.bias.detach().numpy(), wanted_bias, rtol=1e-3, atol=1e-4)
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-3, abs=1e-4)


def test_gradients_are_clipped_by_default():
    """The first step is 10 (1 + momentum) times the rate, however large the gradient; without clipping it is proportional."""
    moved = {}
    for limit in (config().max_grad_norm, None):
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        training = opq.TrainingConfig(epochs=1, learning_rate=1.0, weight_decay=0.0, warmup=0.0, max_grad_norm=limit)
        Trainer(model, [(torch.full((4, 2), 1e4), torch.zeros(4, dtype=torch.long))], training).run()
        moved[limit] = float(model.weight.detach().norm())
    assert moved[10.0] == pytest.approx(10.0 * 1.9, rel=1e-3)
    assert moved[None] == pytest.approx(1e4 * 1.9, rel=1e-3)  # two classes, two inputs: four entries of half of 1e4


def test_averaged_weights_get_new_batch_norm_statistics():
    """With averaged weights, batch norms have the statistics measured with these weights, not those of the training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    loader = [(torch.randn(16, 6), torch.randint(4, (16,))) for _ in range(4)]
    Trainer(model, loader, config(learning_rate=0.5, ema_decay=0.8)).run()
    with torch.no_grad():
        hidden = [model[0](x) for x, _ in loader]
    mean = torch.stack([values.mean(0) for values in hidden]).mean(0)
    variance = torch.stack([values.var(0) for values in hidden]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1].running_var, variance, rtol=1e-4, atol=1e-5)
