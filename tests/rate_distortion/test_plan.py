"""Plans: JSON round trip, table, and malformed documents."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.config import Lossless, Ratio, Size, TwoStage
from opq.errors import PlanError
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.plan import AuxiliaryPlan, Plan

positive = st.floats(1e-6, 1e6)
steps = positive.map(lambda x: float(np.float32(x)))


@st.composite
def layer_plans(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    count = int(np.prod(shape))
    channels = shape[0] if shape else 1
    is_two_stage = draw(st.booleans())
    scales = {}
    if shape and not is_two_stage and draw(st.booleans()):
        for key, size in (("rows", shape[0]), ("columns", count // shape[0])):
            scales[key] = draw(st.none() | st.lists(st.integers(-127, 127), min_size=size, max_size=size).map(tuple))
    return LayerPlan(
        shape=shape,
        step=draw(steps),
        threshold=draw(positive),
        rounding_offset=draw(st.floats(0.0, 1.0)),
        sparsity=draw(st.floats(0.0, 1.0)),
        bits=draw(positive),
        num_kept=draw(st.integers(0, count)) if is_two_stage else None,
        max_codes=tuple(draw(st.lists(st.integers(1, 99), min_size=channels, max_size=channels))) if is_two_stage else None,
        rounding="deadzone"
        if is_two_stage
        else draw(st.sampled_from(["compensated", "deadzone"] + ["trellis"] * (len(shape) == 2))),
        **scales,
    )


targets = st.one_of(
    st.builds(Ratio, positive),
    st.builds(Size, st.integers(1, 2**60)),
    st.builds(TwoStage, st.floats(0.0, 0.99), st.floats(1.5, 16.0)),
    st.just(Lossless()),
)

plans = st.builds(
    Plan,
    mode=st.sampled_from(["two_stage", "joint"]),
    target=targets,
    auxiliary=st.builds(
        AuxiliaryPlan,
        st.sampled_from(["exact", "float16", "uint8"]),
        st.sampled_from(["keep", "folded"]),
        st.none() | st.floats(0.0, 0.5),
    ),
    lmbda=st.none() | positive,
    dense_bytes=st.integers(1, 2**40),
    predicted_bytes=st.integers(1, 2**40),
    layers=st.dictionaries(st.text(max_size=20), layer_plans(), max_size=4),
)


@pytest.mark.slow
@given(plans)
def test_a_plan_survives_json(plan):
    """A plan that is written as JSON and read again is equal, with the same types."""
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert type(again.target) is type(plan.target)
    assert again.budget == plan.budget


@given(plans)
def test_a_plan_prints_a_row_per_weight(plan):
    """The table has a heading, a rule, a row per weight, and two lines of totals."""
    lines = str(plan).split("\n")
    rows = lines[2:-2]
    if not any("\n" in name for name in plan.layers):
        assert len(rows) == len(plan.layers)
    assert f"{plan.predicted_bytes:,} of {plan.dense_bytes:,} bytes" in lines[-1]


@given(plans)
def test_a_plan_shows_which_weights_vanish(plan):
    """A weight that is predicted to be all zero has "all" as its zeros, no other one has, also if all but a few are zero."""
    layers = [
        replace(layer, sparsity=sparsity) for layer in plan.layers.values() for sparsity in (1.0, 1.0 - 1e-9, layer.sparsity)
    ]
    named = {f"w{number}": layer for number, layer in enumerate(layers)}
    rows = str(replace(plan, layers=named, exact={})).split("\n")[2:-2]
    assert [row.split()[2] == "all" for row in rows] == [layer.sparsity == 1.0 for layer in layers]


LAYER = {"shape": [2, 3], "step": 0.5, "threshold": 0.1, "rounding_offset": 0.5, "sparsity": 0.5, "bits": 1.0}
PLAN = {
    "format": "opq-plan-3", "mode": "joint", "target": {"ratio": 4}, "auxiliary": {"storage": "exact"}, "lmbda": 0.1,
    "dense_bytes": 100, "predicted_bytes": 25, "layers": {"a": LAYER},
}  # fmt: skip


def test_optional_fields_have_defaults():
    """A document without the optional fields is a plan, so that each case below fails for its change alone."""
    plan = Plan.from_json(json.dumps(PLAN))
    assert plan.target == Ratio(4.0)
    assert plan.layers["a"].num_kept is None
    assert plan.layers["a"].rounding == "deadzone"


def test_whole_numbers_are_numbers():
    """Other JSON writers write 1 for 1.0: the plan is the same."""
    whole = {"step": 1, "threshold": 0, "rounding_offset": 1, "sparsity": 0, "bits": 2}
    fractions = {key: float(value) for key, value in whole.items()}
    plans = [Plan.from_json(json.dumps({**PLAN, "layers": {"a": {**LAYER, **values}}})) for values in (whole, fractions)]
    assert plans[0].to_json() == plans[1].to_json()
    assert all(type(getattr(plans[0].layers["a"], key)) is float for key in whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "opq-plan-2"}, "opq-plan-3"),
        ({"mode": "paper"}, "mode must be 'joint' or 'two_stage', got 'paper'"),
        ({"auxiliary": "exact"}, 'expected an object under "auxiliary"'),
        ({"auxiliary": {"storage": "quarter"}}, "storage must be 'exact', 'float16' or 'uint8', got 'quarter'"),
        ({"auxiliary": {"batch_norm": "fold"}}, "batch_norm must be 'keep' or 'folded', got 'fold'"),
        ({"auxiliary": {"eps": 1.0}}, r"eps must lie in \[0, 1\), got 1.0"),
        ({"auxiliary": {"step": 1.0}}, "unknown field 'step'"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"layers": []}, 'under "layers"'),
        ({"layers": {"a": 3}}, "layer 'a': expected an object"),
        ({"layers": {"a": {**LAYER, "step": 0.0}}}, "step must be positive"),
        ({"layers": {"a": {**LAYER, "step": 0.1}}}, "a float32 number, got 0.1"),
        ({"layers": {"a": {**LAYER, "step": "x"}}}, "step must be a finite number"),
        ({"layers": {"a": {**LAYER, "threshold": -1.0}}}, "threshold must be a finite number"),
        ({"layers": {"a": {**LAYER, "rounding_offset": 1.5}}}, r"rounding_offset must lie in \[0, 1\], got 1.5"),
        ({"layers": {"a": {**LAYER, "sparsity": 1.5}}}, r"sparsity must lie in \[0, 1\], got 1.5"),
        ({"layers": {"a": {**LAYER, "shape": [0, 3]}}}, "shape must hold positive integers"),
        ({"layers": {"a": {**LAYER, "shape": 3}}}, "shape must hold positive integers"),
        ({"layers": {"a": {**LAYER, "num_kept": 7}}}, r"num_kept must lie in \[0, 6\], got 7"),
        ({"layers": {"a": {**LAYER, "max_codes": [1]}}}, "max_codes must be 2 integers"),
        ({"layers": {"a": {**LAYER, "max_codes": [0, 1]}}}, "max_codes must be 2 integers"),
        ({"layers": {"a": {**LAYER, "max_codes": 5}}}, "max_codes must be 2 integers"),
        ({"layers": {"a": {"shape": [2]}}}, "layer 'a': .*missing"),
        ({"dense_bytes": "many"}, "dense_bytes"),
        ({"target": 3}, "target must be an object with ratio, bytes, sparsity and bits, or lossless, got 3"),
        ({"target": {"ratio": 4, "bits": 3}}, "target must be an object"),
        ({"target": {"ratio": 0}}, "ratio must be positive"),
        ({"target": {"ratio": True}}, "ratio must be a finite number"),
        ({"target": {"lossless": False}}, "target must be an object"),
        ({"lmbda": 0.0}, "lmbda must be positive"),
        ({"lmbda": "x"}, "lmbda must be positive"),
        ({"price": 0.1}, "unknown field 'price'"),
        ({"layers": {"a": {**LAYER, "rounding": "shaped"}}}, "rounding must be one of 'trellis', 'compensated', 'deadzone'"),
        ({"layers": {"a": {**LAYER, "rounding": ["deadzone"]}}}, "rounding must be one of"),
        ({"layers": {"a": {**LAYER, "rounding": "compensated", "num_kept": 3}}}, "num_kept and max_codes must be null"),
        ({"layers": {"a": {**LAYER, "rounding": "trellis", "max_codes": [1, 1]}}}, "must be null with trellis rounding"),
        ({"layers": {"a": {**LAYER, "rounding": "trellis", "shape": [2, 3, 1]}}}, r"for the shape \(2, 3, 1\), got 'trellis'"),
        ({"layers": {"a": {**LAYER, "laplace_bits": 1.0}}}, "unknown field 'laplace_bits'"),
        ({"layers": {"a": {**LAYER, "step": 1e39}}}, "step must be positive and a float32"),
        ({"layers": {"a": {**LAYER, "num_kept": False}}}, "num_kept must lie in"),
        ({"layers": {"a": {**LAYER, "bits": 10**400}}}, "bits must be a finite number"),
        ({"layers": {"a": {**LAYER, "rows": [1]}}}, "rows must be 2 integers, got 1"),
        ({"layers": {"a": {**LAYER, "columns": [0, 0]}}}, "columns must be 3 integers, got 2"),
        ({"layers": {"a": {**LAYER, "rows": 1}}}, "rows must be integers, got 1"),
        ({"layers": {"a": {**LAYER, "rows": [1, 0.5]}}}, r"rows must be integers, got \(1, 0.5\)"),
        ({"layers": {"a": {**LAYER, "rows": [True, 1]}}}, "rows must be integers"),
        ({"layers": {"a": {**LAYER, "rows": [1, 128]}}}, r"rows must lie in \[-127, 127\], got 1 to 128"),
        ({"layers": {"a": {**LAYER, "columns": [1, -128, 10**30]}}}, r"columns must lie in \[-127, 127\]"),
        ({"layers": {"a": {**LAYER, "rows": [1, 2], "num_kept": 3}}}, "rows and columns must be null with num_kept"),
        ({"layers": {"a": {**LAYER, "columns": [1, 2, 3], "max_codes": [1, 1]}}}, "rows and columns must be null with"),
        ({"layers": {"a": {**LAYER, "shape": [], "rows": []}}}, "rows must be integers"),
        ({"layers": {"a": {**LAYER, "shape": [], "rows": [1]}}}, "rows need at least one dimension"),
        ({"layers": {"a": {**LAYER, "step": 2.0**-120, "rows": [-127, 0]}}}, "must be normal float32, got"),
        ({"layers": {"a": {**LAYER, "step": 2.0**127, "rows": [0, 8]}}}, "must be normal float32, got"),
        ({"layers": {"a": {**LAYER, "step": 2.0**-130, "rows": [80, 80]}}}, "must be normal float32, got"),
    ],
)
def test_a_malformed_plan_is_refused(change, message):
    """A document that is no plan is a PlanError that names the field."""
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps({**PLAN, **change}))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", "[]", "null", '{"format": 1}'])
def test_text_that_is_no_plan_is_refused(text):
    """Text that is not JSON, or not an object with the format's name, is a PlanError."""
    with pytest.raises(PlanError):
        Plan.from_json(text)
