"""Seconds of a turn, for coders of two processes that take turns; a peer's environment, where opq is not, can import it."""

from __future__ import annotations

import time
from collections.abc import Callable

WARM_UP, TURN, LEAST_RUNS = 0.2, 0.5, 3
"""Seconds, and runs: a processor that was idle takes its time, and so do threads until each has one of its own."""


def seconds_of_turn(run: Callable[[], object]) -> list[float]:
    """Seconds of each run within a TURN, after WARM_UP seconds of runs that are not counted."""
    measured: list[float] = []
    begin = time.perf_counter()
    while len(measured) < LEAST_RUNS or time.perf_counter() < begin + WARM_UP + TURN:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        if start > begin + WARM_UP:
            measured.append(end - start)
    return measured
