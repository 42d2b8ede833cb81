"""What tells one run from another: the arguments that its folder is of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opq.config import CompressionOptions
from opq.rate_distortion.plan import Plan
from opq.training.batches import Loader
from opq.training.initialization import Start, opened
from opq.training.prepared_model import codebooks
from opq.training.trainer import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_arguments(
    model: nn.Module,
    loader: Loader,
    start: Start | None,
    teacher: Teacher | None,
    calibrated: bool,
    options: CompressionOptions,
    declared: Mapping[str, Any],
    accelerator: Accelerator | None,
) -> dict[str, Any]:
    """The arguments of a finetuning as JSON has them, the first process's in all of them: `told`, and digests of the rest.

    Of the loader only its length is told. Where a run starts at a file, `model` may hold any values; where it is calibrated,
    the inputs may be others than at first, as the run keeps the file that they made.
    """
    at_file = start is not None and not isinstance(start, Plan)
    arguments = {
        "network": None if at_file else fingerprint(model),
        "start": _start(start),
        "teacher": _teacher(teacher),
        "calibrated": calibrated,
        "batches": len(loader) if isinstance(loader, Sized) else None,
        "options": {key: repr(value) for key, value in options.items()},
        **declared,
    }
    if accelerator is not None:
        from accelerate.utils import broadcast_object_list

        (arguments,) = broadcast_object_list([arguments])
    return arguments


def fingerprint(model: nn.Module) -> str:
    """What tells a network from another: of its tensors; of a prepared one's, whose values a run moves, of its steps alone."""
    weights = codebooks(model)
    return _digest({weight.names[0]: weight.codebook.step for weight in weights} if weights else model.state_dict())


def _teacher(teacher: Teacher | None) -> str | None:
    if teacher is None:
        return None
    if isinstance(teacher, nn.Module):
        return fingerprint(teacher)
    return str(getattr(teacher, "__qualname__", type(teacher).__qualname__))


def _start(start: Start | None) -> str | None:
    if start is None:
        return None
    if isinstance(start, Plan):
        return f"a plan, sha256 {hashlib.sha256(start.to_json().encode()).hexdigest()}"
    with opened(start) as file:
        digest = hashlib.sha256(repr(file.entries).encode())
        for section in sorted({entry.section for entry in file.entries}):
            digest.update(file.section(section))
    return f"a file, sha256 {digest.hexdigest()}"


def _digest(tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):  # a module may keep anything as its extra state
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256 {digest.hexdigest()}"
