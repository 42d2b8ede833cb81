"""A progress bar on stderr, if that is a terminal; progress and warnings also go to the logger "opq"."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("opq")
"""The library's logger. Its only handler is the null handler, as recommended for libraries."""

logger.addHandler(logging.NullHandler())


@contextmanager
def progress_bar(*, enabled: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with the name of a stage, how many of its steps are finished, and how many there are.

    It moves a bar on stderr. It does nothing if stderr is not a terminal or `enabled` is False.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield advance
