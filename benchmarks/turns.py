"""Timing of coders in two processes that take turns. It needs nothing of opq, so that both environments can import it."""

from __future__ import annotations

import time
from collections.abc import Callable

WARM_UP, TURN, LEAST_RUNS = 0.2, 0.5, 3
"""Seconds of warm-up and of a turn, and minimum number of runs. Idle processors and new threads are slow at first."""


def seconds_of_turn(run: Callable[[], object]) -> list[float]:
    """Seconds of each run within TURN seconds, after WARM_UP seconds of runs that are not counted."""
    measured: list[float] = []
    begin = time.perf_counter()
    while len(measured) < LEAST_RUNS or time.perf_counter() < begin + WARM_UP + TURN:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        if start > begin + WARM_UP:
            measured.append(end - start)
    return measured
