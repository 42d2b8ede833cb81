"""LayerConfig: settings of single weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from opq.config.checks import check_choice, finite_number
from opq.config.targets import Target, TwoStage
from opq.errors import ConfigError

ScalesName = Literal["auto", "none", "rows"]


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Fixed values for one weight. The other weights are chosen so that the target is met.

    With a `TwoStage` target, `sparsity` can be combined with either `bits` or `step`. With a byte target a weight is one point
    of a rate-distortion curve, so at most one of the three can be fixed.

    Args:
        sensitivity: Cost of a unit of error in this weight, > 0: of its squared error, or of its relative squared error, as
            `CompressionConfig.cost` says. None: 1.
        sparsity: Fraction of zeros, 0 <= sparsity < 1. With a byte target and compensated rounding it is met approximately.
        bits: With a `TwoStage` target the nominal width of a kept code, 1 < bits <= 16. With a byte target the entropy of the
            codes in bits per weight, for Laplace-distributed weights, 0 < bits <= 16.
        step: Quantization step in weight units, > 0; with scales that of a row whose scale is 0.
        scales: As CompressionConfig.scales; "auto" is "none" if one of the three is fixed. None: that of the config.
    """

    sensitivity: float | None = None
    sparsity: float | None = None
    bits: float | None = None
    step: float | None = None
    scales: ScalesName | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError if a number is not finite, or `scales` is unknown."""
        for key in ("sensitivity", "sparsity", "bits", "step"):
            if (value := getattr(self, key)) is not None:
                object.__setattr__(self, key, finite_number(f"layer config: {key}", value, ConfigError))
        if self.scales is not None:
            check_choice("layer config: scales", self.scales, get_args(ScalesName))

    @property
    def is_fixed(self) -> bool:
        """Whether sparsity, bits or step is given."""
        return any(value is not None for value in (self.sparsity, self.bits, self.step))

    def updated(self, other: LayerConfig) -> LayerConfig:
        """A copy in which the fields that `other` gives replace those of this config."""
        given = {key: value for key, value in vars(other).items() if value is not None}
        return LayerConfig(**{**vars(self), **given})

    def check(self, name: str, target: Target) -> None:
        """Check the ranges of values, which depend on the target.

        Args:
            name: Name of the weight, for the message.
            target: The target of the compression.

        Raises:
            ConfigError: Values are out of range or contradict each other.
        """
        two_stage = isinstance(target, TwoStage)
        fixed = [key for key in ("sparsity", "bits", "step") if getattr(self, key) is not None]
        clash = [key for key in fixed if key != "sparsity"] if two_stage else fixed
        if len(clash) > 1:
            raise ConfigError(f"layers[{name!r}]: {' and '.join(clash)} cannot both be fixed; give one of them")
        lowest = 1.0 if two_stage else 0.0
        for key, valid, rule in (
            ("sensitivity", self.sensitivity is None or self.sensitivity > 0.0, "be positive"),
            ("sparsity", self.sparsity is None or 0.0 <= self.sparsity < 1.0, "lie in [0, 1)"),
            ("bits", self.bits is None or lowest < self.bits <= 16.0, f"lie in ({lowest:g}, 16]"),
            ("step", self.step is None or 2.0**-126 <= self.step <= 2.0**127, "be positive and a normal float32"),
        ):
            if not valid:
                raise ConfigError(f"layers[{name!r}]: {key} must {rule}, got {getattr(self, key):g}")
        if two_stage and self.scales == "rows":
            raise ConfigError(f"layers[{name!r}]: scales must be 'none' with sparsity and bits, got 'rows'")
        if not two_stage and self.sparsity == 0.0:
            raise ConfigError(
                f"layers[{name!r}]: sparsity must lie in (0, 1) with a byte target, got 0; exclude the tensor instead"
            )
