"""Trainings of plain networks, which go on from their folders and from no other network's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness import Row
from torch import nn

import opq
from opq.training.batches import Loader
from opq.training.fingerprint import fingerprint
from opq.training.run_folder import RunFolder
from opq.training.trainer import Teacher, Training


def train(
    model: nn.Module,
    loader: Loader,
    epochs: int,
    recipe: opq.TrainingConfig,
    folder: Path,
    *,
    seed: int,
    teacher: Teacher | None = None,
    watch: Callable[[nn.Module], Row] | None = None,
) -> list[Row]:
    """Train `model`, or take it from `folder` as far as it was trained there; the history, a row an epoch.

    Raises SourceError where the folder is of another network, or of the same one with other epochs, recipe or seed.
    """
    run = RunFolder(folder)
    run.claim({"network": fingerprint(model), "epochs": epochs, "seed": seed, "recipe": recipe.described()})
    return Training(model, loader, epochs, recipe, teacher, seed, run, watch=watch).run()
