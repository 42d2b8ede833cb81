"""A progress bar on stderr, if that is a terminal; progress and warnings also go to the logger "opq"."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

logger = logging.getLogger("opq")
"""The library's logger. It has no handler, so Python prints warnings to stderr unless an application configures logging."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the number of its finished steps, and the number of all its steps, 0 if it is unknown."""

Item = TypeVar("Item")


def no_progress(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def counted(items: Iterable[Item], report: Progress, stage: str, total: int) -> Iterator[Item]:
    """The items, each reported as a finished step when the next one is asked for.

    Args:
        items: The items.
        report: Called after each item.
        stage: Name of the stage.
        total: The number of items, 0 if it is unknown.
    """
    for done, item in enumerate(items, 1):
        yield item
        report(stage, done, total)


@contextmanager
def show_progress(progress: Progress | bool) -> Iterator[Progress]:
    """A function to call after each step.

    Args:
        progress: A function that is used as it is; or whether to show a progress bar on stderr, if that is a terminal: stage,
            share, steps per second and time left.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield no_progress
        return
    with _make_bar() as bar:
        task = bar.add_task("reading", total=None)
        stage_before, done_before = "", 0

        def advance(stage: str, done: int, total: int) -> None:
            nonlocal stage_before, done_before
            if stage != stage_before or done < done_before:  # a new stage or round has a rate of its own
                bar.reset(task, description=stage, total=total or None)
            bar.update(task, completed=done)
            stage_before, done_before = stage, done

        yield advance


def _make_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Steps per second, or seconds for each step."""

        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{rate:.1f}/s" if rate and rate >= 1.0 else f"{1.0 / rate:.1f} s each" if rate else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        RateColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=Console(stderr=True), transient=True)
