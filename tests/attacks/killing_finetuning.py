"""Kills finetuning many times, resumes in the same folder each time, and compares with an uninterrupted run.

The network is so small that an epoch takes milliseconds, much of it for writing its folder. Processes are forked from one that
has imported everything, including PyTorch's late imports, and computed nothing: kills hit the work, not the imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import opq
import opq.training.finetune
from opq.training.run_folder import ARGUMENTS, CHECKPOINT, FILE, HISTORY, PLAN, RunFolder

EPOCHS = 40
_PART = 0.25
"""The longest time until a kill, as a share of the time of a run."""

Row = dict[str, Any]


@dataclass
class Kills:
    """What was done.

    kills    processes killed before they ended
    writing  those of them that were writing, and so left a temporary file
    reached  checkpoints of different epochs that were checked
    runs     completed runs, each with the bytes of the uninterrupted one
    """

    kills: int = 0
    writing: int = 0
    reached: int = 0
    runs: int = 0


def kill_finetuning(folder: Path, moments: int, seed: int) -> Kills:
    """Kill `moments` processes that finetune, over as many runs as needed, and complete the last run.

    Raises SystemExit if a file in the folder of a run is damaged, if a checkpoint differs from that of the uninterrupted run
    after as many epochs, or if the result differs from that of the uninterrupted run.
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    start = time.perf_counter()
    _finetune_apart(folder / "whole", None)
    longest = _PART * (time.perf_counter() - start)
    chance, done = random.Random(seed), Kills()  # noqa: S311 - moments, not secrets
    while done.kills < moments:
        run, epochs = folder / f"run{done.runs}", 0
        while not _finetune_apart(run, chance.uniform(0.0, longest) if done.kills < moments else None):
            done.kills += 1
            done.writing += any(run.glob("*.tmp"))
            before, epochs = epochs, _look(run, folder / "whole", epochs)
            done.reached += epochs > before
        if (run / FILE).read_bytes() != (folder / "whole" / FILE).read_bytes():
            raise SystemExit(f"{run / FILE} is not the file of a run that was never interrupted")
        done.runs += 1
    return done


def _finetune_apart(folder: Path, seconds: float | None) -> bool:
    """Finetune in a forked process, which is killed after `seconds`. Returns whether it ended before."""
    process = os.fork()
    if process == 0:
        try:
            _finetune(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"{folder}: finetuning ended with {status}")
    return status == 0


def _finetune(folder: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    images = TensorDataset(torch.randn(32, 3, 6, 6), torch.arange(32) % 4)
    loader = DataLoader(images, batch_size=16, shuffle=True, generator=torch.Generator())
    start = opq.CompressionConfig(target=opq.Ratio(4.0))
    training = opq.TrainingConfig(epochs=EPOCHS, label_weight=0.5, ema_decay=0.9)
    opq.finetune(network, loader, start, training, teacher="dense", folder=folder, on_epoch_end=_digest_row, progress=False)


def _digest_row(network: nn.Module) -> Row:
    return {"digest": _digest(network.state_dict())}


def _digest(state: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in sorted(state.items()))).hexdigest()


def _look(run: Path, whole: Path, epochs: int) -> int:
    """Compare the folder of a run with the uninterrupted one. Returns the epochs of its checkpoint, at least `epochs`."""
    for name in (ARGUMENTS, PLAN, FILE):
        if (run / name).exists() and (run / name).read_bytes() != (whole / name).read_bytes():
            raise SystemExit(f"{run / name} is not what the uninterrupted run has")
    expected = _rows(whole)
    if _rows(run) != expected[: len(_rows(run))]:
        raise SystemExit(f"{run / HISTORY} is not the beginning of the uninterrupted run's")
    checkpoint = RunFolder(run).load()  # raises if it is damaged
    reached = len(checkpoint["history"]) if checkpoint else 0
    if reached < epochs or (epochs and not reached):
        raise SystemExit(f"{run / CHECKPOINT} stood at epoch {epochs} and stands at {reached}")
    if checkpoint and _digest(checkpoint["model"]) != expected[reached - 1]["digest"]:
        raise SystemExit(f"{run / CHECKPOINT} is not the uninterrupted run's after epoch {reached}")
    return reached


def _rows(folder: Path) -> list[Row]:
    path = folder / HISTORY
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
