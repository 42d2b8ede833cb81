"""How tensors that are not weights are stored: which of them may lose precision, and how much."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from float16_errors import within_float16
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thoroughness import examples

import opq
import opq.numpy
from opq.batch_norm import PARTS
from opq.checkpoints import as_state
from opq.checkpoints.folded_state import FoldedBatchNormState
from opq.checkpoints.state import TensorState
from opq.compression.auxiliary_storage import storages
from opq.rate_distortion.plan import AuxiliaryPlan

COARSENESS = {"exact": 0, "float16": 1, "linear8": 2, "relative8": 2, "uint8": 2}
LIMITS = {"float16": 2.0**-9, "uint8": 2.0**-6}
WEIGHT = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
CHANNELS = st.shared(st.integers(2, 24), key="channels")
LOSSY = st.sampled_from(["float16", "uint8"])


def vector(elements):
    return CHANNELS.flatmap(lambda size: arrays.arrays(np.float32, size, elements=elements))


def numbers(low, high):
    return st.floats(low, high, width=32)


NORMS = st.fixed_dictionaries(
    {
        "running_mean": vector(numbers(-2.0, 2.0) | numbers(-1024.0, 1024.0)),
        "running_var": vector(numbers(2.0**-13, 4.0) | st.just(2.0**-13)),
    },
    optional={"weight": vector(numbers(-2.0, 2.0)), "bias": vector(numbers(-2.0, 2.0) | numbers(-(2.0**-12), 2.0**-12))},
)


def save(vectors, auxiliary="auto", **options):
    """The tensors of a file of these and a weight, and their storages."""
    data = opq.compress({"w": WEIGHT, **vectors}, sparsity=0.5, bits=4, auxiliary=auxiliary, **options).data
    stored = {tensor.name: tensor.storage for tensor in opq.inspect(data).tensors if tensor.name in vectors}
    return {name: array for name, array in opq.numpy.load(data).items() if name in vectors}, stored


def outputs(norm, like, eps):
    """(2, channels) float64: what a batch norm makes of inputs one deviation below and above the mean in `like`."""
    wide = {part: values.astype(np.float64) for part, values in norm.items()}
    mean, variance = (like[f"running_{part}"].astype(np.float64) for part in ("mean", "var"))
    inputs = mean + np.outer([-1.0, 1.0], np.sqrt(variance))
    normalized = (inputs - wide["running_mean"]) / np.sqrt(wide["running_var"] + eps)
    return wide.get("weight", 1.0) * normalized + wide.get("bias", 0.0)


def relative_change(before, after, like, eps):
    """(channels,): the root mean square change of outputs, over the mean of the channel's own output and the average one."""

    def size(values):
        return np.sqrt(np.square(values).mean(axis=0))

    output = size(outputs(before, like, eps))
    change = size(outputs(after, like, eps) - outputs(before, like, eps))
    return np.where(change == 0.0, 0.0, change / np.maximum(0.5 * (output + output.mean()), 2.0**-1000))


def constant(value):
    return np.full(24, value, dtype=np.float32)


SPREAD = np.random.default_rng(2).normal(size=64).astype(np.float32)
FAR = {"running_mean": np.linspace(1000.0, 1001.0, 24, dtype=np.float32), "running_var": constant(1e-4)}


@examples(150)
@given(NORMS, LOSSY)
@example(FAR, "float16")
@example(FAR, "uint8")
@example({**FAR, "weight": np.linspace(0.5, 1.5, 24, dtype=np.float32), "bias": constant(0.25)}, "float16")
@example({"running_mean": 0 * SPREAD, "running_var": 0 * SPREAD + 1, "weight": SPREAD}, "uint8")
def test_a_batch_norm_keeps_its_function(norm, requested):
    """Outputs of each channel change by at most 2^-9 of their size with float16, and 2^-6 with uint8, however large means are
    beside deviations.
    """
    found, _ = save({f"bn.{part}": values for part, values in norm.items()}, requested)
    after = {part: found[f"bn.{part}"] for part in norm}
    assert (relative_change(norm, after, norm, 1e-5) <= LIMITS[requested] * (1.0 + 1e-6)).all()


@pytest.mark.parametrize("requested", ["float16", "uint8"])
@pytest.mark.parametrize("part", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, "signalling"])
def test_a_batch_norm_with_values_that_are_not_finite_is_exact(bad, part, requested):
    """If a value of a batch norm is NaN or infinite, nothing is known of its outputs, so all of its vectors are exact."""
    state = {f"bn.{each}": np.linspace(0.5, 1.5, 24, dtype=np.float32) for each in PARTS}
    if bad == "signalling":
        state[f"bn.{part}"].view(np.uint32)[3] = 0x7F800001
    else:
        state[f"bn.{part}"][3] = bad
    found, stored = save(state, requested)
    assert set(stored.values()) == {"exact"}
    assert all(found[name].tobytes() == values.tobytes() for name, values in state.items())


