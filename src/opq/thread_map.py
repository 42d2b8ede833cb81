"""Map a function over items on all cores: results in the order of the items, and bounded memory."""

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
    """Map a function over items with one thread per core.

    At most four items per core are in progress or wait to be yielded, so memory does not grow with the number of items. Threads
    help if the function releases the GIL, as the codec and NumPy do. The function may call `thread_map` itself.

    Args:
        function: Called with each item, from several threads.
        items: Read lazily, by one thread at a time.

    Yields:
        function(item), in the order of the items.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if len(first) < 2 or _processors() == 1:  # threads would not help
        yield from map(function, chain(first, items))
        return
    work = _Work(function, chain(first, items))
    try:
        yield from work.results()
    finally:
        work.stop()


def run_on_all_cores(function: Callable[[], Result], max_threads: int) -> list[Result]:
    """Call a function once per core at the same time.

    Args:
        function: Called without arguments.
        max_threads: The number of calls is at most this, and at least 1.

    Returns:
        The result of each call.
    """
    return list(thread_map(lambda _: function(), range(max(1, min(max_threads, _processors())))))


def thread_map_batched(
    function: Callable[[list[Item]], Iterable[Result]], items: Sequence[Item], sizes: Sequence[int], max_size: int
) -> list[Result]:
    """Map a function over batches of items with one thread per core, for items that are little work each.

    Batches shrink towards the end, so that all cores finish at about the same time.

    Args:
        function: Maps a batch of items to their results, in order; called from several threads.
        items: The items.
        sizes: The work of each item, >= 0.
        max_size: The largest sum of sizes in a batch of several items.

    Returns:
        The result of each item, in the order of the items.
    """
    batches = list(_batches(sizes, max_size))
    results: dict[int, Result] = {}
    for batch, found in zip(batches, thread_map(lambda batch: function([items[k] for k in batch]), batches), strict=True):
        results.update(zip(batch, found, strict=True))
    return [results[k] for k in range(len(items))]


def _batches(sizes: Sequence[int], max_size: int) -> Iterator[list[int]]:
    """Indices of items, the largest first; a batch is at most one core's share of the remaining work."""
    remaining = sum(sizes)
    batch: list[int] = []
    capacity = 0
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if batch and sizes[index] > capacity:
            yield batch
            batch = []
        if not batch:
            capacity = min(remaining // _processors(), max_size)
        batch.append(index)
        capacity -= sizes[index]
        remaining -= sizes[index]
    if batch:
        yield batch


def limit_threads(count: int) -> None:
    """Use at most this many threads in this process from now on, for processes that share a machine."""
    global _limit
    _limit = count


_limit: int | None = None


def _processors() -> int:
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return present if _limit is None else min(present, _limit)


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_processors())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads do not survive a fork


class _Work(Generic[Item, Result]):
    """State shared by the calling thread and its helpers. The caller works too, and finishes even without helpers."""

    def __init__(self, function: Callable[[Item], Result], items: Iterator[Item]) -> None:
        self._function = function
        self._items = items
        self._lock = Lock()
        self._started: deque[Future[Result]] = deque()
        self._processors = _processors()
        self._active_helpers = 0
        self._ended = False

    def results(self) -> Iterator[Result]:
        self._start_helpers()
        while True:
            if not (self._started and self._started[0].done()) and self._process_one():
                continue
            if not self._started:
                return
            yield self._started.popleft().result()
            self._start_helpers()

    def stop(self) -> None:
        """Start no further item, and wait for those in progress."""
        with self._lock:
            self._ended = True
        for result in self._started:
            result.exception()

    def _start_helpers(self) -> None:
        with self._lock:
            missing = 0 if self._ended else self._processors - 1 - self._active_helpers
            self._active_helpers += missing
        for _ in range(missing):
            _helpers().submit(self._help)

    def _help(self) -> None:
        while self._process_one():
            pass
        with self._lock:
            self._active_helpers -= 1

    def _process_one(self) -> bool:
        """Process the next item; False if none is left, or too many results are waiting."""
        result: Future[Result] = Future()
        with self._lock:
            if self._ended or len(self._started) >= 4 * self._processors:
                return False
            try:
                item = next(self._items)
            except StopIteration:
                self._ended = True
                return False
            except BaseException as error:
                self._ended = True
                result.set_exception(error)
                self._started.append(result)
                return False
            self._started.append(result)
        try:
            result.set_result(self._function(item))
        except BaseException as error:
            result.set_exception(error)
        return True
