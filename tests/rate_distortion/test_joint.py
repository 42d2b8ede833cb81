"""Joint mode: one Lagrange multiplier for all layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from opq.config import LayerConfig
from opq.rate_distortion import deadzone, joint, laplace
from opq.rate_distortion.layers import Layer, LayerStatistics


def layer(name, count, scale, **config):
    statistics = LayerStatistics((1, count), scale, np.array([scale]), 0, np.zeros(1), np.zeros(1), 1, np.zeros(0))
    return Layer(name, statistics, LayerConfig(**config))


networks = st.lists(
    st.tuples(st.integers(10, 100_000), st.floats(1e-3, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=6
).map(lambda rows: [layer(f"layer{i}", n, s, sensitivity=w) for i, (n, s, w) in enumerate(rows)])


@given(networks, st.floats(0.05, 8.0))
def test_lambda_meets_the_budget(layers, bits_per_weight):
    """At the lambda found, the closed-form rates add up to the requested bits."""
    budget = bits_per_weight * sum(layer.statistics.count for layer in layers)
    lmbda = joint.lambda_for(layers, budget, deadzone)
    assert joint.predicted_bits(layers, lmbda, deadzone, joint.laplace_bits) == pytest.approx(budget, rel=1e-5)


@given(networks, st.floats(0.1, 6.0), st.floats(1e-2, 1e2))
def test_scaling_all_weights_scales_the_plan(layers, bits_per_weight, factor):
    """Thresholds and steps scale with the weights, at the same budget."""
    budget = bits_per_weight * sum(layer.statistics.count for layer in layers)
    scaled = [
        layer(l.name, l.statistics.count, l.statistics.laplace_scale * factor, sensitivity=l.config.sensitivity)
        for l in layers  # noqa: E741
    ]
    one = joint.points_at(layers, joint.lambda_for(layers, budget, deadzone), deadzone)
    other = joint.points_at(scaled, joint.lambda_for(scaled, budget, deadzone), deadzone)
    for a, b in zip(one, other, strict=True):
        assert b.threshold == pytest.approx(a.threshold * factor, rel=1e-4)
        assert b.step == pytest.approx(a.step * factor, rel=1e-4)


@pytest.mark.slow
@given(networks, st.floats(0.1, 6.0), st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter(layers, bits_per_weight, random):
    """A permutation of the layers permutes the points."""
    budget = bits_per_weight * sum(layer.statistics.count for layer in layers)
    shuffled = list(layers)
    random.shuffle(shuffled)
    points = joint.points_at(layers, joint.lambda_for(layers, budget, deadzone), deadzone)
    one = dict(zip([layer.name for layer in layers], points, strict=True))
    for moved, point in zip(
        shuffled, joint.points_at(shuffled, joint.lambda_for(shuffled, budget, deadzone), deadzone), strict=True
    ):
        assert point.step == pytest.approx(one[moved.name].step, rel=1e-5)


def test_no_other_allocation_of_the_same_bits_is_better():
    """Thresholds and steps of all layers, searched freely under the same bits, reach no lower weighted error."""
    layers = [layer("a", 3000, 0.5, sensitivity=2.0), layer("b", 10_000, 0.05), layer("c", 500, 1.0)]
    counts = np.array([l.statistics.count for l in layers])  # noqa: E741
    scales = np.array([l.statistics.laplace_scale for l in layers])  # noqa: E741
    weights = counts * scales**2 * np.array([2.0, 1.0, 1.0])
    budget = 1.3 * counts.sum()

    def error(x):
        return float(weights @ laplace.distortion(np.exp(x[:3]), np.exp(x[3:])) / weights.sum())

    def missed(x):
        return float(counts @ laplace.rate(np.exp(x[:3]), np.exp(x[3:])) / budget - 1.0)

    points = joint.points_at(layers, joint.lambda_for(layers, budget, deadzone), deadzone)
    ours = np.log(np.concatenate([[p.threshold for p in points] / scales, [p.step for p in points] / scales]))
    assert missed(ours) == pytest.approx(0.0, abs=1e-6)
    found = minimize(
        error, ours + 0.1, constraints={"type": "eq", "fun": missed}, method="SLSQP", options={"maxiter": 500}, tol=1e-15
    )
    assert error(ours) <= found.fun * (1.0 + 1e-5)


def test_a_layer_of_zeros_has_a_rate_of_zero():
    """A layer of zeros has a rate of zero and a positive step at every lambda."""
    layers = [layer("zeros", 1000, 0.0), layer("b", 1000, 0.1)]
    lmbda = joint.lambda_for(layers, 2000.0, deadzone)
    assert joint.laplace_bits(layers[0], *vars(joint.points_at(layers, lmbda, deadzone)[0]).values()) == 0.0
    assert joint.points_at(layers, lmbda, deadzone)[0].step > 0.0
    assert joint.predicted_bits(layers, lmbda, deadzone, joint.laplace_bits) == pytest.approx(2000.0, rel=1e-5)


def test_a_repeated_layer_is_counted_once():
    """A layer that repeats the values of another one adds no bits."""
    first = layer("a", 1000, 0.1)
    again = Layer("b", first.statistics, repeats="a")
    assert joint.predicted_bits([first, again], 1e-3, deadzone, joint.laplace_bits) == joint.predicted_bits(
        [first], 1e-3, deadzone, joint.laplace_bits
    )


def test_a_budget_out_of_reach_gives_the_end_of_the_curve():
    """More bits than the finest point has, or fewer than the coarsest, give those points."""
    layers = [layer("a", 1000, 0.1), layer("b", 100, 1.0)]
    assert [joint.lambda_for(layers, bits, deadzone) for bits in (1e9, 0.0)] == pytest.approx(
        joint.lambda_bounds(layers, deadzone)
    )


@pytest.mark.parametrize(("field", "value"), [("step", 0.07), ("sparsity", 0.7), ("bits", 2.5)])
def test_a_layer_config_fixes_the_layer_and_the_budget_is_met(field, value):
    """A layer with a fixed field is the point of the curve with that field; the total is still met."""
    layers = [layer("a", 1000, 0.1, **{field: value}), layer("b", 3000, 0.2)]
    lmbda = joint.lambda_for(layers, 6000.0, deadzone)
    point = joint.points_at(layers, lmbda, deadzone)[0]
    reached = {
        "step": point.step,
        "sparsity": float(laplace.pruned_fraction(point.threshold, 0.1)),
        "bits": float(laplace.rate(point.threshold / 0.1, point.step / 0.1)),
    }
    assert reached[field] == pytest.approx(value, rel=1e-5)
    assert joint.predicted_bits(layers, lmbda, deadzone, joint.laplace_bits) == pytest.approx(6000.0, rel=1e-5)
