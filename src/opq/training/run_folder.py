"""RunFolder: the arguments, plan, history and checkpoints of a run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from opq.atomic_file import write_file
from opq.errors import OutputError, SourceError, TrainingError
from opq.rate_distortion.plan import Plan

ARGUMENTS, START, PLAN, HISTORY, CHECKPOINT = "arguments.json", "start.opq", "plan.json", "history.jsonl", "checkpoint.pt"
FILE = "model.opq"


class RunFolder:
    """The folder of a run: arguments, plan, history (JSON lines, one per epoch), checkpoint and result.

    Every file is replaced as a whole: an interrupted run leaves the old file or the new one.

    Args:
        path: The folder. It is created if it does not exist.

    Raises:
        OutputError: It cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the folder."""
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = "it is a file; choose a folder" if self.path.is_file() else error.strerror or str(error)
            raise OutputError(self.path, problem) from None

    def claim(self, arguments: Mapping[str, Any], *, write: bool = True) -> None:
        """Bind the folder to the arguments of a run.

        Until its first checkpoint a run binds nothing: other arguments, corrected after an error, replace its own.

        Args:
            arguments: JSON values by name.
            write: Whether to write them; False only compares.

        Raises:
            SourceError: The folder has a checkpoint of a run with different arguments.
            OutputError: The arguments cannot be written.
        """
        path = self.path / ARGUMENTS
        text = json.dumps(arguments, indent=1, sort_keys=True) + "\n"
        before = path.read_text(encoding="utf-8") if path.exists() else None
        if before is not None and before != text:
            if (self.path / CHECKPOINT).exists():
                raise SourceError(self.path, _difference(before, text))
            if write:
                for name in (START, PLAN):  # made from the other arguments
                    (self.path / name).unlink(missing_ok=True)
        if write:
            write_file(path, text.encode(), overwrite=True)

    def write_start(self, data: bytes) -> None:
        """Write the .opq file from which the run starts."""
        write_file(self.path / START, data, overwrite=True)

    def start(self) -> bytes | None:
        """The .opq file from which the run started; None if there is none."""
        path = self.path / START
        return path.read_bytes() if path.exists() else None

    def write_plan(self, plan: Plan) -> None:
        """Write the plan."""
        write_file(self.path / PLAN, plan.to_json().encode(), overwrite=True)

    def plan(self) -> Plan | None:
        """The plan of the run; None if there is none yet."""
        path = self.path / PLAN
        return Plan.from_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the history so far."""
        write_file(self.path / HISTORY, "".join(json.dumps(row) + "\n" for row in rows).encode(), overwrite=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint: tensors, numbers, text and containers of them."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_file(self.path / CHECKPOINT, buffer.getvalue(), overwrite=True)

    def load(self) -> dict[str, Any] | None:
        """Read the checkpoint.

        Returns:
            What `save` was given, with its tensors on the CPU; None if there is no checkpoint yet.

        Raises:
            SourceError: It cannot be read.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many types
            raise SourceError(path, f"not a checkpoint: {error!r}; delete it to start again") from None
        return state


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of the history to JSON values: numbers of NumPy and torch become numbers of Python.

    Raises:
        TrainingError: A value cannot be represented in JSON.
    """
    if not isinstance(row, Mapping):
        raise TrainingError(f"on_epoch_end must return a mapping of JSON values, got {type(row).__name__}")
    plain = {
        key: value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value for key, value in row.items()
    }
    try:
        return dict(json.loads(json.dumps(plain)))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"on_epoch_end must return a mapping of JSON values (numbers or text by name): {error}") from None


def _difference(before: str, now: str) -> str:
    """What differs between two texts of arguments, and what to do about it."""
    try:
        old = json.loads(before)
    except ValueError:
        old = {}
    changed = _changed(old, json.loads(now))
    what = f"it was created with different arguments ({', '.join(changed)})"
    if "network" in changed:
        return f"{what}: the network has other values than at the start of the run; build it again, or use a new folder"
    return f"{what}; use a new folder"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the values that differ, in ascending order; those inside a mapping as "training.seed"."""
    found = []
    for key in sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
        was, value = old.get(key), new.get(key)
        inner = _changed(was, value) if isinstance(was, dict) and isinstance(value, dict) else []
        found += [f"{key}.{name}" for name in inner] or [key]
    return found
