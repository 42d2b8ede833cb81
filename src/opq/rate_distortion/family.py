"""Family: the interface between joint allocation and a family of quantizers."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import ArrayLike

from opq.rate_distortion.laplace import Floats


class Family(Protocol):
    """A family of quantizers of a unit layer, one for each lambda. The modules `uniform` and `deadzone` implement it."""

    FINEST_STEP: float
    COARSEST_STEP: float

    def thresholds_and_steps(self, lmbda: ArrayLike) -> tuple[Floats, Floats]:
        """Thresholds and steps at `lmbda` >= 0."""

    def threshold_for_step(self, step: float) -> float:
        """The threshold that belongs to `step`."""

    def step_for_threshold(self, threshold: float) -> float:
        """The step that belongs to `threshold`."""

    def lambda_range(self) -> tuple[float, float]:
        """The lambdas of the finest and the coarsest quantizer; values beyond them give the same quantizers."""
