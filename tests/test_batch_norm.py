"""Batch-norm arithmetic: other statistics and absorbed factors keep the function, for NumPy and torch vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opq.batch_norm import BatchNormVectors, is_folded, prefixes

CHANNELS = 5


def vector(low, high):
    return arrays.arrays(np.float64, CHANNELS, elements=st.floats(low, high))


norms = st.builds(
    BatchNormVectors,
    weight=vector(-4.0, 4.0),
    bias=vector(-3.0, 3.0),
    mean=vector(-10.0, 10.0),
    variance=vector(2.0**-10, 100.0),
    eps=st.sampled_from([0.0, 1e-5, 1e-3, 0.5]),
)


def evaluate(norm, x):
    """The output of a batch norm in evaluation."""
    return norm.weight * (x - norm.mean) / (norm.variance + norm.eps) ** 0.5 + norm.bias


def size(norm, x):
    """The sum of the magnitudes of the terms of the output."""
    return np.abs(norm.slope * x) + np.abs(norm.slope * norm.mean) + np.abs(norm.bias)


def as_torch(norm):
    """The batch norm with torch tensors for its vectors."""
    torch = pytest.importorskip("torch")
    return BatchNormVectors(*map(torch.from_numpy, (norm.weight, norm.bias, norm.mean, norm.variance)), norm.eps)


def same(one, other):
    """Whether two batch norms have equal vectors up to float64 rounding; of NumPy and torch."""
    parts = ("weight", "bias", "mean", "variance")
    return all(np.allclose(getattr(one, part), getattr(other, part).numpy(), rtol=1e-12, atol=1e-12) for part in parts)


@given(norms, vector(-10.0, 10.0), vector(2.0**-10, 100.0), vector(-100.0, 100.0))
def test_other_statistics_keep_the_function(norm, mean, variance, x):
    """A batch norm with other statistics has these, the same eps and the same function."""
    other = norm.with_statistics(mean, variance)
    assert other.mean is mean
    assert other.variance is variance
    assert other.eps == norm.eps
    tolerance = 1e-12 * (size(norm, x) + size(other, x))
    assert (np.abs(evaluate(other, x) - evaluate(norm, x)) <= tolerance + 1e-300).all()


@given(norms)
def test_own_statistics_change_nothing(norm):
    """Its own statistics leave a batch norm equal."""
    other = norm.with_statistics(norm.mean, norm.variance)
    np.testing.assert_allclose(other.weight, norm.weight, rtol=1e-15, atol=1e-300)
    np.testing.assert_array_equal(other.bias, norm.bias)


@pytest.mark.slow
@given(norms, vector(-10.0, 10.0), vector(2.0**-10, 100.0))
def test_torch_gives_the_same_vectors(norm, mean, variance):
    """Torch tensors give the vectors that NumPy arrays give."""
    torch = pytest.importorskip("torch")
    mean_t, variance_t = map(torch.from_numpy, (mean, variance))
    assert same(norm.with_statistics(mean, variance), as_torch(norm).with_statistics(mean_t, variance_t))
    assert np.allclose(norm.slope, as_torch(norm).slope.numpy(), rtol=1e-12)


@pytest.mark.slow
@given(norms, arrays.arrays(np.float64, (3, CHANNELS, 2, 2), elements=st.floats(-10.0, 10.0)))
def test_the_function_is_that_of_torch(norm, x):
    """`slope`, mean and bias describe the evaluation of torch's batch norm, also with other statistics."""
    torch = pytest.importorskip("torch")
    wide = as_torch(norm)
    if norm.eps == 0.0:
        return  # torch takes positive eps only
    folded = wide.with_statistics(torch.zeros(CHANNELS, dtype=torch.float64), torch.ones(CHANNELS, dtype=torch.float64))
    one, other = (
        torch.nn.functional.batch_norm(torch.from_numpy(x), v.mean, v.variance, v.weight, v.bias, eps=v.eps)
        for v in (wide, folded)
    )
    scale = np.abs(norm.slope).max() * (np.abs(x).max() + np.abs(norm.mean).max()) + np.abs(norm.bias).max()
    assert np.abs(one.numpy() - other.numpy()).max() <= 1e-11 * scale + 1e-300


def test_unfolded_batch_norms_are_unchanged():
    """Folded means: mean 0, and one variance for all channels."""
    zeros, ones = np.zeros(3), np.ones(3)
    assert is_folded(zeros, ones)
    assert not is_folded(np.array([0.0, 0.0, 0.1]), ones)
    assert not is_folded(zeros, np.array([1.0, 1.0, 1.1]))
    assert type(is_folded(zeros, ones)) is bool


def test_prefixes_are_found_by_the_running_variance():
    """Each name that ends in running_var gives a prefix."""
    names = ["bn1.running_var", "bn1.weight", "a.b.running_var", "running_var", "not_running_var", "running_var.x"]
    assert prefixes(names) == ["bn1.", "a.b.", ""]
