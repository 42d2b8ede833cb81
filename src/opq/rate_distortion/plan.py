"""A plan: how each weight is quantized, as plain numbers that can be printed, compared, and converted to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, cast, get_args

from opq.config import Speed, Target, target_from_dict, target_to_dict
from opq.config.checks import read_json
from opq.errors import ConfigError, PlanError, TargetError
from opq.natural_order import natural_key
from opq.rate_distortion.layer_plan import LayerPlan, is_count, is_number
from opq.text_table import LINE, format_table, html_text, shorten, step_text

_COLUMNS = ("weight", "shape", "zeros", "threshold", "step", "bits", "bytes")
_JSON_FORMAT = "opq-plan-3"
_EXAMPLE = 24
"""Characters of the name that a plan's table shows as an example of each reason."""


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
        if self.eps is not None and (not is_number(self.eps) or not 0.0 <= self.eps < 1.0):
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
        dense_bytes: Bytes of all tensors in their dtypes; weights of equal values count once.
        predicted_bytes: Predicted bytes of the file.
        layers: {weight name: LayerPlan}.
        exact: {name of any other tensor: why it is not a weight}.
        speed: Which weights are coded for fast decoding; see CompressionConfig.speed.

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
    speed: Speed = "balanced"

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
        """A table with a row per layer ("all" zeros if it keeps no weight), a table of the reasons why other tensors are no
        weights, and a line of totals.
        """
        rows = [
            (
                name,
                "x".join(map(str, layer.shape)) or "scalar",
                "all" if layer.sparsity == 1.0 else f"{100.0 * layer.sparsity:.2f}%",
                f"{layer.threshold:.4g}",
                step_text(layer.step, layer.scaled_axes),
                f"{layer.bits:.3f}",
                f"{layer.bits * layer.count / 8.0:,.0f}",
            )
            for name, layer in sorted(self.layers.items(), key=lambda item: natural_key(item[0]))
        ]
        return "\n".join([format_table(_COLUMNS, rows, width=LINE), *self._exact_rows(), *self._totals()])

    def _exact_rows(self) -> list[str]:
        """A table of the reasons, the number of tensors of each, and one of their names; nothing if there is no tensor."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.exact.items():
            groups.setdefault(reason, []).append(name)
        rows = [
            (reason, f"{len(names):,}", shorten(names[0], _EXAMPLE))
            for reason, names in sorted(groups.items(), key=lambda group: -len(group[1]))
        ]
        return ["", format_table(("not a weight, because", "tensors", "such as"), rows), ""] if rows else []

    def _totals(self) -> tuple[str, str]:
        weights = f"{self.mode} plan for {self.target}: {len(self.layers)} weights, {100.0 * self.sparsity:.2f}% zeros"
        size = f"{self.predicted_bytes:,} of {self.dense_bytes:,} bytes predicted ({self.predicted_ratio:.2f}x)"
        return weights, size

    def __repr__(self) -> str:
        """The totals, in brackets: all layers are too much to print."""
        return f"<Plan: {', '.join(self._totals())}>"

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
            if not is_count(getattr(self, key)):
                raise PlanError(f"{key} must be a positive integer, got {getattr(self, key)!r}")
        if self.speed not in get_args(Speed):
            raise PlanError(f"speed must be one of {', '.join(map(repr, get_args(Speed)))}, got {self.speed!r}")
        if not isinstance(self.target, Target):
            raise PlanError(f"target must be a Ratio, Size, TwoStage or Lossless, got {self.target!r}")
        if self.lmbda is not None and not (is_number(self.lmbda) and self.lmbda > 0.0):
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
