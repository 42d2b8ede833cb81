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
    with pytest.raises(opq.TrainingError, match="no inputs"):
        opq.evaluate(model, [])
    with pytest.raises(opq.TrainingError, match="fails on a batch"):
        opq.evaluate(TwoInputs(), [torch.randn(4, 12)])
