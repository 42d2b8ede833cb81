"""The search for a Lagrange multiplier, bisection, and the rounding that meets a byte target."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.cli.main import main
from opq.rate_distortion.rate_control import MAX_ROUNDS, USUAL_SLOPE, BudgetSearch, geometric_bisection, next_lambda


@given(st.floats(-1.4, -0.03), st.floats(0.1, 20.0), st.floats(0.05, 0.95))
def test_the_third_lambda_meets_the_aim_on_a_line(slope, lmbda, share):
    """If log(bytes) is linear in log(lambda), two files give the slope, and the lambda for any size between them."""

    def size(lmbda):
        return 1000.0 * lmbda**slope

    tried = [(lmbda, size(lmbda)), (3.0 * lmbda, size(3.0 * lmbda))]
    aim = size(lmbda) ** share * size(3.0 * lmbda) ** (1.0 - share)
    found, seen = next_lambda(tried, aim, aim)
    assert seen == pytest.approx(slope)
    assert size(found) == pytest.approx(aim)


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(10.0, 1e6)), min_size=2, max_size=6), st.floats(20.0, 1e5))
def test_the_next_lambda_lies_between_the_tried_ones(tried, budget):
    """The next lambda lies between the nearest ones whose files are and are not above the budget; else beyond all of them."""
    low = max((lmbda for lmbda, size in tried if size > budget), default=0.0)
    high = min((lmbda for lmbda, size in tried if size <= budget), default=math.inf)
    found, _ = next_lambda(tried, budget, 0.99 * budget)
    assert found > 0.0
    if 0.0 < low < high < math.inf:
        assert low <= found <= high
    elif low == 0.0 or high == math.inf:
        assert low < found < high


def test_the_usual_slope_is_used_after_one_file():
    """After a file of twice the aim, lambda rises by a factor of 2^(1/0.35)."""
    found, slope = next_lambda([(1.0, 200.0)], 100.0, 100.0)
    assert slope == USUAL_SLOPE
    assert found == pytest.approx(2.0 ** (-1.0 / USUAL_SLOPE))


@st.composite
def monotone_sizes(draw):
    """A function from lambda to bytes that does not rise: a sum of steps at random lambdas, or a rounded power."""
    if draw(st.booleans()):
        scale, slope = draw(st.floats(1e2, 1e7)), draw(st.floats(-3.0, -0.01))
        return lambda lmbda: 1 + round(scale * lmbda**slope)
    steps = draw(st.lists(st.tuples(st.floats(-12.0, 12.0), st.integers(1, 10**5)), min_size=1, max_size=30))
    return lambda lmbda: 1 + sum(size for place, size in steps if math.log(lmbda) < place)


lambdas = st.floats(-10.0, 10.0).map(math.exp)


@given(monotone_sizes(), st.integers(1, 10**6), lambdas, st.floats(0.9, 1.0), st.booleans())
def test_a_search_gives_the_largest_file_within_the_budget(size, budget, first, close, predicts):
    """A search returns the largest tried file within the budget, and never one above it."""
    encoded = []

    def encode(lmbda):
        encoded.append((lmbda, size(lmbda)))
        return encoded[-1]

    search = BudgetSearch(budget, close=close, aim=close)
    search.run(first, lambda lmbda: (encode(lmbda), encoded[-1][1]), predict=(lambda aim: 2.0 * first) if predicts else None)
    fitting = [file for file in encoded if file[1] <= budget]
    assert search.tried == encoded
    assert len(encoded) <= MAX_ROUNDS
    assert (search.best is None) == (not fitting)
    if fitting:
        assert search.best[1] == max(bytes_ for _, bytes_ in fitting)


@given(monotone_sizes(), st.integers(1, 10**6), st.floats(-3.0, 3.0).map(math.exp))
def test_a_bounded_search_ends_at_the_border_of_the_budget(size, budget, first):
    """With enough rounds a search is just within the budget, or at the lambda at which a monotone size crosses it."""
    low, high = math.exp(-12.5), math.exp(12.5)
    search = BudgetSearch(budget, close=0.99, aim=0.995, bounds=(low, high))
    search.run(first, lambda lmbda: (lmbda, size(lmbda)), max_rounds=400)
    above = max((lmbda for lmbda, found in search.tried if found > budget), default=low)
    within = min((lmbda for lmbda, found in search.tried if found <= budget), default=high)
    assert all(low < lmbda < high for lmbda, _ in search.tried)
    if search.best is None or size(search.best) < 0.99 * budget:
        assert within <= above * (1.0 + 1e-6)
    assert search.best is None or size(search.best) == size(within) <= budget


@given(st.integers(10_000, 10**6), st.floats(-1.4, -0.1), st.floats(-3.0, 3.0))
def test_a_search_on_a_line_needs_few_files(budget, slope, distance):
    """If log(bytes) is linear in log(lambda), a file within 1% under the budget is found after at most four rounds.

    A first file that is far off takes one more round per factor of e^3 in lambda.
    """
    search = BudgetSearch(budget, close=0.99, aim=0.995)
    size = lambda lmbda: round(budget * lmbda**slope)  # noqa: E731
    first = math.exp(distance / slope)
    search.run(first, lambda lmbda: (lmbda, size(lmbda)))
    assert 0.99 * budget <= size(search.best) <= budget
    assert len(search.tried) <= 4 + abs(distance / slope) / 3.0


def test_also_above_ends_a_search_near_the_budget():
    """With `also_above` a file as close above the budget ends the search; it is not the result."""
    for also_above in (True, False):
        search = BudgetSearch(1000, close=0.9, aim=0.95)
        search.run(1.0, lambda lmbda: (lmbda, round(1050 / lmbda)), also_above=also_above)
        assert (len(search.tried) == 1) == also_above
        assert (search.best is None) == also_above


def test_a_search_learns_the_slope_and_continues():
    """A search continues from earlier results: a second run starts at the lambda that the first one proposed."""
    search = BudgetSearch(1000, close=0.999, aim=0.9995)
    proposed = search.run(1.0, lambda lmbda: (lmbda, round(1e6 * lmbda**-0.8)), max_rounds=2)
    assert search.slope == pytest.approx(-0.8, rel=1e-3)
    search.run(proposed, lambda lmbda: (lmbda, round(1e6 * lmbda**-0.8)))
    assert round(1e6 * search.best**-0.8) in range(999, 1001)
    assert len(search.tried) <= 5


@given(st.floats(-8.0, 8.0), st.floats(1e-6, 0.5), st.floats(0.01, 12.0), st.floats(0.01, 12.0))
def test_bisection_keeps_the_border(log_border, tolerance, below, above):
    """The interval narrows to the tolerance, its lower end does not fit, and its upper end does."""
    border = math.exp(log_border)
    low, high = border * math.exp(-below), border * math.exp(above)
    evaluated = []

    def fits(value):
        evaluated.append(value)
        return value >= border

    found_low, found_high = geometric_bisection(fits, low, high, tolerance)
    assert low <= found_low < border <= found_high <= high
    assert found_high <= (1.0 + tolerance) * found_low
    assert all(low < value < high for value in evaluated)
    assert len(evaluated) <= math.log2(max((below + above) / math.log1p(tolerance), 1.0)) + 2


def test_bisection_of_a_narrow_interval_evaluates_nothing():
    """An interval within the tolerance is returned as it is."""
    assert geometric_bisection(lambda value: 1 / 0, 1.0, 1.01, 0.01) == (1.0, 1.01)


@pytest.fixture
def state():
    return {"a.weight": np.random.default_rng(0).laplace(scale=0.1, size=(64, 32, 3, 3)).astype(np.float32)}


def test_both_roundings_meet_the_target(state):
    """Rounding is compensated by default; both roundings meet the requested size, and only deadzone has a dead zone."""
    compensated, deadzone = (opq.compress(state, ratio=12, rounding=rounding) for rounding in ("compensated", "deadzone"))
    default, auto = opq.compress(state, ratio=12), opq.compress(state, ratio=12, rounding="auto")
    assert default.data == auto.data == compensated.data != deadzone.data
    budget = compensated.dense_bytes / 12
    layer = deadzone.plan.layers["a.weight"]
    for compressed, offset in ((compensated, 0.5), (deadzone, 1.0 - layer.threshold / layer.step)):
        assert 0.995 * budget <= compressed.file_bytes <= budget
        assert compressed.plan.layers["a.weight"].rounding_offset == pytest.approx(offset)
    assert compensated.plan.layers["a.weight"].rounding == "compensated"
    assert layer.rounding == "deadzone"
    assert layer.rounding_offset < 0.45


def test_an_unknown_rounding_is_refused(state):
    """An unknown rounding is refused. So is any but "auto" with a two-stage target, which rounds each weight to nearest."""
    with pytest.raises(
        opq.ConfigError, match="rounding must be one of 'auto', 'trellis', 'compensated', 'deadzone', got 'best'"
    ):
        opq.plan(state, ratio=4, rounding="best")
    with pytest.raises(opq.ConfigError, match=r"rounding \(='deadzone'\) cannot be combined with sparsity and bits"):
        opq.plan(state, sparsity=0.5, bits=4, rounding="deadzone")


def test_the_command_line_accepts_a_rounding(state, tmp_path, monkeypatch):
    """`--rounding deadzone` gives the file that the library gives."""
    import safetensors.numpy

    monkeypatch.chdir(tmp_path)
    safetensors.numpy.save_file(state, "a.safetensors")
    assert main(["compress", "a.safetensors", "--ratio", "12", "--rounding", "deadzone", "-o", "a.opq"]) == 0
    assert (tmp_path / "a.opq").read_bytes() == opq.compress("a.safetensors", ratio=12, rounding="deadzone").data
