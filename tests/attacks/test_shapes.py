"""Round trips of everything that a state dict may hold."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import bit_patterns
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thoroughness import examples

import opq
import opq.numpy
from opq import dtypes
from opq.functional import fake_quantize

SHAPES = arrays.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4)
ANCHOR = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
"""A weight, since a state dict without weights is refused."""


@st.composite
def tensors(draw):
    """An array of any dtype, shape and memory order."""
    array = draw(st.sampled_from(sorted(dtypes.NUMPY)).flatmap(lambda name: bit_patterns(dtypes.NUMPY[name], SHAPES)))
    way = draw(st.sampled_from(["as it is", "transposed", "reversed", "strided", "broadcast", "fortran"]))
    if way == "transposed":
        return array.T
    if way == "reversed":
        return array[::-1] if array.ndim else array
    if way == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    if way == "broadcast":
        return np.broadcast_to(array, (2, *array.shape))
    return np.asfortranarray(array) if way == "fortran" else array


def is_usual(array: np.ndarray) -> bool:
    """Whether all values are finite, and zero or within the range of float32."""
    magnitudes = np.abs(array.astype(np.float64))
    return bool((np.isfinite(magnitudes) & ((magnitudes == 0) | ((magnitudes > 1e-45) & (magnitudes < 1e38)))).all())


@examples(60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc.", max_size=5), tensors(), max_size=4))
def test_every_tensor_comes_back(state):
    """Names, shapes and dtypes are kept; auxiliary tensors come back bit for bit, weights as the values of fake_quantize."""
    state = {**state, "anchor": ANCHOR}
    with np.errstate(invalid="ignore"):
        broken = [name for name, array in state.items() if array.dtype.name in dtypes.COMPRESSIBLE and not is_usual(array)]
    broken = [name for name in broken if state[name].ndim > 1]
    try:
        compressed = opq.compress(state, sparsity=0.25, bits=4, exclude=broken, auxiliary="exact")
    except opq.WeightError:  # values beyond what a float32 step can quantize
        return
    for name, found in opq.numpy.load(compressed.data).items():
        array = np.ascontiguousarray(state[name]).reshape(state[name].shape)
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        expected = fake_quantize(array, compressed.plan.layers[name]) if name in compressed.plan.layers else array
        assert found.tobytes() == expected.tobytes()


def test_at_most_thirty_two_dimensions():
    """A tensor of 32 dimensions comes back; one of 33 is a WeightError with its name."""
    array32 = np.arange(8, dtype=np.int16).reshape((1,) * 29 + (2, 2, 2))
    assert (opq.numpy.load(opq.compress({"x": array32, "w": ANCHOR}, sparsity=0, bits=4).data)["x"] == array32).all()
    with pytest.raises(opq.WeightError, match=r"'x'.*at most 32 dimensions"):
        opq.compress({"x": array32[None], "w": ANCHOR}, sparsity=0, bits=4)


def test_shared_storage_comes_back_for_each_tensor():
    """Tied weights are stored once; views of one storage and expanded tensors come back."""
    torch = pytest.importorskip("torch")
    import opq.torch

    base = torch.randn(40, 30)
    state = {"a": base, "b": base, "half": base[:20], "row": base[0], "grown": torch.ones(1, 5).expand(4, 5), "turned": base.T}
    data = opq.compress(state, ratio=6).data
    with opq.OpqFile(data) as file:
        assert len({entry.section for entry in file.entries if entry.name in "ab"}) == 1
    for name, tensor in opq.torch.load(data).items():
        assert tensor.shape == state[name].shape
        assert name != "row" or torch.equal(tensor, state[name])
