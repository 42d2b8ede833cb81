"""Trainings of plain networks, which resume from their folders and refuse the folder of another training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness import Row
from torch import nn

import opq
from opq.training.batches import Loader
from opq.training.fingerprint import fingerprint
from opq.training.run_folder import RunFolder
from opq.training.trainer import Teacher, Trainer


def train(
    model: nn.Module,
    loader: Loader,
    config: opq.TrainingConfig,
    folder: Path,
    *,
    teacher: Teacher | None = None,
    on_epoch_end: Callable[[nn.Module], Row] | None = None,
) -> list[Row]:
    """Train `model`, or resume its training from `folder`.

    Args:
        model: The network, which is trained in place.
        loader: The batches.
        config: How to train.
        folder: The folder of checkpoints and history.
        teacher: Gives logits for distillation, or None.
        on_epoch_end: Called with the network after each epoch; what it returns goes into the history.

    Returns:
        The history, a row per epoch.

    Raises:
        SourceError: The folder belongs to another network, or to another config.
    """
    run = RunFolder(folder)
    run.claim({"network": fingerprint(model), "training": config.describe()})
    return Trainer(model, loader, config, teacher, run, on_epoch_end=on_epoch_end).run()
