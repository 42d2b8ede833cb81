"""The same function over many things, on as many threads as there are processors, results in the order of the things."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain, islice
from threading import Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each thing; at most four things a processor are under way, so that memory does not grow with their number.

    Worth it where the function spends its time outside of Python's lock, as coding and NumPy's loops do. The function may
    itself call this.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if len(first) < 2 or _processors() == 1:  # nothing to share
        yield from map(function, chain(first, items))
        return
    work = _Work(function, chain(first, items))
    try:
        yield from work.results()
    finally:
        work.stop()


def run_on_all_cores(function: Callable[[], Result], most: int) -> list[Result]:
    """What the function gives on as many threads at once as there are processors, at most `most` and at least one."""
    return list(thread_map(lambda _: function(), range(max(1, min(most, _processors())))))


def thread_map_batched(
    function: Callable[[list[Item]], Iterable[Result]], items: Sequence[Item], sizes: Sequence[int], most: int
) -> list[Result]:
    """`function` gives the results of several things at once; the results of all, in the order of the things.

    Worth it where a thing alone is little work. Shares shrink towards the end, so that all processors are done at about the
    same time; none has a size above `most`, unless a single thing has.
    """
    shares = list(_shares(sizes, most))
    results: dict[int, Result] = {}
    for share, found in zip(shares, thread_map(lambda share: function([items[k] for k in share]), shares), strict=True):
        results.update(zip(share, found, strict=True))
    return [results[k] for k in range(len(items))]


def _shares(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of things, the largest first: each share at most what a processor would get of those that are left."""
    left = sum(sizes)
    share: list[int] = []
    room = 0
    for number in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if share and sizes[number] > room:
            yield share
            share = []
        if not share:
            room = min(left // _processors(), most)
        share.append(number)
        room -= sizes[number]
        left -= sizes[number]
    if share:
        yield share


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_processors())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads do not survive a fork


class _Work(Generic[Item, Result]):
    """What the calling thread and its helpers share. The caller works too, and needs no helper to come to the end."""

    def __init__(self, function: Callable[[Item], Result], items: Iterator[Item]) -> None:
        self._function = function
        self._things = items
        self._lock = Lock()
        self._begun: deque[Future[Result]] = deque()
        self._processors = _processors()
        self._helping = 0
        self._ended = False

    def results(self) -> Iterator[Result]:
        self._call_helpers()
        while True:
            if not (self._begun and self._begun[0].done()) and self._do_one():
                continue
            if not self._begun:
                return
            yield self._begun.popleft().result()
            self._call_helpers()

    def stop(self) -> None:
        """Begin nothing more, and wait for what was begun."""
        with self._lock:
            self._ended = True
        for begun in self._begun:
            begun.exception()

    def _call_helpers(self) -> None:
        with self._lock:
            missing = 0 if self._ended else self._processors - 1 - self._helping
            self._helping += missing
        for _ in range(missing):
            _helpers().submit(self._help)

    def _help(self) -> None:
        while self._do_one():
            pass
        with self._lock:
            self._helping -= 1

    def _do_one(self) -> bool:
        """Whether there was a thing to do, and room for its result."""
        result: Future[Result] = Future()
        with self._lock:
            if self._ended or len(self._begun) >= 4 * self._processors:
                return False
            try:
                item = next(self._things)
            except StopIteration:
                self._ended = True
                return False
            except BaseException as error:
                self._ended = True
                result.set_exception(error)
                self._begun.append(result)
                return False
            self._begun.append(result)
        try:
            result.set_result(self._function(item))
        except BaseException as error:
            result.set_exception(error)
        return True
