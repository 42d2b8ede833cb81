"""The next price to try, and the rounding that a user asks for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.cli.main import main
from opq.rate_distortion.rate_control import USUAL_SLOPE, next_lambda


@given(st.floats(-1.4, -0.03), st.floats(0.1, 20.0), st.floats(0.05, 0.95))
def test_on_a_line_the_third_price_meets_the_aim(slope, lmbda, share):
    """Where log bytes is linear in log price, two files tell the line, and the price for any size between them."""

    def size(lmbda):
        return 1000.0 * lmbda**slope

    tried = [(lmbda, size(lmbda)), (3.0 * lmbda, size(3.0 * lmbda))]
    aim = size(lmbda) ** share * size(3.0 * lmbda) ** (1.0 - share)
    found, seen = next_lambda(tried, aim, aim)
    assert seen == pytest.approx(slope)
    assert size(found) == pytest.approx(aim)


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(10.0, 1e6)), min_size=2, max_size=6), st.floats(20.0, 1e5))
def test_the_next_price_lies_between(tried, budget):
    """Wherever one price was too low and a higher one was not, the next lies between the nearest such; else beyond all."""
    low = max((lmbda for lmbda, size in tried if size > budget), default=0.0)
    high = min((lmbda for lmbda, size in tried if size <= budget), default=math.inf)
    found, _ = next_lambda(tried, budget, 0.99 * budget)
    assert found > 0.0
    if 0.0 < low < high < math.inf:
        assert low <= found <= high
    elif low == 0.0 or high == math.inf:
        assert low < found < high


def test_one_file_is_gone_on_from_with_the_usual_slope():
    """Twice the aim is left by a price higher by 2^(1/0.35)."""
    found, slope = next_lambda([(1.0, 200.0)], 100.0, 100.0)
    assert slope == USUAL_SLOPE
    assert found == pytest.approx(2.0 ** (-1.0 / USUAL_SLOPE))


@pytest.fixture
def state():
    return {"a.weight": np.random.default_rng(0).laplace(scale=0.1, size=(64, 32, 3, 3)).astype(np.float32)}


def test_both_roundings_meet_the_target(state):
    """Shaped is the default; both are files of the asked size, and only the plain one has a dead zone."""
    shaped, plain = (opq.compress(state, ratio=12, rounding=rounding) for rounding in ("shaped", "plain"))
    assert opq.compress(state, ratio=12).data == shaped.data != plain.data
    budget = shaped.dense_bytes / 12
    for made, offset in (
        (shaped, 0.5),
        (plain, 1.0 - plain.plan.layers["a.weight"].threshold / plain.plan.layers["a.weight"].step),
    ):
        assert 0.99 * budget <= made.file_bytes <= budget
        assert made.plan.layers["a.weight"].rounding_offset == pytest.approx(offset)
    assert shaped.plan.layers["a.weight"].shaped
    assert not plain.plan.layers["a.weight"].shaped
    assert plain.plan.layers["a.weight"].rounding_offset < 0.45


def test_a_rounding_that_there_is_not_is_refused(state):
    """As is any beside the paper's target, which rounds each weight by itself."""
    with pytest.raises(opq.TargetError, match="rounding must be 'shaped' or 'plain', got 'best'"):
        opq.plan(state, ratio=4, rounding="best")
    with pytest.raises(opq.TargetError, match="leave rounding out"):
        opq.plan(state, sparsity=0.5, bits=4, rounding="plain")


def test_the_command_line_takes_a_rounding(state, tmp_path, monkeypatch):
    """`--rounding plain` gives the file that the library gives."""
    import safetensors.numpy

    monkeypatch.chdir(tmp_path)
    safetensors.numpy.save_file(state, "a.safetensors")
    assert main(["compress", "a.safetensors", "--ratio", "12", "--rounding", "plain", "-o", "a.opq"]) == 0
    assert (tmp_path / "a.opq").read_bytes() == opq.compress("a.safetensors", ratio=12, rounding="plain").data