@examples(100)
@given(NORMS, LOSSY)
def test_a_folded_batch_norm_keeps_its_function(norm, requested):
    """After folding, rounding changes the outputs by no more than that either."""
    state = {f"bn.{part}": values for part, values in norm.items()}
    folded = FoldedBatchNormState(as_state(state), 1e-5)
    found, _ = save(state, requested, batch_norm="folded")
    before, after = ({part: source[f"bn.{part}"] for part in norm} for source in (folded, found))
    assert (relative_change(before, after, before, 1e-5) <= LIMITS[requested] * (1.0 + 1e-6)).all()


def test_a_module_is_judged_by_its_own_eps():
    """Where the eps is far above the variance an error of the mean hardly changes outputs; if it is tiny the mean is exact.
    Without a module the eps is that of the settings.
    """
    ramp = np.linspace(3.0, 4.0, 24, dtype=np.float32)
    norm = {"running_mean": ramp, "running_var": ramp * np.float32(2.0**-14), "weight": ramp / 4, "bias": constant(0.25)}
    state = {f"bn.{part}": values for part, values in norm.items()}
    plan = AuxiliaryPlan("uint8")
    kept = {eps: storages(TensorState(state, epsilons={"bn": eps}), state, plan)["bn.running_mean"] for eps in (1e-12, 1.0)}
    assert kept == {1e-12: "exact", 1.0: "uint8"}
    given = {
        eps: storages(TensorState(state), state, AuxiliaryPlan("uint8", eps=eps))["bn.running_mean"] for eps in (1e-12, 0.9)
    }
    assert given == {1e-12: "exact", 0.9: "uint8"}


def test_usual_batch_norms_are_coarse():
    """Statistics and affine vectors as networks have them are float16 by default, and on grids with uint8. Where the mean is
    far above the deviation, it and the bias are exact, and the other two float16.
    """
    rng = np.random.default_rng(0)
    usual = {
        "bn.weight": rng.uniform(0.5, 1.5, 64),
        "bn.bias": rng.normal(size=64) * 0.3,
        "bn.running_mean": rng.normal(size=64) * 0.3,
        "bn.running_var": rng.uniform(0.5, 2.0, 64),
    }
    usual = {name: values.astype(np.float32) for name, values in usual.items()}
    assert set(save(usual)[1].values()) == {"float16"}
    assert set(save(usual, "uint8")[1].values()) == {"linear8", "relative8"}
    far = {**usual, "bn.running_mean": np.float32(1000.0) + 100 * usual["bn.running_mean"]}
    for requested in ("float16", "uint8"):
        stored = save(far, requested)[1]
        assert stored.pop("bn.running_mean") == stored.pop("bn.bias") == "exact"
        assert set(stored.values()) == {"float16"}
    alone = {"bn.running_mean": far["bn.running_mean"], "bn.running_var": far["bn.running_var"][:-1]}
    assert set(save(alone)[1].values()) == {"float16"}  # those are no batch norm, and each is judged alone


@examples(100)
@given(vector(st.floats(width=32) | numbers(-2.0, 2.0) | numbers(1.0, 1.25)), LOSSY, st.sampled_from([np.float32, np.float64]))
@example(SPREAD, "uint8", np.float32)
@example(np.append(np.ones(20, np.float32), np.float32(np.inf)), "uint8", np.float32)
@example(np.append(np.ones(20, np.float32), np.float32(np.nan)), "uint8", np.float64)
@example(np.full(20, 0x7F800001, np.uint32).view(np.float32), "uint8", np.float32)
def test_other_vectors_have_the_documented_error(values, requested, kind):
    """With float16 a vector of no batch norm has the error of float16, or, with negative values, 2^-16 of its root mean square.
    With uint8 it may have 2^-8 of its median magnitude, or 2^-9 of each value if none is negative. NaN and infinity stay.
    """
    values = values.astype(kind)
    found, stored = save({"fc.bias": values}, requested)
    if not np.isfinite(values).all():
        assert stored["fc.bias"] == "exact"
    if stored["fc.bias"] == "exact":
        assert found["fc.bias"].tobytes() == values.tobytes()
        return
    wide = values.astype(np.float64)
    allowed = 2.0**-11 * np.abs(wide)
    if (wide < 0.0).any():
        allowed = np.maximum(allowed, 2.0**-16 * np.sqrt(np.square(wide).mean()))
    if requested == "uint8":
        grid = 2.0**-8 * np.median(np.abs(wide[wide != 0])) if (wide < 0.0).any() else 2.0**-9 * np.abs(wide)
        allowed = np.maximum(allowed, grid)
    assert (np.abs(found["fc.bias"].astype(np.float64) - wide) <= allowed).all()


NAMES = st.sampled_from(
    ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.bias", "norm.gamma", "table", "mel.window", "v.weight_g"]
)
VALUES = vector(numbers(-2.0, 2.0) | numbers(1.0, 1.25) | st.sampled_from([2.0**-30, 1e6]))


