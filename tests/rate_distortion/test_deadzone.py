"""The universal rate-distortion curve."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

from opq.rate_distortion import deadzone, laplace

lambdas = st.floats(-12.0, 3.0).map(lambda x: float(np.exp(x)))


@pytest.mark.slow
@given(lambdas)
def test_points_minimise_the_lagrangian(lmbda):
    """No threshold and step that a search finds, starting from the curve, have a lower distortion + lambda * rate."""
    t, d = map(float, deadzone.thresholds_and_steps(lmbda))
    lagrangian = lambda x: float(laplace.distortion(*np.exp(x)) + lmbda * laplace.rate(*np.exp(x)))  # noqa: E731
    found = minimize(lagrangian, np.log([t * 1.05, d / 1.05]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15})
    assert lagrangian(np.log([t, d])) <= found.fun * (1.0 + 1e-8)


def test_points_minimise_the_lagrangian_over_a_grid():
    """The minimum is global: no point of a coarse grid over all thresholds and steps is better."""
    t, d = np.meshgrid(np.geomspace(1e-3, 30.0, 300), np.geomspace(1e-3, 40.0, 300))
    rates, distortions = laplace.rate(t, d), laplace.distortion(t, d)
    for lmbda in np.geomspace(1e-4, 20.0, 40):
        best = deadzone.thresholds_and_steps(lmbda)
        assert laplace.distortion(*best) + lmbda * laplace.rate(*best) <= (distortions + lmbda * rates).min()


@given(lambdas, lambdas)
def test_the_rate_falls_as_lambda_rises(one, other):
    """As lambda rises, the rate falls, and distortion, threshold and step rise."""
    low, high = sorted((one, other))
    assume(high >= low * (1.0 + 1e-3))
    (t0, d0), (t1, d1) = deadzone.thresholds_and_steps(low), deadzone.thresholds_and_steps(high)
    assert t0 < t1
    assert d0 < d1
    assert laplace.rate(t0, d0) > laplace.rate(t1, d1)
    assert laplace.distortion(t0, d0) < laplace.distortion(t1, d1)


@given(lambdas)
def test_threshold_and_step_determine_each_other(lmbda):
    """Step from threshold and threshold from step lie on the same curve as both from lambda."""
    t, d = map(float, deadzone.thresholds_and_steps(lmbda))
    assert deadzone.threshold_for_step(d) == pytest.approx(t, rel=1e-5)
    assert deadzone.step_for_threshold(t) == pytest.approx(d, rel=1e-5)


def test_lambdas_beyond_the_curve_give_its_end_points():
    """A lambda of zero or infinity gives the finest or the coarsest point, not an error."""
    t, d = deadzone.thresholds_and_steps([0.0, np.inf])
    assert d == pytest.approx([deadzone.FINEST_STEP, deadzone.COARSEST_STEP])
    assert (t > 0.0).all()


@pytest.mark.parametrize(
    ("lmbda", "t", "d", "share", "rate", "distortion"),
    [
        (0.01, 0.154, 0.294, 0.524, 4.204, 0.0072),
        (0.1, 0.532, 0.927, 0.574, 2.507, 0.0741),
        (0.3, 1.006, 1.610, 0.625, 1.643, 0.2325),
        (0.8, 1.881, 2.694, 0.698, 0.827, 0.6488),
        (1.2, 2.498, 3.387, 0.738, 0.511, 0.9594),
    ],
)
def test_values_agree_with_the_table_of_the_documentation(lmbda, t, d, share, rate, distortion):
    """The curve agrees with the table of docs/method.md to 1e-3."""
    found_t, found_d = deadzone.thresholds_and_steps(lmbda)
    assert (found_t, found_d, found_t / found_d) == pytest.approx((t, d, share), abs=1e-3)
    assert laplace.rate(found_t, found_d) == pytest.approx(rate, abs=1e-3)
    assert laplace.distortion(found_t, found_d) == pytest.approx(distortion, abs=1e-4)


def test_no_codebook_with_centroids_is_much_better():
    """Reconstructing every cell at its centroid instead of at k d gains at most 0.02% of the Lagrangian."""
    for lmbda in np.geomspace(0.003, 1.2, 25):
        t, d = map(float, deadzone.thresholds_and_steps(lmbda))
        centroids = laplace.pruning_error(t, 1.0) + np.exp(-t) * (1.0 - (d / 2.0 / np.sinh(d / 2.0)) ** 2)
        bits = lmbda * laplace.rate(t, d)
        assert laplace.distortion(t, d) + bits <= (centroids + bits) * 1.0002
