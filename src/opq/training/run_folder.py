"""The folder of a run: what was asked, how it went, and all that is needed to go on."""

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
    """A folder with the arguments of a run, its plan, its history (a JSON object a line and epoch), and its checkpoint.

    Every file in it is replaced as a whole: whenever the run is interrupted, there is the old file or the new one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the folder where it is missing; OutputError when that fails."""
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(self.path, error.strerror or str(error)) from None

    def claim(self, arguments: Mapping[str, Any], *, write: bool = True) -> None:
        """Note what is asked, or only compare it; SourceError when the folder is of another run."""
        path = self.path / ARGUMENTS
        text = json.dumps(arguments, indent=1, sort_keys=True) + "\n"
        if path.exists() and (before := path.read_text(encoding="utf-8")) != text:
            try:
                old = json.loads(before)
            except ValueError:
                old = {}
            changed = sorted(key for key in {*old, *arguments} if old.get(key) != json.loads(text).get(key))
            raise SourceError(self.path, f"it is of a run with another {', '.join(changed)}; choose another folder")
        if write:
            write_file(path, text.encode(), overwrite=True)

    def write_start(self, data: bytes) -> None:
        """Keep the file that a run begins with."""
        write_file(self.path / START, data, overwrite=True)

    def start(self) -> bytes | None:
        """The file that the run began with, None where there is none."""
        path = self.path / START
        return path.read_bytes() if path.exists() else None

    def write_plan(self, plan: Plan) -> None:
        """Keep a plan."""
        write_file(self.path / PLAN, plan.to_json().encode(), overwrite=True)

    def plan(self) -> Plan | None:
        """The plan of the run, None where there is none yet."""
        path = self.path / PLAN
        return Plan.from_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the history so far."""
        write_file(self.path / HISTORY, "".join(json.dumps(row) + "\n" for row in rows).encode(), overwrite=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a checkpoint."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_file(self.path / CHECKPOINT, buffer.getvalue(), overwrite=True)

    def load(self) -> dict[str, Any] | None:
        """The checkpoint, on the processor, or None where there is none yet; SourceError when it cannot be read."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its readers do
            raise SourceError(path, f"not a checkpoint: {error!r}") from None
        return state


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a history as JSON and checkpoints hold it: NumPy's and torch's numbers as Python's."""
    plain = {
        key: value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value for key, value in row.items()
    }
    try:
        return dict(json.loads(json.dumps(plain)))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"on_epoch_end must return what JSON holds, numbers and text by name: {error}") from None
