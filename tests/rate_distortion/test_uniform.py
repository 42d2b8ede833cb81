"""Uniform quantizers: one step for all layers of one sensitivity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.config import LayerConfig
from opq.functional import fake_quantize
from opq.rate_distortion import joint, laplace, uniform
from opq.rate_distortion.layers import Layer, LayerStatistics


def layer(name, count, scale, **config):
    statistics = LayerStatistics((1, count), scale, np.array([scale]), 0, np.zeros(1), np.zeros(1), 1, np.zeros(0))
    return Layer(name, statistics, LayerConfig(**config))


@given(st.floats(-8.0, 4.0), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_steps_depend_on_sensitivity_alone(log_lambda, scale, sensitivity):
    """The step is that of the two-stage mode at the same lambda, whatever the weights; the threshold is half of it."""
    lmbda = 10.0**log_lambda
    point = joint.points_at([layer("a", 10, scale, sensitivity=sensitivity)], lmbda, uniform)[0]
    wanted = float(laplace.step_at(lmbda, sensitivity))
    assert point.step == pytest.approx(np.clip(wanted, uniform.FINEST_STEP * scale, uniform.COARSEST_STEP * scale))
    assert point.threshold == pytest.approx(0.5 * point.step)


@given(st.lists(st.tuples(st.integers(10, 10_000), st.floats(0.01, 1.0)), min_size=1, max_size=4), st.floats(0.05, 8.0))
def test_lambda_meets_the_budget(rows, bits_per_weight):
    """At the lambda found, the Laplace rates at these steps add up to the requested bits."""
    layers = [layer(f"l{i}", count, scale) for i, (count, scale) in enumerate(rows)]
    budget = bits_per_weight * sum(count for count, _ in rows)
    lmbda = joint.lambda_for(layers, budget, uniform)
    assert joint.predicted_bits(layers, lmbda, uniform, joint.laplace_bits) == pytest.approx(budget, rel=1e-5)


@pytest.mark.parametrize(("field", "value"), [("step", 0.07), ("sparsity", 0.7), ("bits", 2.5)])
def test_a_layer_config_fixes_the_layer(field, value):
    """A fixed field has its value, and the threshold is half of the step."""
    point = joint.points_at([layer("a", 1000, 0.1, **{field: value})], 1e-4, uniform)[0]
    reached = {
        "step": point.step,
        "sparsity": float(laplace.pruned_fraction(point.threshold, 0.1)),
        "bits": float(laplace.rate(point.threshold / 0.1, point.step / 0.1)),
    }
    assert reached[field] == pytest.approx(value, rel=1e-5)
    assert point.threshold == pytest.approx(0.5 * point.step)


def test_layers_of_a_pruned_network_share_one_step():
    """With squared costs, layers of 99.5% and of 80% zeros, of like nonzero weights, get one step; the error is lower than on
    the Laplace curve.
    """
    rng = np.random.default_rng(0)
    state = {}
    for name, zeros in (("a", 0.995), ("b", 0.8)):
        weight = (rng.choice([-1.0, 1.0], (400, 300)) * rng.gamma(8.0, 0.05, (400, 300))).astype(np.float32)
        state[name] = np.where(rng.random(weight.shape) < zeros, np.float32(0.0), weight)

    def errors(rounding):
        compressed = opq.compress(state, size=22_000, rounding=rounding, cost="squared")
        return compressed, [
            float(np.square(fake_quantize(state[name], compressed.plan.layers[name]) - state[name]).sum()) for name in state
        ]

    (ours, found), (_, before) = errors("compensated"), errors("deadzone")
    assert ours.plan.layers["a"].step == ours.plan.layers["b"].step
    assert sum(found) < sum(before)
    kept = int((state["a"] != 0).sum())
    assert float(np.square(state["a"]).sum()) / kept > 5.0 * found[0] / kept
