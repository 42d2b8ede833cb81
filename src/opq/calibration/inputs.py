"""Calibration inputs: batches to one tensor, and the part of them on which files are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from opq.errors import CalibrationError

SHARE, MOST, FEWEST = 8, 64, 16
"""One of SHARE inputs is held out, at most MOST; of fewer than FEWEST inputs none is, and all of them are compared on."""


def concatenate(batches: Iterable[Tensor | Sequence[Tensor]]) -> Tensor:
    """The inputs of all batches, (samples, ...); labels are dropped.

    Args:
        batches: Inputs, or tuples of inputs and labels.

    Raises:
        CalibrationError: They are anything else, or differ in shape.
    """
    if not isinstance(batches, Iterable):
        raise CalibrationError(f"inputs must be a tensor or batches of tensors, got {type(batches).__name__}")
    try:
        inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
        if others := [item for item in inputs if not isinstance(item, Tensor)]:
            got = f"{type(batches).__name__} of {type(others[0]).__name__}"
            raise CalibrationError(f"batches must hold inputs as tensors, got {got}")
        return torch.cat(cast(list[Tensor], inputs)) if inputs else torch.zeros(0)
    except (RuntimeError, TypeError, LookupError) as error:
        raise CalibrationError(f"batches must hold inputs of one shape: {error}") from None


def split(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs to calibrate on, and those to compare on: the last ones.

    Args:
        inputs: (samples, ...), at least one.
    """
    if len(inputs) < FEWEST:
        return inputs, inputs
    count = min(len(inputs) // SHARE, MOST)
    return inputs[:-count], inputs[-count:]
