"""A plan: how each weight is quantized, as plain numbers that can be printed, compared, and converted to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from opq.config import RoundingName, Target, target_from_dict, target_to_dict
from opq.config.checks import read_json
from opq.errors import ConfigError, PlanError, TargetError
from opq.rate_distortion import scales
from opq.text_table import format_table, html_text, step_text

_COLUMNS = ("weight", "shape", "zeros", "threshold", "step", "bits/weight", "bytes")
_JSON_FORMAT = "opq-plan-3"
_LARGEST_NUMBER = 1e300
_SHOWN = 2
"""Names of exact tensors that a plan's table shows for each reason."""
_ROUNDINGS = [name for name in get_args(RoundingName) if name != "auto"]


@dataclass(frozen=True)
class LayerPlan:
    """How one weight is pruned and quantized: code = sign(w) max(1, floor(|w|/step + rounding_offset)) if kept, 0 if pruned.

    With scales (`opq.rate_distortion.scales`), step and threshold of each element are the plan's times its factor.

    Args:
        shape: The weight's shape; axis 0 is the channel axis.
        step: Distance of neighbouring codebook values, in weight units, > 0, representable in float32.
        threshold: Magnitudes up to it are pruned, in weight units, >= 0.
        rounding_offset: 0..1: 1/2, or 1 - threshold/step with a dead zone.
        sparsity: Predicted fraction of zeros, 0..1.
        bits: Predicted bits per weight of the encoded codes.
        num_kept: Number of kept weights, which are the largest ones; it replaces `threshold`. None: `threshold` decides.
        max_codes: Largest code per channel, >= 1; None for no clipping.
        rounding: "deadzone": each weight is rounded alone. "compensated": `num_kept` and `max_codes` must be None.
        rows: Scale of each row (axis 0), -127..127; None if all are 0. `num_kept` and `max_codes` must be None with scales.
        columns: Scale of each column (position in a row), likewise.

    Raises:
        PlanError: A field has the wrong type or is out of range.
    """

    shape: tuple[int, ...]
    step: float
    threshold: float
    rounding_offset: float
    sparsity: float
    bits: float
    num_kept: int | None = None
    max_codes: tuple[int, ...] | None = field(default=None, repr=False)
    rounding: str = "deadzone"
    rows: tuple[int, ...] | None = field(default=None, repr=False)
    columns: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def scaled_axes(self) -> tuple[str, ...]:
        """Which of "rows" and "columns" have scales."""
        return tuple(key for key in ("rows", "columns") if getattr(self, key) is not None)

    @property
    def steps(self) -> float | NDArray[np.float32]:
        """The step of each element in weight units: `step`, or float32 numbers shaped to broadcast with the weight."""
        return scales.steps_like(self.step, self.rows, self.columns, self.shape)

    def __post_init__(self) -> None:
        """Check every field."""
        shape, max_codes = self.shape, self.max_codes
        if not isinstance(shape, tuple) or not all(_is_count(size) for size in shape):
            raise PlanError(f"shape must hold positive integers, got {shape!r}")
        for key in ("step", "threshold", "rounding_offset", "sparsity", "bits"):
            value = getattr(self, key)
            if not _is_number(value) or value < 0.0:
                raise PlanError(f"{key} must be a finite number >= 0, got {value!r}")
        if not 0.0 < self.step < 2.0**128 or float(np.float32(self.step)) != self.step:
            raise PlanError(f"step must be positive and a float32 number, got {self.step!r}")
        for key in ("rounding_offset", "sparsity"):
            if getattr(self, key) > 1.0:
                raise PlanError(f"{key} must lie in [0, 1], got {getattr(self, key)!r}")
        if self.num_kept is not None and not (type(self.num_kept) is int and 0 <= self.num_kept <= self.count):
            raise PlanError(f"num_kept must lie in [0, {self.count}], got {self.num_kept!r}")
        channels = shape[0] if shape else 1
        if max_codes is not None and not (
            isinstance(max_codes, tuple) and len(max_codes) == channels and all(_is_count(code) for code in max_codes)
        ):
            raise PlanError(f"max_codes must be {channels} integers >= 1, one per channel")
        if self.rounding not in _ROUNDINGS:
            raise PlanError(f"rounding must be one of {', '.join(map(repr, _ROUNDINGS))}, got {self.rounding!r}")
        if self.rounding == "compensated" and (self.num_kept is not None or max_codes is not None):
            raise PlanError("num_kept and max_codes must be null with compensated rounding")
        for key in self.scaled_axes:
            values = getattr(self, key)
            if not isinstance(values, tuple) or set(map(type, values)) != {int}:
                raise PlanError(f"{key} must be integers, got {values!r:.80}")
        problem = scales.misfit(self.rows, self.columns, shape)
        for key in self.scaled_axes:
            if not any(getattr(self, key)):
                object.__setattr__(self, key, None)
        if self.scaled_axes and (self.num_kept is not None or max_codes is not None):
            raise PlanError("rows and columns must be null with num_kept and max_codes")
        if problem := problem or scales.out_of_range(self.step, self.rows, self.columns):
            raise PlanError(problem)


