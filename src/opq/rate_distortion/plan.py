"""A plan: what becomes of every weight, as plain numbers that print, compare, and go to JSON and back unchanged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import numpy as np

from opq.errors import PlanError
from opq.text_table import format_table

_COLUMNS = ("weight", "shape", "zeros", "threshold", "step", "bits/weight", "bytes")
_JSON_FORMAT = "opq-plan-1"
_LARGEST_NUMBER = 1e300


@dataclass(frozen=True)
class LayerPlan:
    """How one weight is pruned and quantized: code = sign(w) max(1, floor(|w|/step + offset)) where kept, 0 where pruned.

    shape            the weight's shape; axis 0 is the channel axis
    step             distance of neighbouring codebook values, in weight units, > 0, representable in float32
    threshold        weights of magnitude at or under it are pruned, in weight units, >= 0
    rounding_offset           rounding offset, 0..1: 1/2, or 1 - threshold/step with a dead zone
    num_kept             exactly how many weights stay, the largest ones, in place of `threshold`; None where it decides
    max_codes           largest code of each channel, >= 1, or None for no clipping
    shaped           whether w is first moved by what makes up for the errors before it (opq.quantization.error_feedback); then `kept`
                     and `limits` are None
    sparsity         predicted fraction of zeros
    bits             predicted bits a weight: the entropy of the codes
    laplace_bits     the same as the Laplace density alone predicts it
    """

    shape: tuple[int, ...]
    step: float
    threshold: float
    rounding_offset: float
    sparsity: float
    bits: float
    laplace_bits: float
    num_kept: int | None = None
    max_codes: tuple[int, ...] | None = None
    shaped: bool = False

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def __post_init__(self) -> None:
        """Raise PlanError when a field is of the wrong kind or outside of its range."""
        shape, limits = self.shape, self.max_codes
        if not isinstance(shape, tuple) or not all(_is_count(size) for size in shape):
            raise PlanError(f"shape must hold positive integers, got {shape!r}")
        for key in ("step", "threshold", "rounding_offset", "sparsity", "bits", "laplace_bits"):
            value = getattr(self, key)
            if not _is_number(value) or value < 0.0:
                raise PlanError(f"{key} must be a finite number >= 0, got {value!r}")
        if not 0.0 < self.step < 2.0**128 or float(np.float32(self.step)) != self.step:
            raise PlanError(f"step must be positive and a float32, got {self.step!r}")
        if self.rounding_offset > 1.0 or self.sparsity > 1.0:
            raise PlanError(
                f"rounding_offset and sparsity must lie in [0, 1], got {self.rounding_offset!r} and {self.sparsity!r}"
            )
        if self.num_kept is not None and not (type(self.num_kept) is int and 0 <= self.num_kept <= self.count):
            raise PlanError(f"num_kept must lie in [0, {self.count}], got {self.num_kept!r}")
        channels = shape[0] if shape else 1
        if limits is not None and not (
            isinstance(limits, tuple) and len(limits) == channels and all(_is_count(limit) for limit in limits)
        ):
            raise PlanError(f"max_codes must be {channels} integers >= 1, one a channel")
        if not isinstance(self.shaped, bool) or (self.shaped and (self.num_kept is not None or limits is not None)):
            raise PlanError("shaped must be true or false, and where it is true num_kept and max_codes must be null")


@dataclass(frozen=True)
class AuxiliaryPlan:
    """How tensors that are no weights are stored.

    storage     "exact", "half" or "8bit"
    batch_norm  "keep", or "canonical": running means become 0 and running variances a constant, weights and biases what makes
                up for it
    eps         what a batch-norm adds to its variances where no module tells, 0 <= eps < 1; None where modules must, as they
                differ
    """

    storage: str = "exact"
    batch_norm: str = "keep"
    eps: float | None = 1e-5

    def __post_init__(self) -> None:
        """Raise PlanError when a field is of the wrong kind or outside of its range."""
        if self.storage not in ("exact", "half", "8bit"):
            raise PlanError(f"auxiliary must be 'exact', 'half' or '8bit', got {self.storage!r}")
        if self.batch_norm not in ("keep", "canonical"):
            raise PlanError(f"batch_norm must be 'keep' or 'canonical', got {self.batch_norm!r}")
        if self.eps is not None and (not _is_number(self.eps) or not 0.0 <= self.eps < 1.0):
            raise PlanError(f"eps of batch-norms must be a number, 0 <= eps < 1, got {self.eps!r}")


@dataclass(frozen=True)
class Plan:
    """What becomes of every weight of a network, and of how many bytes.

    mode             "paper" (sparsity and bits fixed first) or "joint" (one rate-distortion trade-off, bytes fixed)
    target           what was asked: {"sparsity": p, "bits": b}, {"ratio": r} or {"bytes": n}
    auxiliary        how tensors that are no weights are stored
    price            joint mode: squared error that a bit is worth, the one scalar that places every layer; else None
    dense_bytes      bytes of all tensors as the source stores them, a weight that modules share once
    predicted_bytes  bytes of the finished file as predicted
    layers           {weight name: LayerPlan}
    """

    mode: str
    target: Mapping[str, float]
    auxiliary: AuxiliaryPlan
    lmbda: float | None
    dense_bytes: int
    predicted_bytes: int
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)

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
        """A table with a row a layer and a closing line of totals."""
        rows = [
            (
                name,
                "x".join(map(str, layer.shape)) or "scalar",
                f"{100.0 * layer.sparsity:.2f}%",
                f"{layer.threshold:.4g}",
                f"{layer.step:.4g}",
                f"{layer.bits:.3f}",
                f"{layer.bits * layer.count / 8.0:,.0f}",
            )
            for name, layer in self.layers.items()
        ]
        asked = ", ".join(f"{key} {value:g}" for key, value in self.target.items())
        total = (
            f"{self.mode} plan for {asked}: {len(rows)} weights, {100.0 * self.sparsity:.2f}% zeros, "
            f"{self.predicted_bytes:,} of {self.dense_bytes:,} bytes predicted ({self.predicted_ratio:.2f}x)"
        )
        return f"{format_table(_COLUMNS, rows)}\n{total}"

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives back an equal plan."""
        document = asdict(self)
        return json.dumps({"format": _JSON_FORMAT, **document}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; PlanError when the text is anything else."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not JSON: {error}") from None
        if not isinstance(document, dict) or document.pop("format", None) != _JSON_FORMAT:
            raise PlanError(f'expected an object with "format": "{_JSON_FORMAT}"')
        layers = document.pop("layers", None)
        if not isinstance(layers, dict):
            raise PlanError('expected an object under "layers"')
        auxiliary = document.pop("auxiliary", None)
        if not isinstance(auxiliary, dict):
            raise PlanError('expected an object under "auxiliary"')
        document["auxiliary"] = _build(AuxiliaryPlan, auxiliary)
        plan: Plan = _build(cls, {**document, "layers": {name: _layer(name, value) for name, value in layers.items()}})
        return plan

    def __post_init__(self) -> None:
        """Raise PlanError when a field is of the wrong kind or outside of its range."""
        if self.mode not in ("paper", "joint"):
            raise PlanError(f"unknown mode {self.mode!r}")
        for key in ("dense_bytes", "predicted_bytes"):
            if not _is_count(getattr(self, key)):
                raise PlanError(f"{key} must be a positive integer, got {getattr(self, key)!r}")
        if not isinstance(self.target, Mapping) or not all(_is_number(value) for value in self.target.values()):
            raise PlanError(f"target must map names to numbers, got {self.target!r}")
        if self.lmbda is not None and not (_is_number(self.lmbda) and self.lmbda > 0.0):
            raise PlanError(f"price must be positive, got {self.lmbda!r}")


def _layer(name: str, values: Any) -> LayerPlan:
    if not isinstance(values, dict):
        raise PlanError(f"layer {name!r}: expected an object")
    tuples = {key: tuple(values[key]) for key in ("shape", "max_codes") if isinstance(values.get(key), list)}
    try:
        layer: LayerPlan = _build(LayerPlan, {**values, **tuples})
    except PlanError as error:
        raise PlanError(f"layer {name!r}: {error.problem}") from None
    return layer


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
