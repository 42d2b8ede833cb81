"""`thread_map`: a function applied to many items on all processors."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.thread_map import thread_map, thread_map_batched


@pytest.fixture(autouse=True, scope="module")
def _three_processors():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opq.thread_map._processors", lambda: 3)
        yield


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_results_come_in_order(count):
    """Each item gives one result, in order, also in nested calls."""
    assert list(thread_map(lambda x: x * x, range(count))) == [x * x for x in range(count)]
    nested = thread_map(lambda x: sum(thread_map(lambda y: x * y, range(20))), range(count))
    assert list(nested) == [x * 190 for x in range(count)]


@given(sizes=st.lists(st.integers(0, 100)), max_size=st.integers(0, 300))
def test_batches_hold_each_item_once(sizes, max_size):
    """Results come in order; a batch is no larger than the limit unless it holds a single item."""
    shares = []

    def negate(share: list[int]) -> list[int]:
        shares.append(share)
        return [-sizes[k] for k in share]

    assert thread_map_batched(negate, range(len(sizes)), sizes, max_size) == [-size for size in sizes]
    assert sorted(k for share in shares for k in share) == list(range(len(sizes)))
    assert all(len(share) == 1 or sum(sizes[k] for k in share) <= min(max_size, sum(sizes) // 3) for share in shares)


def test_few_items_are_read_ahead():
    """An endless iterator is read only a few items ahead of the consumed results."""
    taken = itertools.count()
    results = thread_map(lambda x: x, taken)
    assert [next(results) for _ in range(50)] == list(range(50))
    results.close()
    assert next(taken) <= 50 + 4 * 3


def test_items_run_concurrently():
    """Two items that wait for each other are both processed."""
    barrier = threading.Barrier(2, timeout=20.0)
    assert len(list(thread_map(lambda _: barrier.wait(), range(2)))) == 2


def test_errors_come_in_order():
    """An error of the function or of the iterator is raised at the position of its result, and nothing runs afterwards."""
    results = thread_map(lambda x: 6 // (3 - x), range(100))
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)

    def items():
        yield from range(5)
        raise KeyError("things")

    results = thread_map(lambda x: x, items())
    with pytest.raises(KeyError, match="things"):
        list(results)