@dataclass(frozen=True)
class AuxiliaryPlan:
    """How tensors that are not weights are stored.

    Args:
        storage: "exact", "float16" or "uint8"; see CompressionConfig.auxiliary.
        batch_norm: "keep" or "folded"; see CompressionConfig.batch_norm.
        eps: The eps of batch norms whose modules are not available, 0 <= eps < 1. None: they differ, so modules are required.

    Raises:
        PlanError: A field has the wrong type or is out of range.
    """

    storage: str = "exact"
    batch_norm: str = "keep"
    eps: float | None = 1e-5

    def __post_init__(self) -> None:
        """Check every field."""
        if self.storage not in ("exact", "float16", "uint8"):
            raise PlanError(f"storage must be 'exact', 'float16' or 'uint8', got {self.storage!r}")
        if self.batch_norm not in ("keep", "folded"):
            raise PlanError(f"batch_norm must be 'keep' or 'folded', got {self.batch_norm!r}")
        if self.eps is not None and (not _is_number(self.eps) or not 0.0 <= self.eps < 1.0):
            raise PlanError(f"eps must lie in [0, 1), got {self.eps!r}")


@dataclass(frozen=True)
class Plan:
    """How each weight of a network is quantized, and the predicted size of the file.

    Args:
        mode: "joint" (one rate-distortion trade-off for a byte target) or "two_stage" (sparsity first, then bits).
        target: The requested target.
        auxiliary: How tensors that are not weights are stored.
        lmbda: In joint mode the Lagrange multiplier lambda of all layers, sensitivity-weighted squared error per bit; otherwise
            None.
        dense_bytes: Bytes of all tensors as the source stores them; a weight that modules share counts once.
        predicted_bytes: Predicted bytes of the file.
        layers: {weight name: LayerPlan}.
        exact: {name of any other tensor: why it is not a weight}.

    Raises:
        PlanError: A field has the wrong type or is out of range.
    """

    mode: str
    target: Target
    auxiliary: AuxiliaryPlan
    lmbda: float | None
    dense_bytes: int
    predicted_bytes: int
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    exact: Mapping[str, str] = field(default_factory=dict)

    @property
    def budget(self) -> int | None:
        """The largest size in bytes that the target allows; None if it does not limit the bytes."""
        return self.target.budget(self.dense_bytes)

    @property
    def predicted_ratio(self) -> float:
        """Dense bytes over predicted file bytes."""
        return self.dense_bytes / self.predicted_bytes

    @property
    def sparsity(self) -> float:
        """Predicted fraction of zeros over all weights, 0..1."""
        total = sum(layer.count for layer in self.layers.values())
        return sum(layer.sparsity * layer.count for layer in self.layers.values()) / max(total, 1)

    def __str__(self) -> str:
        """A table with a row per layer, a table of the reasons why other tensors are no weights, and a line of totals."""
        rows = [
            (
                name,
                "x".join(map(str, layer.shape)) or "scalar",
                f"{100.0 * layer.sparsity:.2f}%",
                f"{layer.threshold:.4g}",
                step_text(layer.step, layer.scaled_axes),
                f"{layer.bits:.3f}",
                f"{layer.bits * layer.count / 8.0:,.0f}",
            )
            for name, layer in self.layers.items()
        ]
        return "\n".join([format_table(_COLUMNS, rows), *self._exact_rows(), self._totals()])

    def _exact_rows(self) -> list[str]:
        """A table of the reasons, the number of tensors of each, and some of their names; nothing if there is no tensor."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.exact.items():
            groups.setdefault(reason, []).append(name)
        rows = [
            (reason, f"{len(names):,}", ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else ""))
            for reason, names in sorted(groups.items(), key=lambda group: -len(group[1]))
        ]
        return ["", format_table(("not a weight, because", "tensors", "such as"), rows), ""] if rows else []

    def _totals(self) -> str:
        return (
            f"{self.mode} plan for {self.target}: {len(self.layers)} weights, {100.0 * self.sparsity:.2f}% zeros, "
            f"{self.predicted_bytes:,} of {self.dense_bytes:,} bytes predicted ({self.predicted_ratio:.2f}x)"
        )

    def __repr__(self) -> str:
        """The totals, in brackets: all layers are too much to print."""
        return f"<Plan: {self._totals()}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives back an equal plan."""
        document = {**asdict(self), "target": target_to_dict(self.target)}
        return json.dumps({"format": _JSON_FORMAT, **document}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of `to_json`.

        Raises:
            PlanError: The text is not JSON that `to_json` wrote.
        """
        try:
            document = read_json(text, _JSON_FORMAT, "the text")
        except ConfigError as error:
            raise PlanError(str(error)) from None
        layers = document.pop("layers", None)
        if not isinstance(layers, dict):
            raise PlanError('expected an object under "layers"')
        auxiliary = document.pop("auxiliary", None)
        if not isinstance(auxiliary, dict):
            raise PlanError('expected an object under "auxiliary"')
        exact = document.get("exact", {})
        if not isinstance(exact, dict) or not all(isinstance(reason, str) for reason in exact.values()):
            raise PlanError('expected an object of texts under "exact"')
        document["auxiliary"] = _build(AuxiliaryPlan, auxiliary)
        if "target" in document:
            try:
                document["target"] = target_from_dict(document["target"])
            except TargetError as error:
                raise PlanError(str(error)) from None
        return cast(Plan, _build(cls, {**document, "layers": {name: _layer(name, value) for name, value in layers.items()}}))

    def __post_init__(self) -> None:
        """Check every field."""
        if self.mode not in ("two_stage", "joint"):
            raise PlanError(f"mode must be 'joint' or 'two_stage', got {self.mode!r}")
        for key in ("dense_bytes", "predicted_bytes"):
            if not _is_count(getattr(self, key)):
                raise PlanError(f"{key} must be a positive integer, got {getattr(self, key)!r}")
        if not isinstance(self.target, Target):
            raise PlanError(f"target must be a Ratio, Size, TwoStage or Lossless, got {self.target!r}")
        if self.lmbda is not None and not (_is_number(self.lmbda) and self.lmbda > 0.0):
            raise PlanError(f"lmbda must be positive, got {self.lmbda!r}")


def _layer(name: str, values: Any) -> LayerPlan:
    if not isinstance(values, dict):
        raise PlanError(f"layer {name!r}: expected an object")
    lists = ("shape", "max_codes", "rows", "columns")
    tuples = {key: tuple(values[key]) for key in lists if isinstance(values.get(key), list)}
    try:
        return cast(LayerPlan, _build(LayerPlan, {**values, **tuples}))
    except PlanError as error:
        raise PlanError(f"layer {name!r}: {error.problem}") from None


def _build(kind: Any, values: dict[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise PlanError(f"unknown field {unknown[0]!r}")
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(required - set(values)):
        raise PlanError(f"missing field {missing[0]!r}")
    return kind(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
