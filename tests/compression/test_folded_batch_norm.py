"""Folded batch norms: the same function in evaluation, in fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thoroughness import examples

import opq
import opq.numpy
from opq.checkpoints import as_state
from opq.checkpoints.folded_state import FoldedBatchNormState, fold_statistics
from opq.errors import ConfigError

CHANNELS = 6
FACTORS = st.floats(0.015625, 4.0, width=32).flatmap(lambda x: st.sampled_from([x, -x])) | st.just(0.0)


def vector(elements, kind=np.float32):
    return arrays.arrays(kind, CHANNELS, elements=elements)


NORMS = st.fixed_dictionaries(
    {
        "running_mean": vector(st.floats(-10, 10, width=32)),
        "running_var": vector(st.floats(2.0**-20, 100, width=32) | st.sampled_from([0.0, 2.0**-140, 1.0])),
    },
    optional={"weight": vector(FACTORS), "bias": vector(st.floats(-3, 3, width=32))},
)
EPS = st.sampled_from([0.0078125, 1e-3, 1e-5])


def evaluate(norm, eps, x):
    """Y = weight (x - mean) / sqrt(var + eps) + bias, in float64, and the sum of its terms' magnitudes."""
    wide = {part: values.astype(np.float64) for part, values in norm.items()}
    factor = wide.get("weight", np.ones(CHANNELS)) / np.sqrt(wide["running_var"] + eps)
    bias = wide.get("bias", np.zeros(CHANNELS))
    size = np.abs(factor * x) + np.abs(factor * wide["running_mean"]) + np.abs(bias)
    return factor * (x - wide["running_mean"]) + bias, size


@pytest.mark.slow
@examples(300)
@given(NORMS, EPS, vector(st.floats(-100, 100, width=32)))
def test_folding_keeps_the_function(norm, eps, x):
    """For every input the output is equal to within four units in the last place of its terms."""
    changed = {**norm, **fold_statistics(norm, eps)}
    before, size = evaluate(norm, eps, x)
    after, _ = evaluate(changed, eps, x)
    assert (np.abs(after - before) <= 4 * 2.0**-24 * size + 2.0**-149).all()
    assert {part: values.dtype for part, values in changed.items()} == {part: values.dtype for part, values in norm.items()}


@given(NORMS, EPS)
def test_mean_and_variance_become_constants(norm, eps):
    """With a bias the mean becomes 0; with a weight the variance becomes one number; a weight of 0 stays 0."""
    changed = fold_statistics(norm, eps)
    if "bias" in norm:
        assert not changed["running_mean"].any()
    else:
        assert changed["running_mean"].tobytes() == norm["running_mean"].tobytes()
    if "weight" in norm:
        assert len(np.unique(changed["running_var"])) == 1
        assert changed["running_var"][0] == np.float32(1.0 - eps)
        assert ((changed["weight"] == 0) == (norm["weight"] == 0)).all()
    else:
        assert changed["running_var"].tobytes() == norm["running_var"].tobytes()


@examples(50)
@given(NORMS, EPS)
def test_folding_is_idempotent(norm, eps):
    """A folded batch norm changes by at most a few units in the last place."""
    once = {**norm, **fold_statistics(norm, eps)}
    twice = {**once, **fold_statistics(once, eps)}
    for part in norm:
        assert np.allclose(once[part], twice[part], rtol=2.0**-22, atol=0.0)


