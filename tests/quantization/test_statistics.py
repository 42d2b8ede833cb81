"""Statistics of a weight."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opq.errors import WeightError
from opq.quantization.statistics import SAMPLE, measure
from opq.rate_distortion.scales import measured_rows, steps

shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=8)
weights = hnp.arrays(np.float32, shapes, elements=st.floats(-100.0, 100.0, width=32))


@given(weights)
def test_scales_are_mean_magnitudes(weight):
    """The scale of a layer is the mean magnitude of all weights, that of a channel the one of its slice along axis 0."""
    statistics = measure(weight)
    magnitudes = np.abs(weight.astype(np.float64))
    channels = weight.shape[0] if weight.ndim else 1
    assert statistics.shape == weight.shape
    assert statistics.count == weight.size
    assert statistics.laplace_scale == pytest.approx(magnitudes.mean(), rel=1e-5, abs=1e-30)
    assert statistics.channel_scales == pytest.approx(magnitudes.reshape(channels, -1).mean(axis=1), rel=1e-5, abs=1e-30)


@given(weights)
def test_a_small_weight_is_sampled_completely(weight):
    """The sample holds every magnitude, in ascending order."""
    np.testing.assert_array_equal(measure(weight).magnitudes, np.sort(np.abs(weight).reshape(-1)))


@given(weights.filter(lambda weight: weight.ndim > 1), st.data())
def test_statistics_by_rows_are_those_of_the_scaled_weight(weight, data):
    """`by_rows` gives the statistics of the weight whose rows are divided by their factors, and the scales of the excerpt."""
    found = measure(weight).by_rows()
    if found.rows is None:
        assert not measured_rows(found.channel_scales).any()
        return
    factors = steps(1.0, found.rows, None).reshape(-1, *(1,) * (weight.ndim - 1))
    expected = measure(weight / factors)
    assert found.laplace_scale == pytest.approx(expected.laplace_scale, rel=1e-5, abs=1e-30)
    assert found.channel_scales == pytest.approx(expected.channel_scales, rel=1e-5, abs=1e-30)
    np.testing.assert_array_equal(found.magnitudes, expected.magnitudes)
    np.testing.assert_array_equal(found.sample, np.abs(weight / factors).reshape(-1))
    assert found.magnitudes.dtype == expected.magnitudes.dtype
    assert measure(weight).rows is measure(weight).excerpt_rows is None
    assert found.excerpt_rows == found.rows
    assert len(found.rows) == len(weight)


def test_the_sample_over_row_factors_is_that_of_the_positions():
    """In a large weight each sampled magnitude is divided by the factor of its own row."""
    rows = 2.0 ** (np.arange(500, dtype=np.float32) % 7)
    weight = np.broadcast_to(rows[:, None], (500, 701)).copy()
    statistics = measure(weight)
    found = statistics.by_rows()
    assert len(found.magnitudes) == len(statistics.magnitudes) < weight.size
    assert np.ptp(np.log2(statistics.magnitudes)) == 6.0
    assert len(np.unique(found.magnitudes)) == 1


def test_an_excerpt_has_the_scales_of_its_channels():
    """The scales of an excerpt from the middle are those of these rows."""
    weight = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32) * 2.0 ** (np.arange(300) / 50)[:, None]
    found = measure(weight.astype(np.float32)).by_rows()
    start = int(np.flatnonzero((weight.astype(np.float32) == found.excerpt[0]).all(axis=1))[0])
    assert start > 0
    assert found.excerpt_rows == found.rows[start : start + len(found.excerpt)]


@pytest.mark.parametrize("shape", [(512, 512, 3, 3), (SAMPLE + 1, 1), (7, 300_007)])
def test_a_large_weight_is_sampled_evenly(shape):
    """The sample stays small, and each residue of the position modulo the kernel size is equally frequent."""
    count = int(np.prod(shape))
    position = np.arange(count, dtype=np.float32).reshape(shape)
    sample = measure(position).magnitudes.astype(np.int64)
    assert SAMPLE / 4 <= len(sample) <= SAMPLE
    assert (np.diff(sample) > 0).all()
    assert sample.mean() == pytest.approx(count / 2, rel=0.01)
    if count % 9 == 0 and count < 2**24:  # beyond, float32 does not count exactly
        shares = np.bincount(sample % 9) / len(sample)
        assert shares == pytest.approx(np.full(9, 1 / 9), rel=0.02)


@given(weights, st.sampled_from(["float16", "bfloat16", "float64"]))
def test_any_float_is_measured(weight, name):
    """Every compressible dtype has the statistics of its values."""
    typed = weight.astype(np.dtype(getattr(ml_dtypes, name, None) or name))
    expected = measure(typed.astype(np.float32))
    assert measure(typed).laplace_scale == pytest.approx(expected.laplace_scale, rel=1e-6)
    np.testing.assert_array_equal(measure(typed).magnitudes, expected.magnitudes)


@given(weights)
def test_torch_is_measured_the_same(weight):
    """A torch tensor has the statistics of the array with its values."""
    torch = pytest.importorskip("torch")
    ours, theirs = measure(weight), measure(torch.from_numpy(np.array(weight)).reshape(weight.shape))
    assert theirs.laplace_scale == pytest.approx(ours.laplace_scale, rel=1e-6)
    np.testing.assert_array_equal(theirs.magnitudes, ours.magnitudes)


def test_magnitudes_that_add_up_to_infinity_are_refused():
    """A finite weight whose sum overflows gets its own message, not that of infinite values."""
    with pytest.raises(WeightError, match="the sum of its magnitudes is infinite in its dtype"):
        measure(np.full((4, 100), 3e38, dtype=np.float32))


@pytest.mark.parametrize("value", [1e-60, 1e60])
def test_float64_is_measured_in_float64(value):
    """Values that are zero or infinite as float32 keep their scale."""
    assert measure(np.full((4, 100), value)).laplace_scale == pytest.approx(value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    """NaN and infinity are a WeightError that gives their number and the tensor's name."""
    weight = np.ones((4, 5), dtype=np.float32)
    weight[1, 2] = bad
    with pytest.raises(WeightError, match=r"tensor 'a.b' \(4, 5\): 1 value is NaN or infinite"):
        measure(weight, "a.b")


def test_an_empty_weight_is_refused():
    """A weight without elements is a WeightError."""
    with pytest.raises(WeightError, match="it is empty"):
        measure(np.zeros((0, 3), dtype=np.float32))
