"""Weights that torch.nn.utils.prune, weight_norm and parametrizations keep in several tensors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from float16_errors import within_float16
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.checkpoints import as_state
from opq.checkpoints.reparametrized_state import ReparametrizedState, gain_of
from opq.compression.tensor_roles import tensor_roles
from opq.quantization.nonzero import keep_nonzero

torch = pytest.importorskip("torch")
nn = torch.nn
prune = pytest.importorskip("torch.nn.utils.prune")
save_load = pytest.importorskip("opq.torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
KINDS = {"old": nn.utils.weight_norm, "new": nn.utils.parametrizations.weight_norm}


def network(kind: str, dim: int | None = 0, span: float = 30.0):
    """A weight-normalized convolution whose directions have lengths from 1 to `span`, and the name of its direction."""
    torch.manual_seed(0)
    layer = KINDS[kind](nn.Conv1d(16, 12, 5), dim=dim)
    name = "weight_v" if kind == "old" else "parametrizations.weight.original1"
    with torch.no_grad():
        layer.state_dict()[name].mul_(torch.logspace(0, np.log10(span), 12).view(-1, 1, 1))
    return layer, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_directions_become_the_weight(kind, dim):
    """A direction becomes the weight, up to the sign of its gain, and the network with it computes the same."""
    layer, name = network(kind, dim)
    with torch.no_grad():
        layer.state_dict()[gain_of(as_state(layer), name)].mul_(-1)
    state = ReparametrizedState(as_state(layer), [name])
    x = torch.randn(2, 16, 9)
    expected = layer(x)
    np.testing.assert_allclose(-state[name], layer.weight.detach().numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(state.rows(name, 3, 7), state[name][3:7])
    changed = copy.deepcopy(layer.state_dict()) | {name: torch.from_numpy(state[name])}
    layer.load_state_dict(changed)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"ratio": 5}, {"size": 700}, {"sparsity": 0.95, "bits": 3}, {"size": 760, "scales": "rows"}]
)
def test_no_direction_vanishes(kind, options):
    """A compressed network with weight_norm keeps its gains up to the error of float16, positive ones positive. It has no
    direction that is all zero, also where a gain is so small that all of its row is pruned, and gives finite outputs.
    """
    layer, name = network(kind)
    back, _ = network(kind)
    gain = gain_of(as_state(layer), name)
    with torch.no_grad():
        layer.state_dict()[gain][0] *= 1e-3
    back.load_state_dict(save_load.load(opq.compress(layer, **options).data))
    found = back.state_dict()[name]
    assert found.flatten(1).any(1).all()
    assert back(torch.randn(2, 16, 9)).isfinite().all()
    assert within_float16(back.state_dict()[gain], layer.state_dict()[gain])
    assert (back.state_dict()[gain] > 0).all()


def test_a_prepared_direction_does_not_vanish():
    """A network with weight_norm that is prepared for training gives finite outputs."""
    layer, _ = network("old")
    opq.prepare(layer, sparsity=0.95, bits=3)
    assert layer(torch.randn(2, 16, 9)).isfinite().all()


@given(st.integers(0, 2**16), st.sampled_from([(0,), (1,), (2,), (1, 2), (0, 2), (0, 1, 2)]))
def test_every_slice_keeps_a_code(seed, axes):
    """Slices of zeros get one code, 1 or -1, where their magnitude is largest; other slices are unchanged."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(3, 4, 5)).astype(np.float32)
    codes = np.where(rng.random((3, 4, 5)) < 0.1, 2, 0).astype(np.int32)
    found, empty = keep_nonzero(codes, weight, axes), ~codes.any(axis=axes, keepdims=True)
    largest = np.abs(weight) == np.abs(weight).max(axis=axes, keepdims=True)
    np.testing.assert_array_equal(found, np.where(empty & largest, np.sign(weight), codes))


def test_pruned_weights_stay_pruned():
    """A weight that torch.nn.utils.prune pruned is zero where it was pruned, and its mask is exact."""
    torch.manual_seed(0)
    layer = prune.random_unstructured(nn.Linear(32, 32), "weight", 0.5)
    found = save_load.load(opq.compress(layer, ratio=3).data)
    assert torch.equal(found["weight_mask"], layer.weight_mask)
    assert not found["weight_orig"][layer.weight_mask == 0].any()
    assert found["weight_orig"][layer.weight_mask == 1].any()


def test_parametrizations_that_are_not_known_stay_exact():
    """The weight of spectral_norm is a weight; that of orthogonal, and of a parametrization of one's own, is exact."""
    make = nn.utils.parametrizations
    spectral = make.spectral_norm(nn.Linear(16, 16))
    assert tensor_roles(as_state(spectral)).weights == ("parametrizations.weight.original",)
    assert tensor_roles(as_state(nn.utils.spectral_norm(nn.Linear(16, 16)))).weights == ("weight_orig",)
    own = nn.Linear(16, 16)
    nn.utils.parametrize.register_parametrization(own, "weight", nn.Tanh())
    for layer in (make.orthogonal(nn.Linear(16, 16)), own):
        reasons = tensor_roles(as_state(layer)).exact
        assert reasons["parametrizations.weight.original"] == "part of a parametrization that opq does not know"


def test_buffers_are_no_weights():
    """A buffer of a module is no weight; the same tensor in a state dict is one, since nothing tells it apart."""
    layer = nn.Linear(16, 16)
    layer.register_buffer("table", torch.randn(16, 16))
    assert tensor_roles(as_state(layer)).weights == ("weight",)
    assert tensor_roles(as_state(layer.state_dict())).weights == ("table", "weight")
    assert save_load.load(opq.compress(layer, ratio=1.5).data)["table"].equal(layer.table)