def norm_state(**changes):
    random = np.random.default_rng(0)
    parts = {
        part: random.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {f"bn.{part}": values for part, values in {**parts, **changes}.items() if values is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": None, "bias": None},
        {"running_mean": None},
        {"running_var": None},
        {"running_var": np.array([1, 1, -1, 1, 1, 1], dtype=np.float32)},
        {"running_var": np.array([1, 1, np.nan, 1, 1, 1], dtype=np.float32)},
        {"running_mean": np.array([1, 1, np.inf, 1, 1, 1], dtype=np.float32)},
        {"running_mean": np.ones(5, dtype=np.float32)},
        {"weight": np.ones((CHANNELS, 1), dtype=np.float32)},
        {"weight": np.ones(CHANNELS, dtype=np.int32)},
        {"weight": np.full(CHANNELS, 3e4, dtype=np.float16), "running_var": np.full(CHANNELS, 1e-6, dtype=np.float32)},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_other_vectors_are_unchanged(changes):
    """Nothing changes without weight and bias, with missing or unusual parts, or if a value is or becomes infinite."""
    state = norm_state(**changes)
    found = FoldedBatchNormState(as_state(state), 1e-5)
    assert all(found[name].tobytes() == array.tobytes() for name, array in state.items())


def test_all_other_tensors_are_unchanged(network):
    """Only the four vectors of batch norms change; the file is smaller; the codes of the weights are equal."""
    exact = {"sparsity": 0.5, "bits": 4, "auxiliary": "exact"}
    plain = opq.compress(network, **exact).data
    small = opq.compress(network, **exact, batch_norm="folded", batch_norm_eps=1e-3).data
    assert len(small) < len(plain) - 4 * (16 + 32 + 64)
    before, after = opq.numpy.load(plain), opq.numpy.load(small)
    for name in network:
        if name.endswith(("running_mean", "_bn.bias", "_bn.weight", "running_var")):
            assert before[name].tobytes() != after[name].tobytes()
        else:
            assert before[name].tobytes() == after[name].tobytes()


def test_a_plan_keeps_the_form(network):
    """A plan holds the form of batch norms and its eps, also in JSON, and gives the same file."""
    fields = {"batch_norm": "folded", "batch_norm_eps": 1e-3, "auxiliary": "uint8"}
    compressed = opq.compress(network, ratio=8, **fields)
    again = opq.Plan.from_json(compressed.plan.to_json())
    assert opq.compress(network, again).data == compressed.data


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_norm": "fold"}, "batch_norm must be one of 'auto', 'keep', 'folded', got 'fold'"),
        ({"batch_norm": "folded", "batch_norm_eps": -1e-3}, r"batch_norm_eps must lie in \[0, 1\), got -0.001"),
        ({"batch_norm": "folded", "batch_norm_eps": "small"}, "batch_norm_eps must be a finite number, got 'small'"),
        ({"auxiliary": "uint4"}, "auxiliary must be one of 'auto', 'exact', 'float16', 'uint8', got 'uint4'"),
    ],
)
def test_unknown_settings_are_refused(network, options, problem):
    """An unknown form or storage, or an eps out of range, is a ConfigError."""
    for function in (opq.plan, opq.compress):
        with pytest.raises(ConfigError, match=problem):
            function(network, ratio=8, **options)


def test_the_eps_of_modules_is_used(tmp_path):
    """Each batch norm of a module is folded with its own eps, and the loaded model computes the same function."""
    torch = pytest.importorskip("torch")
    import opq.torch

    torch.manual_seed(0)
    norms = [torch.nn.BatchNorm2d(16, eps=eps) for eps in (1e-5, 0.1)]
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), norms[0], torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), norms[1])
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.01, 0.5)
    model.eval()
    inputs = torch.randn(2, 3, 8, 8)
    options = {"sparsity": 0.1, "bits": 8, "auxiliary": "exact"}
    opq.compress(model, batch_norm="keep", **options).save(tmp_path / "plain.opq")
    opq.compress(model, batch_norm="folded", **options).save(tmp_path / "folded.opq")
    with torch.no_grad():
        opq.torch.load_model(model, tmp_path / "plain.opq")
        expected = model(inputs)
        opq.torch.load_model(model, tmp_path / "folded.opq")
        assert not norms[1].running_mean.any()
        assert torch.allclose(model(inputs), expected, rtol=1e-5, atol=2e-5)


@pytest.fixture
def modules():
    """Makes a torch network of two convolutions with batch norms, changed by a given function."""
    torch = pytest.importorskip("torch")

    class Two(torch.nn.Module):
        def __init__(self, change, eps):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3)
            self.a, self.b = (torch.nn.BatchNorm2d(16, eps=own) for own in eps)
            change(self)
            with torch.no_grad():
                for norm in (self.a, self.b):
                    norm.weight.uniform_(0.5, 1.5)
                    norm.bias.normal_()
                    norm.running_mean.normal_()
                    norm.running_var.uniform_(0.001, 0.05)

        def forward(self, x):
            return self.b(self.second(torch.relu(self.a(self.first(x)))))

    return lambda change=lambda model: None, eps=(1e-3, 1e-3): Two(change, eps).eval()


