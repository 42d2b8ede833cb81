"""Plans as values: to JSON and back, as a table, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.errors import PlanError
from opq.rate_distortion.plan import AuxiliaryPlan, LayerPlan, Plan

positive = st.floats(1e-6, 1e6)
steps = positive.map(lambda x: float(np.float32(x)))


@st.composite
def layer_plans(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    count = int(np.prod(shape))
    channels = shape[0] if shape else 1
    paper = draw(st.booleans())
    return LayerPlan(
        shape=shape,
        step=draw(steps),
        threshold=draw(positive),
        rounding_offset=draw(st.floats(0.0, 1.0)),
        sparsity=draw(st.floats(0.0, 1.0)),
        bits=draw(positive),
        laplace_bits=draw(positive),
        num_kept=draw(st.integers(0, count)) if paper else None,
        max_codes=tuple(draw(st.lists(st.integers(1, 99), min_size=channels, max_size=channels))) if paper else None,
    )


plans = st.builds(
    Plan,
    mode=st.sampled_from(["paper", "joint"]),
    target=st.dictionaries(st.sampled_from(["ratio", "bytes", "sparsity", "bits"]), positive),
    auxiliary=st.builds(
        AuxiliaryPlan,
        st.sampled_from(["exact", "half", "8bit"]),
        st.sampled_from(["keep", "canonical"]),
        st.floats(0.0, 0.5),
    ),
    lmbda=st.none() | positive,
    dense_bytes=st.integers(1, 2**40),
    predicted_bytes=st.integers(1, 2**40),
    layers=st.dictionaries(st.text(max_size=20), layer_plans(), max_size=4),
)


@given(plans)
def test_json_and_back_changes_nothing(plan):
    """A plan written as JSON and read again is equal, float for float."""
    assert Plan.from_json(plan.to_json()) == plan


@given(plans)
def test_a_plan_prints_a_row_a_weight(plan):
    """The table has a heading, a rule, a row for each weight, and a line of totals."""
    lines = str(plan).split("\n")
    rows = lines[2:-1]
    if not any("\n" in name for name in plan.layers):
        assert len(rows) == len(plan.layers)
    assert f"{plan.predicted_bytes:,} of {plan.dense_bytes:,} bytes" in lines[-1]


LAYER = {"shape": [2, 3], "step": 0.5, "threshold": 0.1, "offset": 0.5, "sparsity": 0.5, "bits": 1.0, "laplace_bits": 1.0}
PLAN = {
    "format": "opq-plan-1", "mode": "joint", "target": {"ratio": 4}, "auxiliary": {"storage": "exact"}, "lmbda": 0.1,
    "dense_bytes": 100, "predicted_bytes": 25, "layers": {"a": LAYER},
}  # fmt: skip


def test_a_plan_written_by_hand_is_read():
    """The fields that may be left out have defaults, so the cases below fail for what they change alone."""
    assert Plan.from_json(json.dumps(PLAN)).layers["a"].num_kept is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "opq-plan-9"}, "opq-plan-1"),
        ({"mode": "other"}, "unknown mode"),
        ({"mode": "free"}, "unknown mode 'free'"),
        ({"auxiliary": "exact"}, 'expected an object under "auxiliary"'),
        ({"auxiliary": {"storage": "quarter"}}, "auxiliary must be 'exact', 'half' or '8bit', got 'quarter'"),
        ({"auxiliary": {"batch_norm": "fold"}}, "batch_norm must be 'keep' or 'canonical', got 'fold'"),
        ({"auxiliary": {"eps": 1.0}}, "0 <= eps < 1, got 1.0"),
        ({"auxiliary": {"step": 1.0}}, "unknown field 'step'"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"layers": []}, 'under "layers"'),
        ({"layers": {"a": 3}}, "layer 'a': expected an object"),
        ({"layers": {"a": {**LAYER, "step": 0.0}}}, "step must be positive"),
        ({"layers": {"a": {**LAYER, "step": 0.1}}}, "a float32, got 0.1"),
        ({"layers": {"a": {**LAYER, "step": "x"}}}, "step must be a finite number"),
        ({"layers": {"a": {**LAYER, "threshold": -1.0}}}, "threshold must be a finite number"),
        ({"layers": {"a": {**LAYER, "offset": 1.5}}}, "offset and sparsity"),
        ({"layers": {"a": {**LAYER, "shape": [0, 3]}}}, "shape must hold positive integers"),
        ({"layers": {"a": {**LAYER, "shape": 3}}}, "shape must hold positive integers"),
        ({"layers": {"a": {**LAYER, "kept": 7}}}, r"kept must lie in \[0, 6\], got 7"),
        ({"layers": {"a": {**LAYER, "limits": [1]}}}, "limits must be 2 integers"),
        ({"layers": {"a": {**LAYER, "limits": [0, 1]}}}, "limits must be 2 integers"),
        ({"layers": {"a": {**LAYER, "limits": 5}}}, "limits must be 2 integers"),
        ({"layers": {"a": {"shape": [2]}}}, "layer 'a': .*missing"),
        ({"dense_bytes": "many"}, "dense_bytes"),
        ({"target": 3}, "target"),
        ({"layers": {"a": {**LAYER, "step": 1e39}}}, "step must be positive and a float32"),
        ({"layers": {"a": {**LAYER, "kept": False}}}, "kept must lie in"),
        ({"layers": {"a": {**LAYER, "bits": 10**400}}}, "bits must be a finite number"),
    ],
)
def test_what_is_no_plan_is_refused(change, message):
    """Anything but a well-formed plan is a PlanError that names the place."""
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps({**PLAN, **change}))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", "[]", "null", '{"format": 1}'])
def test_what_is_no_json_object_is_refused(text):
    """So is text that is not a JSON object of ours."""
    with pytest.raises(PlanError):
        Plan.from_json(text)
