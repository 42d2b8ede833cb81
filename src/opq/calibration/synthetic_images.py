"""Synthetic calibration images: opaque shapes of many sizes that occlude each other ("dead leaves", A. Lee et al., 2001).

They have the edges, the scale invariance and the correlations of photographs, but no objects. So their statistics inside the
network differ from those in its batch norms, which are known. A copy of the network takes the statistics of the synthetic
images into its batch norms. Behind each of them, every channel then has the mean and variance that real inputs give it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from opq.calibration.batch_norm_statistics import BATCH_NORMS
from opq.calibration.inputs import Batch
from opq.calibration.outputs import outputs_of

_SHAPES = 120
_SMALLEST, _LARGEST = 0.03, 0.5
_DISCS = 0.6


def synthesize_images(count: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Generate images.

    Args:
        count: How many, >= 1.
        shape: (channels, height, width), each >= 1.
        seed: >= 0; equal seeds give equal images.

    Returns:
        float32 (count, channels, height, width), of mean 0 and variance 1 over all values.
    """
    generator = np.random.default_rng(seed)
    images = torch.from_numpy(np.stack([_generate(tuple(shape), generator) for _ in range(count)])).float()
    return (images - images.mean()) / images.std().clamp(min=1e-6)


def recompute_statistics(model: nn.Module, batch: Batch) -> None:
    """Set the statistics of every batch norm to the mean and variance of its input.

    One forward pass suffices: each batch norm sees the output of those before it, with their new statistics.

    Args:
        model: The network, in evaluation mode; it is changed in place.
        batch: Inputs.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if not norms:
        return
    with torch.no_grad():
        outputs_of(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _generate(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """One image, (channels, height, width), values in 0..1."""
    channels, height, width = shape
    side = max(height, width)
    contrast = generator.uniform(0.05, 0.35)
    background = generator.normal(0.45, 0.25, channels)
    image = np.repeat(np.clip(background, 0.0, 1.0), height * width).reshape(shape)
    # The density r^-3 of radii makes images scale invariant.
    radii = generator.uniform(_LARGEST**-2, _SMALLEST**-2, _SHAPES) ** -0.5
    for radius in radii if generator.random() < 0.5 else np.sort(radii)[::-1]:
        across, down = generator.uniform(-0.1, 1.1, 2)
        angle, flatness = generator.uniform(0.0, math.pi), generator.uniform(0.4, 1.0)
        # No shape reaches beyond the corners of its square; only the pixels in reach are computed.
        reach = 1.5 * radius
        top, bottom = (min(max(math.floor(side * at), 0), height) for at in (down - reach, down + reach + 1.0 / side))
        left, right = (min(max(math.floor(side * at), 0), width) for at in (across - reach, across + reach + 1.0 / side))
        y, x = np.mgrid[top:bottom, left:right] / side
        u = (x - across) * math.cos(angle) + (y - down) * math.sin(angle)
        v = (y - down) * math.cos(angle) - (x - across) * math.sin(angle)
        if generator.random() < _DISCS:
            inside = u**2 + (v / flatness) ** 2 < radius**2
        else:
            inside = (np.abs(u) < radius) & (np.abs(v) < radius * flatness)
        colour = background + generator.normal(0.0, 1.2 * contrast) + generator.normal(0.0, 0.5 * contrast, channels)
        slope = generator.normal(0.0, 0.7 * contrast, 2)
        image[:, top:bottom, left:right][:, inside] = colour[:, None] + (slope[0] * u[inside] + slope[1] * v[inside]) / radius
    image = image + generator.normal(0.0, generator.uniform(0.0, 0.04), shape)
    return np.asarray(np.clip(image, 0.0, 1.0))