def share(*parts):
    """Make two batch norms share the memory of these parts."""

    def change(model):
        for part in parts:
            setattr(model.b, part, getattr(model.a, part))

    return change


def under_two_names(model):
    """Give a batch norm a second name, as a list of blocks would."""
    model.norm = model.a


@pytest.mark.parametrize(
    ("change", "eps", "changed"),
    [
        (under_two_names, (1e-3, 1e-3), True),
        (share("weight", "bias", "running_mean", "running_var"), (1e-3, 1e-3), True),
        (share("weight", "bias", "running_mean", "running_var"), (1e-3, 1e-2), False),
        (share("weight", "bias"), (1e-3, 1e-3), False),
        (share("running_var"), (1e-3, 1e-3), False),
    ],
    ids=["two names", "all shared", "other eps", "affine shared", "variance shared"],
)
def test_shared_batch_norms_keep_the_function(modules, change, eps, changed):
    """A vector that batch norms share changes only if it changes equally for all of them; the function stays the same."""
    import torch

    import opq.torch

    model, inputs = modules(change, eps), torch.randn(2, 3, 8, 8)
    options = {"sparsity": 0.1, "bits": 8, "auxiliary": "exact"}
    loaded = [modules(change, eps), modules(change, eps)]
    for network, form in zip(loaded, ("keep", "folded"), strict=True):
        opq.torch.load_model(network, opq.compress(model, batch_norm=form, **options).data)
    with torch.no_grad():
        assert torch.allclose(loaded[1](inputs), loaded[0](inputs), rtol=1e-4, atol=1e-4)
    assert bool(loaded[1].a.running_mean.any()) != changed


def test_a_plan_keeps_the_eps_of_the_modules(modules):
    """Without the modules, also after JSON, the plan gives the same file; if their eps differ it is refused."""
    plan = opq.Plan.from_json(opq.plan(modules(), ratio=3, batch_norm="folded").to_json())
    assert plan.auxiliary.eps == 1e-3
    assert opq.compress(modules().state_dict(), plan).data == opq.compress(modules(), plan).data
    several = modules(eps=(1e-3, 1e-5))
    plan = opq.Plan.from_json(opq.plan(several, ratio=3, batch_norm="folded").to_json())
    opq.compress(several, plan)
    with pytest.raises(opq.PlanError, match="differ in eps"):
        opq.compress(several.state_dict(), plan)


@pytest.mark.parametrize(
    ("training", "eps", "options", "folded"),
    [
        (False, (1e-3, 1e-3), {}, True),
        (True, (1e-3, 1e-3), {}, False),
        (False, (1e-3, 1e-2), {}, False),
        (False, (1e-3, 1e-3), {"batch_norm": "keep"}, False),
        (True, (1e-3, 1e-2), {"batch_norm": "folded"}, True),
    ],
)
def test_batch_norms_of_modules_in_evaluation_are_folded(modules, training, eps, options, folded):
    """By default those of a module in evaluation mode with one eps are; those in training, of several eps and of a state dict
    are kept, because training or loading elsewhere may need the statistics.
    """
    model = modules(eps=eps).train(training)
    assert opq.plan(model, ratio=3, **options).auxiliary.batch_norm == ("folded" if folded else "keep")
    back = opq.numpy.load(opq.compress(model, ratio=3, **options).data)
    assert back["a.running_mean"].any() != folded
    assert opq.plan(model.state_dict(), ratio=3).auxiliary.batch_norm == "keep"


def test_the_default_keeps_the_function(modules):
    """A network whose batch norms are folded and rounded to float16 by default has the outputs of one with exact tensors."""
    import torch

    import opq.torch

    model, inputs = modules(), torch.randn(2, 3, 8, 8)
    exact = {"auxiliary": "exact", "batch_norm": "keep"}
    outputs = []
    for options in ({}, exact):
        loaded = modules()
        opq.torch.load_model(loaded, opq.compress(model, sparsity=0.1, bits=8, **options).data)
        outputs.append(loaded(inputs).detach())
    assert loaded.a.running_mean.any()
    assert 0.0 < float((outputs[0] - outputs[1]).norm() / outputs[1].norm()) < 2.0**-9
