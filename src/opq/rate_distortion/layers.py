"""What allocation knows of a layer: its statistics, and what the user fixed about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from opq.errors import TargetError


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One weight, measured.

    shape           the weight's shape; axis 0 is the channel axis
    laplace_scale   mean magnitude over the whole weight, in its own unit, >= 0
    channel_scales  float64 (channels,): mean magnitude of each slice along axis 0, >= 0
    zeros           how many weights are zero already
    magnitudes      (sampled,), ascending: an evenly spread sample of the magnitudes, or all of them; float32, or float64 for
                    a float64 weight
    excerpt         some neighbouring channels of the weight itself, shaped (some, *shape[1:]), or none of it
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


@dataclass(frozen=True)
class LayerConfig:
    """What a user fixes of one layer; the rest of the network then makes up the target.

    sensitivity  > 0: what a unit of squared error costs in this layer, relative to 1
    sparsity     0 <= s < 1: the layer's fraction of zeros; with a byte target and shaped rounding it comes near it
    bits         the layer's width: in paper mode the nominal width of a kept code, 1 < b <= 16; in joint mode the entropy
                 of its codes in bits a weight, as the Laplace density has it, 0 < b <= 16
    step         > 0, in weight units: the layer's quantization step

    In paper mode `sparsity` goes with either of `bits` and `step`. In joint mode a layer is one point of the rate-distortion
    curve, so at most one of the three fixes it.
    """

    sensitivity: float = 1.0
    sparsity: float | None = None
    bits: float | None = None
    step: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether it fixes more than a weight's share in the network."""
        return any(value is not None for value in (self.sparsity, self.bits, self.step))

    def check(self, name: str, *, joint: bool) -> None:
        """Raise TargetError when the values are out of range or contradict each other in the given mode."""
        fixed = [key for key in ("sparsity", "bits", "step") if getattr(self, key) is not None]
        clash = fixed if joint else [key for key in fixed if key != "sparsity"]
        if len(clash) > 1:
            raise TargetError(f"override of {name!r}: {' and '.join(clash)} cannot both be fixed; give one of them")
        low = 0.0 if joint else 1.0
        for key, valid, rule in (
            ("sensitivity", 0.0 < self.sensitivity < np.inf, "be positive"),
            ("sparsity", self.sparsity is None or 0.0 <= self.sparsity < 1.0, "lie in [0, 1)"),
            ("bits", self.bits is None or low < self.bits <= 16.0, f"lie in ({low:g}, 16]"),
            ("step", self.step is None or 2.0**-126 <= self.step <= 2.0**127, "be positive and a normal float32"),
        ):
            if not valid:
                raise TargetError(f"override of {name!r}: {key} must {rule}, got {getattr(self, key):g}")
        if joint and self.sparsity == 0.0:
            raise TargetError(
                f"override of {name!r}: with a byte target sparsity must lie in (0, 1); exclude the tensor instead"
            )


@dataclass(frozen=True, eq=False)
class Layer:
    """A named weight as allocation sees it.

    repeats  name of an earlier weight with the same values, whose bytes then serve for this one too; else None
    """

    name: str
    statistics: LayerStatistics
    override: LayerConfig = field(default_factory=LayerConfig)
    repeats: str | None = None
