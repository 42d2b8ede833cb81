"""Laws of `opq.evaluate`: what it counts, and that it changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import make
from torch import nn

import opq


@pytest.fixture(autouse=True)
def float32_only(monkeypatch):
    """No autocast: bfloat16 would hide what is compared."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


def cross_entropy(logits, labels):
    """Mean over the rows of -log p(label), in float64."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return float(-np.log((powers / powers.sum(1, keepdims=True))[np.arange(len(labels)), labels]).mean())


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), classes=st.sampled_from([2, 5, 6, 9]), seed=st.integers(0, 99)
)
def test_an_evaluation_is_the_mean_over_inputs(sizes, classes, seed):
    """Loss, top-1, top-5 and agreement are means over all inputs, whatever the sizes of the batches."""
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(sum(sizes), classes)).astype(np.float32), rng.integers(0, classes, sum(sizes))
    ends = np.cumsum(sizes)[:-1]
    loader = [
        (torch.from_numpy(part), torch.from_numpy(right))
        for part, right in zip(np.split(x, ends), np.split(labels, ends), strict=True)
    ]
    dense = nn.Linear(classes, classes)
    found = opq.evaluate(nn.Identity(), loader, dense=dense)
    better = (x > x[np.arange(len(x)), labels][:, None]).sum(1)
    other = dense(torch.from_numpy(x)).argmax(1).numpy()
    assert found.inputs == len(x)
    assert found.loss == pytest.approx(cross_entropy(x.astype(np.float64), labels), rel=1e-5)
    assert found.top1 == pytest.approx(100.0 * (better < 1).mean())
    assert found.top5 == (pytest.approx(100.0 * (better < 5).mean()) if classes > 5 else None)
    assert found.agreement == pytest.approx(100.0 * (x.argmax(1) == other).mean())


def test_an_evaluation_leaves_every_module_in_its_mode():
    """A batch norm in evaluation mode inside a network in training mode stays so."""
    model, inputs = make("convolutions")
    model.train()
    model.norm.eval()
    opq.evaluate(model, [inputs])
    assert model.training
    assert model.head.training
    assert not model.norm.training


def test_agreement_is_with_the_dense_network():
    """Agreement and top-5 are percentages of the inputs; the network stays in training mode."""
    model, inputs = make("dense")
    dense, _ = make("dense", seed=1)
    labels = torch.randint(10, (6,))
    model.train()
    found = opq.evaluate(model, [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])], dense=dense)
    ours, theirs = model(inputs), dense(inputs)
    assert found.inputs == 6
    assert found.agreement == pytest.approx(100.0 * float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    assert found.top5 == pytest.approx(100.0 * sum(int(labels[k] in ours[k].topk(5).indices) for k in range(6)) / 6)
    assert model.training


def test_labels_of_any_integer_dtype_count():
    """16, 32 and 64 bits give the same evaluation."""
    model, inputs = make("dense")
    labels = torch.arange(6)
    expected = opq.evaluate(model, [(inputs, labels)])
    assert opq.evaluate(model, [(inputs, labels.short())]) == opq.evaluate(model, [(inputs, labels.int())]) == expected


def test_inputs_without_labels_have_no_accuracy():
    """Loss, top-1 and top-5 are None without labels, and agreement is None without a dense network."""
    model, inputs = make("dense")
    assert opq.evaluate(model, [inputs]) == opq.Evaluation(inputs=6)


class Constant(nn.Module):
    """Returns the same outputs for all inputs."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        """What it was made with; of a function, its result."""
        return self.outputs(x) if callable(self.outputs) else self.outputs


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4),
    classes=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_agreement_on_tokens_is_the_mean_over_tokens(sizes, classes, seed):
    """For logits (n, tokens, classes) it is the share of tokens of the same class, however many tokens a batch has."""
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(*size, classes, generator=generator) for size in sizes]
    dense = nn.Linear(classes, classes)
    found = opq.evaluate(nn.Identity(), batches, dense=dense)
    same = torch.cat([(batch.argmax(-1) == dense(batch).argmax(-1)).flatten() for batch in batches])
    assert found == opq.Evaluation(sum(n for n, _ in sizes), agreement=pytest.approx(100.0 * float(same.float().mean())))


def test_inputs_are_counted_in_every_form_of_batch():
    """A tensor, a tuple, a mapping, and a mapping with labels beside it have the same number of inputs."""
    x, labels = torch.randn(5, 7), torch.arange(5)

    class Keyword(nn.Module):
        def forward(self, inputs, scale=None):
            return inputs

    mapping = {"scale": None, "inputs": x}
    for batch in (mapping, {**mapping, "labels": labels}, (mapping, labels), [mapping, labels]):
        assert opq.evaluate(Keyword(), [batch]).inputs == 5
    for batch in (x, (x,), (x, labels), [x, labels]):
        assert opq.evaluate(nn.Identity(), [batch]).inputs == 5


@given(
    leading=st.sampled_from([3, 3, 3, 2]),
    rest=st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]),
    labelled=st.booleans(),
)
def test_outputs_that_are_not_logits_are_an_error(leading, rest, dtype, labelled):
    """Only floating point (n, classes) of two classes or more is evaluated, and (n, tokens, classes) without labels."""
    n, shape = 3, (leading, *rest)
    batch = (torch.zeros(n, 2), torch.zeros(n, dtype=torch.int64)) if labelled else torch.zeros(n, 2)
    good = dtype.is_floating_point and len(shape) in (2, 3) and shape[0] == n and shape[-1] >= 2
    outputs = Constant(torch.zeros(shape, dtype=dtype))
    if good and not (labelled and len(shape) == 3):
        assert opq.evaluate(outputs, [batch], dense=outputs).agreement == 100.0
        return
    with pytest.raises(opq.TrainingError, match=r"must return logits|labels must be left out") as caught:
        opq.evaluate(outputs, [batch])
    assert "\n" not in str(caught.value)
    with pytest.raises(opq.TrainingError, match=r"must return logits|labels must be left out"):
        opq.evaluate(Constant(torch.zeros(n, 2)), [batch], dense=outputs)


@pytest.mark.parametrize("outputs", [(torch.zeros(3, 4),), {"out": torch.zeros(3, 4)}, None, 0.5, np.zeros((3, 4))])
def test_outputs_that_are_no_tensor_are_an_error(outputs):
    """Tuples and dicts, as of segmentation networks and of networks in training, and arrays of NumPy are refused by type."""
    with pytest.raises(opq.TrainingError, match=f"must return logits as a tensor.* got {type(outputs).__name__}"):
        opq.evaluate(Constant(outputs), [torch.zeros(3, 2)])


def test_a_dense_network_of_other_classes_is_an_error():
    """Classes can be compared only if both networks have the same."""
    with pytest.raises(opq.TrainingError, match=r"dense must return logits of shape \(3, 4\), .* got \(3, 5\)"):
        opq.evaluate(Constant(torch.zeros(3, 4)), [torch.zeros(3, 2)], dense=Constant(torch.zeros(3, 5)))


@pytest.mark.parametrize("error", [AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ZeroDivisionError])
def test_any_error_of_a_network_is_one_line(error):
    """The line has the shape of the batch, the kind of the error and the first line of its text."""

    def fail(_):
        raise error("it broke\nhere")

    with pytest.raises(opq.TrainingError, match=rf"fails on a batch of \(3, 2\): {error.__name__}: .*it broke") as caught:
        opq.evaluate(Constant(fail), [torch.zeros(3, 2)])
    assert "\n" not in str(caught.value)


class TwoInputs(nn.Module):
    """Needs two inputs."""

    def forward(self, x, y):
        """Their product."""
        return x @ y.T


def test_unsuitable_inputs_are_refused():
    """Labels that are not classes, no inputs, and inputs that the network does not accept each raise an error."""
    model, inputs = make("dense")
    with pytest.raises(opq.TrainingError, match=r"labels go from 3 to 10, .* 10 classes, 0 to 9"):
        opq.evaluate(model, [(inputs[:2], torch.tensor([3, 10]))])
    for labels in (torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), [1, 2]):
        with pytest.raises(opq.TrainingError, match=r"labels must be a tensor of 2 integers, one for each input"):
            opq.evaluate(model, [(inputs[:2], labels)])
    with pytest.raises(opq.TrainingError, match="no inputs"):
        opq.evaluate(model, [])
    with pytest.raises(opq.TrainingError, match="fails on a batch"):
        opq.evaluate(TwoInputs(), [torch.randn(4, 12)])
