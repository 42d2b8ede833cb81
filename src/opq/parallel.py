"""The same function over many things, on as many threads as there are processors, results in the order of the things."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Thing], Result], things: Iterable[Thing]) -> Iterator[Result]:
    """`function` of each thing; at most two things a processor are under way, so that memory does not grow with their number.

    Worth it where the function spends its time outside of Python's lock, as coding and NumPy's loops do.
    """
    things = iter(things)
    first = list(islice(things, 2))
    if len(first) < 2:  # nothing to share
        yield from map(function, first)
        return
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers == 1:
        yield from map(function, chain(first, things))
        return
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[Result]] = deque()
        for thing in chain(first, things):
            running.append(pool.submit(function, thing))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
