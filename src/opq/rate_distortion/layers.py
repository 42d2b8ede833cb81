"""The input of rate-distortion allocation: statistics and settings of each layer."""

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
        laplace_scale: Mean magnitude over the whole weight, in weight units, >= 0.
        channel_scales: (channels,) float64: mean magnitude of each slice along axis 0, >= 0.
        zeros: Number of elements that are zero; 0 if `magnitudes` contains no zero.
        magnitudes: (samples,) ascending: an evenly spread sample of the magnitudes, or all of them. float32, or float64 for a
            float64 weight.
        excerpt: (rows, *shape[1:]): consecutive channels of the weight. It has no rows if a single channel is too large.
    """

    shape: tuple[int, ...]
    laplace_scale: float
    channel_scales: NDArray[np.float64] = field(repr=False)
    zeros: int
    magnitudes: NDArray[np.floating] = field(repr=False)
    excerpt: NDArray[np.floating] = field(repr=False)

    @property
    def count(self) -> int:
        """Number of elements, at least 1."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight in rate-distortion allocation.

    Args:
        name: Its state-dict key.
        statistics: Its statistics.
        config: Its settings.
        repeats: Name of an earlier weight with the same values; this one then takes no bytes. None if there is none.
        emphasis: With relative costs, how much its relative error counts; None with squared costs.
    """

    name: str
    statistics: LayerStatistics
    config: LayerConfig = field(default_factory=LayerConfig)
    repeats: str | None = None
    emphasis: float | None = None

    @property
    def sensitivity(self) -> float:
        """Cost of a unit of squared error.

        With squared costs it is that of the settings, 1 if they give none. With relative costs it is that times the emphasis,
        over the energy N s^2 of a layer of N weights with Laplace scale s.
        """
        given = 1.0 if self.config.sensitivity is None else self.config.sensitivity
        energy = self.statistics.count * self.statistics.laplace_scale**2
        return given if self.emphasis is None or energy == 0.0 else given * self.emphasis / energy
