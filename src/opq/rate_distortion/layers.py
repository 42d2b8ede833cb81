"""What allocation knows of a layer: its statistics, and what the user fixed about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from opq.config import LayerConfig


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of one weight.

    Args:
        shape: The weight's shape; axis 0 is the channel axis.
        laplace_scale: Mean magnitude over the whole weight, in its own unit, >= 0.
        channel_scales: float64 (channels,): mean magnitude of each slice along axis 0, >= 0.
        zeros: How many weights are zero already.
        magnitudes: (sampled,), ascending: an evenly spread sample of the magnitudes, or all of them; float32, or float64 for a
            float64 weight.
        excerpt: Some neighbouring channels of the weight itself, shaped (some, *shape[1:]), or none of it.
    """

    shape: tuple[int, ...]
    laplace_scale: float
    channel_scales: NDArray[np.float64]
    zeros: int
    magnitudes: NDArray[np.floating]
    excerpt: NDArray[np.floating]

    @property
    def count(self) -> int:
        """Number of weights, at least 1."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Layer:
    """A named weight as allocation sees it.

    Args:
        name: Its state-dict key.
        statistics: Its statistics.
        config: What the user fixed about it.
        repeats: Name of an earlier weight with the same values, whose bytes serve for this one too; else None.
    """

    name: str
    statistics: LayerStatistics
    config: LayerConfig = field(default_factory=LayerConfig)
    repeats: str | None = None

    @property
    def sensitivity(self) -> float:
        """Cost of a unit of squared error, 1 unless the user fixed it."""
        return 1.0 if self.config.sensitivity is None else self.config.sensitivity
