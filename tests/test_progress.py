"""Progress: a bar for a person at a terminal, nothing for anything else."""

from __future__ import annotations

import io
import sys

import pytest

import opq
from opq.progress import progress_bar


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        """Whether it is one."""
        return self._terminal


@pytest.fixture
def screens(monkeypatch):
    """Makes stderr and stdout streams that are terminals, or not."""

    def make(terminal):
        streams = Screen(terminal=terminal), Screen(terminal=terminal)
        monkeypatch.setattr(sys, "stderr", streams[0])
        monkeypatch.setattr(sys, "stdout", streams[1])
        return streams

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return make


def test_a_terminal_shows_what_is_done(screens):
    """The bar tells the stage and its share on stderr, and leaves stdout, where results go, alone."""
    error, out = screens(True)
    with progress_bar() as report:
        report("encoding", 1, 4)
        report("encoding", 4, 4)
    assert "encoding" in error.getvalue()
    assert "100%" in error.getvalue()
    assert not out.getvalue()


@pytest.mark.parametrize("problem", [None, ValueError])
def test_a_bar_ends_with_its_work(screens, problem):
    """Done or failed, the line is cleared and the cursor shown again, so that what is printed next stands alone."""
    error, _ = screens(True)
    if problem is None:
        with progress_bar() as report:
            report("encoding", 1, 2)
    else:
        with pytest.raises(problem), progress_bar():
            raise problem
    assert error.getvalue().endswith("\x1b[2K")
    assert error.getvalue().rindex("\x1b[?25h") > error.getvalue().rindex("\x1b[?25l")


def test_what_is_no_terminal_gets_nothing(screens):
    """A log file or a pipe holds no bar."""
    error, out = screens(False)
    with progress_bar() as report:
        report("encoding", 1, 2)
    assert error.getvalue() == out.getvalue() == ""


def test_compression_reports_every_tensor(network):
    """The last report of each round says that all weights are encoded, and none goes back within a round."""
    reports = []
    opq.compress(network, ratio=8, progress=lambda *report: reports.append(report))
    weights = sum(array.ndim > 1 for array in network.values())
    assert {(stage, total) for stage, _, total in reports} == {("encoding", weights)}
    assert [done for _, done, _ in reports] == list(range(1, weights + 1)) * (len(reports) // weights)
