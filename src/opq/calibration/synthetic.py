"""Synthetic calibration inputs of the kind that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from opq.calibration.inputs import Batch
from opq.calibration.synthetic_images import synthesize_images
from opq.calibration.synthetic_tokens import drawn_texts, draws_texts, random_tokens, vocabulary_of
from opq.errors import CalibrationError
from opq.progress import Progress, logger

SAMPLES = 128
"""Images that are generated."""


def synthesize(model: nn.Module, shape: Sequence[int] | None, *, seed: int, report: Progress) -> list[Batch]:
    """Generate inputs.

    Args:
        model: The network, in evaluation mode.
        shape: The shape of one input of floating point; None to find out what the network takes.
        seed: >= 0; equal seeds give equal inputs.
        report: Called while texts are drawn.

    Returns:
        Batches; none, after a warning, if the network takes neither images nor token ids. Calibrated on noise, networks of
        sound are worse than from the weights alone (docs/log.md).

    Raises:
        CalibrationError: The shape is none, or it is unknown what the network takes.
    """
    if shape is None:
        if (vocabulary := vocabulary_of(model)) is not None:
            if draws_texts(model, vocabulary):
                return [((text[None],), {}) for text in drawn_texts(model, seed=seed, report=report)]
            return [((random_tokens(model, vocabulary, seed=seed),), {})]
        shape = _image_shape(model)
    if not isinstance(shape, Sequence) or not shape or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise CalibrationError(f"shape must be that of one input, positive integers, got {shape!r}")
    if len(shape) == 3 and shape[0] in (1, 3):
        return [((synthesize_images(SAMPLES, shape, seed=seed),), {})]
    logger.warning(
        "opq generates images and token ids, not inputs of shape %s, so files are those of the weights alone; give real inputs",
        tuple(shape),
    )
    return []


def _image_shape(model: nn.Module) -> Sequence[int]:
    """The shape that timm's networks publish."""
    published = getattr(model, "default_cfg", None)
    size = published.get("input_size") if isinstance(published, dict) else None
    if size is None:
        raise CalibrationError("it is unknown what the network takes; give inputs, or the shape of one input")
    return tuple(size)
