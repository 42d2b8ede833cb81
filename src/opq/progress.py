"""A progress bar on stderr, if that is a terminal; progress and warnings also go to the logger "opq"."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("opq")
"""The library's logger. It has no handler, so Python prints warnings to stderr unless an application configures logging."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the number of its finished steps, and the number of all its steps."""


@contextmanager
def show_progress(progress: Progress | bool) -> Iterator[Progress]:
    """A function to call after each step.

    Args:
        progress: A function that is used as it is; or whether to show a progress bar on stderr, if that is a terminal.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield advance
