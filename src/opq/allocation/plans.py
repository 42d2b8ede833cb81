"""A plan: what becomes of every weight, as plain numbers that print, compare, and go to JSON and back unchanged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from opq.errors import PlanError
from opq.tables import render

_COLUMNS = ("weight", "shape", "zeros", "threshold", "step", "bits/weight", "bytes")
_JSON_FORMAT = "opq-plan-1"


@dataclass(frozen=True)
class LayerPlan:
    """How one weight is pruned and quantized: code = sign(w) max(1, floor(|w|/step + offset)) where kept, 0 where pruned.

    shape            the weight's shape; axis 0 is the channel axis
    step             distance of neighbouring codebook values, in weight units, > 0, representable in float32
    threshold        weights of magnitude at or under it are pruned, in weight units, >= 0
    offset           rounding offset, 0..1: 1/2 in paper mode, 1 - threshold/step in joint mode
    kept             exactly how many weights stay, the largest ones, in place of `threshold`; None where it decides
    limits           largest code of each channel, >= 1, or None for no clipping
    sparsity         predicted fraction of zeros
    bits             predicted bits a weight: the entropy of the codes
    laplace_bits     the same as the Laplace density alone predicts it
    """

    shape: tuple[int, ...]
    step: float
    threshold: float
    offset: float
    sparsity: float
    bits: float
    laplace_bits: float
    kept: int | None = None
    limits: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def check(self, name: str) -> None:
        """Raise PlanError when a number is outside of its range."""
        numbers = {key: getattr(self, key) for key in ("step", "threshold", "offset", "sparsity", "bits", "laplace_bits")}
        for key, value in numbers.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0.0:
                raise PlanError(f"layer {name!r}: {key} must be a finite number >= 0, got {value!r}")
        if self.step <= 0.0 or float(np.float32(self.step)) != self.step:
            raise PlanError(f"layer {name!r}: step must be positive and a float32, got {self.step!r}")
        if self.offset > 1.0 or self.sparsity > 1.0:
            raise PlanError(f"layer {name!r}: offset and sparsity must lie in [0, 1], got {self.offset!r}, {self.sparsity!r}")
        if any(not isinstance(size, int) or size < 1 for size in self.shape):
            raise PlanError(f"layer {name!r}: shape must hold positive integers, got {self.shape!r}")
        if self.kept is not None and not (isinstance(self.kept, int) and 0 <= self.kept <= self.count):
            raise PlanError(f"layer {name!r}: kept must lie in [0, {self.count}], got {self.kept!r}")
        if self.limits is not None:
            channels = self.shape[0] if self.shape else 1
            if len(self.limits) != channels or any(not isinstance(k, int) or k < 1 for k in self.limits):
                raise PlanError(f"layer {name!r}: limits must be {channels} integers >= 1, one a channel")


@dataclass(frozen=True)
class Plan:
    """What becomes of every weight of a network, and of how many bytes.

    mode             "paper" (sparsity and bits fixed first) or "joint" (one rate-distortion trade-off, bytes fixed)
    target           what was asked: {"sparsity": p, "bits": b}, {"ratio": r} or {"bytes": n}
    auxiliary        "exact" or "half": how tensors that are no weights are stored
    price            joint mode: squared error that a bit is worth, the one scalar that places every layer; else None
    dense_bytes      bytes of all tensors as the source stores them
    predicted_bytes  bytes of the finished file as predicted
    layers           {weight name: LayerPlan}
    """

    mode: str
    target: Mapping[str, float]
    auxiliary: str
    price: float | None
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
        return f"{render(_COLUMNS, rows)}\n{total}"

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives back an equal plan."""
        document = asdict(self)
        return json.dumps({"format": _JSON_FORMAT, **document}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; PlanError when the text is anything else."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise PlanError(f"not JSON: {error}") from None
        if not isinstance(document, dict) or document.pop("format", None) != _JSON_FORMAT:
            raise PlanError(f'expected an object with "format": "{_JSON_FORMAT}"')
        layers = document.pop("layers", None)
        if not isinstance(layers, dict):
            raise PlanError('expected an object under "layers"')
        plan: Plan = _build(cls, "plan", {**document, "layers": {name: _layer(name, value) for name, value in layers.items()}})
        if plan.mode not in ("paper", "joint") or plan.auxiliary not in ("exact", "half"):
            raise PlanError(f"unknown mode {plan.mode!r} or auxiliary {plan.auxiliary!r}")
        return plan


def _layer(name: str, values: Any) -> LayerPlan:
    if not isinstance(values, dict):
        raise PlanError(f"layer {name!r}: expected an object")
    tuples = {key: tuple(values[key]) for key in ("shape", "limits") if isinstance(values.get(key), list)}
    layer: LayerPlan = _build(LayerPlan, f"layer {name!r}", {**values, **tuples})
    layer.check(name)
    return layer


def _build(kind: Any, where: str, values: dict[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise PlanError(f"{where}: unknown field {unknown[0]!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise PlanError(f"{where}: {error}") from None
