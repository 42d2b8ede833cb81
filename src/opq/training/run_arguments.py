"""The arguments that identify a run, with digests of networks and files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

from torch import nn

from opq.config import CompressionConfig
from opq.rate_distortion.plan import Plan
from opq.training.batches import Loader
from opq.training.config import TrainingConfig
from opq.training.fingerprint import fingerprint
from opq.training.initialization import opened
from opq.training.objective import LossFunction, LossName
from opq.training.prepared_model import Start
from opq.training.trainer import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_arguments(
    model: nn.Module,
    loader: Loader,
    start: Start | None,
    training: TrainingConfig,
    *,
    teacher: Teacher | None,
    loss: LossName | LossFunction | None,
    calibrated: bool,
    budget: int | None,
    accelerator: Accelerator | None,
    loader_settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Describe the arguments of a finetuning as JSON values, equal in all processes.

    Networks and files are represented by digests, and the loader by its length and the given settings. If the run starts from a
    file, the values of `model` do not matter. Calibration inputs are not included, because the run folder keeps the file made
    from them.

    Args:
        model: The network, plain or prepared.
        loader: As in `opq.finetune`.
        start: As in `opq.finetune`; None for a prepared network.
        training: The training settings.
        teacher: As in `opq.finetune`; None for none.
        loss: As in `opq.finetune`.
        calibrated: Whether a calibration is given.
        budget: Requested bytes of the file; None for the default.
        accelerator: As in `opq.finetune`; the arguments of its first process are used in all processes.
        loader_settings: As in `opq.finetune`.

    Returns:
        JSON values by name.

    Raises:
        SourceError, FormatError: The start file cannot be read.
    """
    from_file = start is not None and not isinstance(start, Plan | CompressionConfig)
    arguments = {
        "network": None if from_file else fingerprint(model),
        "start": _describe_start(start),
        "teacher": _describe_teacher(teacher),
        "loss": _describe_function(loss) if callable(loss) else loss,
        "calibrated": calibrated,
        "batches": len(loader) if isinstance(loader, Sized) else None,
        "loader": None if loader_settings is None else dict(loader_settings),
        "budget": budget,
        "training": training.describe(),
    }
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        (arguments,) = broadcast_object_list([arguments])
    return arguments


def _describe_teacher(teacher: Teacher | None) -> str | None:
    if teacher is None:
        return None
    if isinstance(teacher, nn.Module):
        return fingerprint(teacher)
    return _describe_function(teacher)


def _describe_function(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _describe_start(start: Start | None) -> Any:
    if start is None:
        return None
    if isinstance(start, CompressionConfig):
        return start.to_dict()
    if isinstance(start, Plan):
        return f"a plan, sha256 {hashlib.sha256(start.to_json().encode()).hexdigest()}"
    with opened(start) as file:
        digest = hashlib.sha256(repr(file.entries).encode())
        for section in sorted({entry.section for entry in file.entries}):
            digest.update(file.section(section))
    return f"a file, sha256 {digest.hexdigest()}"