@examples(100)
@given(st.dictionaries(NAMES, VALUES, max_size=9), st.sampled_from(["auto", "exact", "float16", "uint8"]))
def test_no_storage_is_coarser_than_requested(vectors, requested):
    """With "exact" every bit stays, and with float16 nothing is on a grid of 8 bits; "auto" is float16."""
    found, stored = save(vectors, requested)
    limit = COARSENESS[requested.replace("auto", "float16")]
    assert all(COARSENESS[storage] <= limit for storage in stored.values())
    if requested == "exact":
        assert all(found[name].tobytes() == values.tobytes() for name, values in vectors.items())
    if requested == "auto":
        assert stored == save(vectors, "float16")[1]


def random(*shape, kind=np.float32):
    return np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(kind)


@pytest.mark.parametrize("requested", ["auto", "float16", "uint8"])
@pytest.mark.parametrize(
    ("exact", "others"),
    [
        (["rotary.inv_freq", "mel.window", "position_table", "w_scales_max"], {}),
        (["a.weight_scale", "a.scales", "a.bias"], {"a.qweight": np.ones((16, 16), np.int8)}),
        (["a.weight_scale"], {"a.weight": np.ones((16, 16), ml_dtypes.float8_e4m3fn)}),
    ],
)
def test_buffers_and_scales_of_codes_are_exact(requested, exact, others):
    """In a state dict a tensor whose name is not one of a parameter's, and one that belongs to an integer or float8 weight, is
    bit for bit the same.
    """
    state = {name: random(64) for name in exact}
    stored = save({**state, **others}, requested)[1]
    assert {stored[name] for name in exact} == {"exact"}
    found = save({**state, **others, "b.bias": random(64)}, requested)[0]
    assert all(found[name].tobytes() == values.tobytes() for name, values in state.items())
    assert found["b.bias"].tobytes() != random(64).tobytes()


@pytest.mark.parametrize(
    ("shape", "exact"), [((64, 64), True), ((8, 8), True), ((70_000, 1), True), ((70_000,), False), ((1, 64, 1, 1), False)]
)
def test_excluded_weights_are_exact(shape, exact):
    """What could be a weight is bit for bit the same if it is left out, also an embedding of width 1; a vector is not."""
    state = {"a.weight": random(*shape)}
    stored = save(state, exclude=["a.weight"])[1]
    assert stored == {"a.weight": "exact" if exact else "float16"}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name",
    [
        "lstm.bias_ih_l0_reverse", "lstm.bias_hh_l1", "gru.bias_ih_l0", "cell.bias_ih", "cell.bias_hh", "bn.running_mean",
        "bn.running_var", "norm.weight", "bias", "norm.gamma", "norm.beta", "conv.weight_g", "p.weight.original0",
        "attention.in_proj_bias", "block.ls1.gamma1",
    ],
)  # fmt: skip
def test_names_of_parameters_are_known(name, kind):
    """In a bare state dict vectors with the names of parameters and batch-norm statistics are float16, of either dtype."""
    found, stored = save({name: random(64, kind=kind), "other.weight": random(9, 9, kind=kind)}, exclude=["other.weight"])
    assert stored[name] == "float16"
    assert found[name].dtype == kind
    assert within_float16(found[name], random(64, kind=kind))


def test_integers_and_half_precision_are_exact():
    """Vectors of other dtypes than float32 and float64, and single values, are bit for bit the same."""
    kinds = (np.float16, ml_dtypes.bfloat16, np.int32, np.complex64)
    state = {f"{np.dtype(kind).name}.bias": random(64, kind=kind) for kind in kinds} | {"one.weight": random(1)}
    for requested in ("float16", "uint8"):
        found, stored = save(state, requested)
        assert set(stored.values()) == {"exact"}
        assert all(found[name].tobytes() == values.tobytes() for name, values in state.items())


def module_with_buffers():
    """A torch network with a buffer named like a parameter, and a parameter named like none."""
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(40, 40)
            self.shift = torch.nn.Parameter(torch.from_numpy(random(40)))
            self.register_buffer("scale", torch.from_numpy(random(40)))

        def forward(self, x):
            return self.fc(x) * self.scale + self.shift

    torch.manual_seed(0)
    return Network()


def as_is(model, inputs):
    return opq.compress(model, ratio=3)


def prepared(model, inputs):
    return opq.prepare(model, ratio=3).export()


def calibrated(model, inputs):
    return opq.calibrate(model, inputs).compress(ratio=3)


@pytest.mark.parametrize("way", [as_is, prepared, calibrated])
def test_a_module_tells_its_parameters_from_its_buffers(way):
    """Whatever their names, buffers are exact and parameters float16: compressed, prepared for training, and calibrated."""
    torch = pytest.importorskip("torch")
    data = way(module_with_buffers(), torch.randn(8, 40)).data
    stored = {tensor.name: tensor.storage for tensor in opq.inspect(data).tensors}
    assert (stored["scale"], stored["shift"], stored["fc.bias"]) == ("exact", "float16", "float16")
    assert np.asarray(opq.numpy.load(data)["scale"]).tobytes() == random(40).tobytes()
