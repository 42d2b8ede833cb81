"""The progress bar: shown on a terminal, and nowhere else."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from torch import nn

import opq
from opq.progress import show_progress


class Screen(io.StringIO):
    """A stream that is a terminal, or is not."""

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


def test_a_terminal_shows_the_stage_and_its_share(screens):
    """The bar is on stderr. Nothing is written to stdout, where results go."""
    error, out = screens(True)
    with show_progress(True) as report:
        report("encoding", 1, 4)
        report("encoding", 4, 4)
    assert "encoding" in error.getvalue()
    assert "100%" in error.getvalue()
    assert not out.getvalue()


@pytest.mark.parametrize("problem", [None, ValueError])
def test_a_bar_ends_with_its_work(screens, problem):
    """After success or failure the line is cleared and the cursor is shown again."""
    error, _ = screens(True)
    if problem is None:
        with show_progress(True) as report:
            report("encoding", 1, 2)
    else:
        with pytest.raises(problem), show_progress(True):
            raise problem
    assert error.getvalue().endswith("\x1b[2K")
    assert error.getvalue().rindex("\x1b[?25h") > error.getvalue().rindex("\x1b[?25l")


def test_without_a_terminal_nothing_is_written(screens):
    """A log file or a pipe gets no bar; nor does a terminal if the bar is disabled."""
    error, out = screens(False)
    with show_progress(True) as report:
        report("encoding", 1, 2)
    assert error.getvalue() == out.getvalue() == ""
    error, out = screens(True)
    with show_progress(False) as report:
        report("encoding", 1, 2)
    assert error.getvalue() == out.getvalue() == ""


def test_compression_reports_every_tensor(network):
    """All weights are measured, and in each round of the search encoded; each is reported, in order."""
    reports = []
    opq.compress(network, ratio=8, progress=lambda *report: reports.append(report))
    weights = sum(array.ndim > 1 for array in network.values())
    assert {(stage, total) for stage, _, total in reports} == {("measuring", weights), ("encoding", weights)}
    assert [done for _, done, _ in reports] == list(range(1, weights + 1)) * (len(reports) // weights)


def test_a_bar_shows_rate_and_time_left(screens):
    """After some steps the bar has the steps per second, and the time that is left."""
    error, _ = screens(True)
    with show_progress(True) as report:
        for done in range(1, 9):
            report("encoding", done, 4000)
            time.sleep(0.03)
    assert re.search(r"[0-9.]+(/s| s each) left", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", error.getvalue()))
    assert re.search(r"left [0-9]+:[0-9]{2}:[0-9]{2}", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", error.getvalue()))


def test_every_slow_function_reports(network, tmp_path):
    """What reads or writes all tensors reports each step of each of its stages up to the last."""
    path = tmp_path / "net.opq"
    opq.save(network, path, ratio=6, progress=False)
    prepared = opq.prepare(nn.Linear(64, 64), ratio=6)
    calls = {
        "plan": lambda report: opq.plan(network, ratio=6, progress=report),
        "rd_curve": lambda report: opq.rd_curve(network, progress=report),
        "inspect": lambda report: opq.inspect(path, progress=report),
        "compare": lambda report: opq.compare(path, progress=report),
        "verify": lambda report: opq.verify(path, progress=report),
        "expand": lambda report: opq.expand(path, tmp_path / "back.safetensors", progress=report),
        "diff": lambda report: opq.diff(network, path, progress=report),
        "prepare": lambda report: opq.prepare(nn.Linear(64, 64), ratio=6, progress=report),
        "export": lambda report: prepared.export(progress=report),
    }
    for name, call in calls.items():
        reports = []
        call(lambda *step, reports=reports: reports.append(step))
        finished = {stage: (done, total) for stage, done, total in reports}
        assert finished, name
        assert all(done == total > 0 for done, total in finished.values()), name
