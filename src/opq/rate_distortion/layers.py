"""The input of rate-distortion allocation: statistics and settings of each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from opq.config import LayerConfig
from opq.rate_distortion import scales


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of one weight, or, if `rows` is given, of a weight whose rows are divided by the factors of these scales.

    Args:
        shape: The weight's shape; axis 0 is the channel axis.
        laplace_scale: Mean magnitude over the whole weight, in weight units, >= 0.
        channel_scales: (channels,) float64: mean magnitude of each slice along axis 0, >= 0.
        zeros: Number of elements that are zero; 0 if `magnitudes` contains no zero.
        magnitudes: (samples,) ascending: an evenly spread sample of the magnitudes, or all of them. float32, or float64 for a
            float64 weight.
        sample: (samples,) the same magnitudes in row-major order: those at the positions 0, stride, 2 stride, ...
        stride: Distance of their positions, >= 1.
        excerpt: (rows, *shape[1:]): channels from the middle of the weight itself. It has no rows if a single channel is too
            large.
        rows: Scale of each row, if the statistics are those of the scaled weight; None: those of the weight itself.
    """

    shape: tuple[int, ...]
    laplace_scale: float
    channel_scales: NDArray[np.float64] = field(repr=False)
    zeros: int
    magnitudes: NDArray[np.floating] = field(repr=False)
    sample: NDArray[np.floating] = field(repr=False)
    stride: int
    excerpt: NDArray[np.floating] = field(repr=False)
    rows: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Number of elements, at least 1."""
        return math.prod(self.shape)

    @property
    def excerpt_rows(self) -> tuple[int, ...] | None:
        """The scales of the excerpt's channels."""
        start = (len(self.channel_scales) - len(self.excerpt)) // 2
        return self.rows and self.rows[start : start + len(self.excerpt)]

    def by_rows(self, power: float = 1.0) -> LayerStatistics:
        """The statistics of the weight whose rows are divided by the factors of their measured scales, if not all are 0.

        Args:
            power: As in `opq.rate_distortion.scales.measured_rows`.
        """
        rows = scales.measured_rows(self.channel_scales, power)
        if not rows.any():
            return self
        factors = scales.steps(1.0, rows, None)[:, 0]
        width = self.count // len(rows)
        starts = -(-np.arange(len(rows) + 1) * width // self.stride)  # of each row, in the sample
        sample: NDArray[np.floating] = np.divide(self.sample, np.repeat(factors, np.diff(starts)))
        channel_scales = self.channel_scales / factors
        return replace(
            self,
            laplace_scale=float(channel_scales.mean()),
            channel_scales=channel_scales,
            magnitudes=np.sort(sample),
            sample=sample,
            rows=tuple(rows.tolist()),
        )


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight in rate-distortion allocation.

    Args:
        name: Its state-dict key.
        statistics: Its statistics.
        config: Its settings.
        repeats: Name of an earlier weight with the same values; this one then takes no bytes. None if there is none.
        cost: Factor of the sensitivity: 1 with squared costs; see `opq.rate_distortion.costs`.
        trellis: Whether its codes follow a trellis at steps for which `opq.rate_distortion.trellis` is made.
    """

    name: str
    statistics: LayerStatistics
    config: LayerConfig = field(default_factory=LayerConfig)
    repeats: str | None = None
    cost: float = 1.0
    trellis: bool = False

    @property
    def sensitivity(self) -> float:
        """Cost of a unit of squared error: that of the settings, 1 if they give none, times `cost`."""
        return self.cost * (1.0 if self.config.sensitivity is None else self.config.sensitivity)
