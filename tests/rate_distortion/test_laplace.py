"""The closed forms, compared with numerical quadrature of the Laplace density."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from opq.rate_distortion import laplace

scales = st.floats(1e-3, 1e3)
units = st.floats(0.01, 8.0)


def integrate(function, low, high, scale):
    """Integral of function(|w|) over both signs of a Laplace density, between magnitudes low and high."""
    density = lambda w: function(w) * np.exp(-w / scale) / scale  # noqa: E731
    return quad(density, low, high, epsabs=0.0, epsrel=1e-11, limit=200)[0]


@given(scales, units)
def test_pruned_fraction_is_the_mass_under_the_threshold(scale, t):
    """The pruned fraction is the integral of the density up to the threshold."""
    expected = integrate(lambda w: 1.0, 0.0, t * scale, scale)
    assert laplace.pruned_fraction(t * scale, scale) == pytest.approx(expected, rel=1e-9)


@given(scales, units)
def test_pruning_error_is_the_energy_under_the_threshold(scale, t):
    """The pruning error is the integral of the squared weight up to the threshold."""
    expected = integrate(lambda w: w * w, 0.0, t * scale, scale)
    assert laplace.pruning_error(t * scale, scale) == pytest.approx(expected, rel=1e-7, abs=1e-13 * scale**2)


@given(scales, units, st.floats(0.0, 12.0))
def test_overload_error_is_the_energy_beyond_the_clip(scale, t, excess):
    """A kept magnitude is exponential beyond the threshold; the error of clipping it is the squared excess over the clip."""
    threshold, clip = t * scale, (t + excess) * scale
    kept = np.exp(-t)
    expected = integrate(lambda w: (w - clip) ** 2, clip, clip + 80.0 * scale, scale) / kept
    assert laplace.overload_error(clip, threshold, scale) == pytest.approx(expected, rel=1e-7)


@given(st.floats(1e-3, 1e3), st.floats(0.01, 100.0), st.floats(0.0, 5.0), st.floats(0.1, 10.0))
def test_step_and_clip_minimise_the_lagrangian(lmbda, sensitivity, t, scale):
    """Step and clip minimise error + lambda * bits: no nearby step or clip has a lower value."""
    step = float(laplace.step_at(lmbda, sensitivity))
    granular = lambda s: sensitivity * laplace.granular_error(s) - lmbda * np.log2(s)  # noqa: E731
    assert granular(step) <= min(granular(step * 1.01), granular(step / 1.01)) + 1e-12
    assert laplace.lambda_at(step, sensitivity) == pytest.approx(lmbda)

    threshold = t * scale
    clip = float(laplace.clip_at(lmbda, threshold, scale, sensitivity))
    overload = lambda a: sensitivity * laplace.overload_error(a, threshold, scale) + lmbda * np.log2(a)  # noqa: E731
    if clip > 0.0:
        assert clip >= scale
        assert overload(clip) <= min(overload(clip * 1.01), overload(clip / 1.01)) * (1 + 1e-12) + 1e-12
    else:
        # No further code reduces the cost: a longer range always costs more.
        grid = scale * np.linspace(0.01, 60.0, 2000)
        assert (np.diff(overload(grid)) > 0.0).all()


def cells(t, d, first=None):
    """Edges of the cells of one sign: the first from t, the others d wide, until the density is negligible."""
    first = d if first is None else first
    return t + np.concatenate([[0.0], first + d * np.arange(int(45.0 / d) + 2)])


@given(st.floats(0.05, 6.0), st.floats(0.05, 6.0))
def test_rate_is_the_entropy_of_the_codes(t, d):
    """The rate is the entropy of the cells' probabilities, zero and both signs included."""
    mass = -np.diff(np.exp(-cells(t, d))) / 2.0
    mass = np.concatenate([[1.0 - np.exp(-t)], mass, mass])
    mass = mass[mass > 0.0]
    assert laplace.rate(t, d) == pytest.approx(-(mass @ np.log2(mass)), rel=1e-6)


@given(st.floats(0.05, 6.0), st.floats(0.05, 3.0), st.floats(0.01, 1.0))
def test_rate_with_a_first_cell_of_another_width(t, d, share):
    """The rate with a first cell of another width is the entropy of those cells."""
    first = share * d
    mass = -np.diff(np.exp(-cells(t, d, first))) / 2.0
    mass = np.concatenate([[1.0 - np.exp(-t)], mass, mass])
    mass = mass[mass > 0.0]
    assert laplace.rate(t, d, first) == pytest.approx(-(mass @ np.log2(mass)), rel=1e-6)


@given(st.floats(0.05, 6.0), st.floats(0.05, 6.0))
def test_distortion_is_the_squared_error_of_the_cells(t, d):
    """The distortion is the energy under the threshold plus, in every cell k, the squared distance to k d."""
    edges = cells(t, d)
    expected = integrate(lambda w: w * w, 0.0, t, 1.0)
    for k, (low, high) in enumerate(pairwise(edges), start=1):
        expected += integrate(lambda w, k=k: (w - k * d) ** 2, low, high, 1.0)
        if np.exp(-high) * (1.0 + d) ** 2 < 1e-14:
            break
    assert laplace.distortion(t, d) == pytest.approx(expected, rel=1e-6)


@given(st.floats(1e-3, 8.0), st.floats(1e-3, 8.0))
def test_slopes_are_derivatives(t, d):
    """The analytic slopes agree with central differences, on both sides of the border at which series are used."""
    t, d = np.float64(t), np.float64(d)
    h = 1e-5
    for function, slopes in ((laplace.rate, laplace.rate_slopes), (laplace.distortion, laplace.distortion_slopes)):
        by_t, by_d = slopes(t, d)
        wide_t, wide_d = h * t, h * d
        assert by_t == pytest.approx((function(t + wide_t, d) - function(t - wide_t, d)) / (2 * wide_t), rel=1e-4, abs=1e-5)
        assert by_d == pytest.approx((function(t, d + wide_d) - function(t, d - wide_d)) / (2 * wide_d), rel=1e-4, abs=1e-5)


def test_entropy_of_certainty_is_zero():
    """An event that is certain or impossible carries no information; a fair coin carries one bit."""
    assert laplace.binary_entropy(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, 1.0, 0.0])
