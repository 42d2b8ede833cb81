"""CompressionConfig: how a network is compressed, as a frozen object that converts to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

from opq.config.checks import check_choice, check_fields, finite_number, match_glob, matches, read_globs, read_json
from opq.config.layer_config import LayerConfig, ScalesName
from opq.config.targets import Lossless, Target, TwoStage, target_from_dict, target_to_dict
from opq.errors import ConfigError, TargetError

RoundingName = Literal["auto", "trellis", "compensated", "deadzone"]
CostName = Literal["auto", "balanced", "squared"]
AuxiliaryStorage = Literal["auto", "exact", "float16", "uint8"]
BatchNormForm = Literal["auto", "keep", "folded"]
Speed = Literal["small", "balanced", "fast"]

_JSON_FORMAT = "opq-config-1"
_CHOICES = (
    ("rounding", RoundingName),
    ("cost", CostName),
    ("scales", ScalesName),
    ("auxiliary", AuxiliaryStorage),
    ("batch_norm", BatchNormForm),
    ("speed", Speed),
)
_NOT_IN_TWO_STAGE = {
    "rounding": "rounds each weight to nearest",
    "cost": "counts squared errors",
    "scales": "gives each weight one step",
}
"""Settings that a TwoStage target does not support: {name: reason}."""
_TWO_STAGE = {"cost": "squared", "scales": "none"}
"""Settings that say what a TwoStage target does anyway."""
_LOSSLESS = {"auxiliary": "exact", "batch_norm": "keep"}
"""Settings that say what a Lossless target does anyway."""


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How to compress a network.

    Args:
        target: Ratio, Size, TwoStage or Lossless. With Lossless only `include`, `exclude` and `speed` may differ from their
            defaults.
        rounding: How a byte target is met. "compensated": one step for the network; rounding errors within an output row
            compensate each other (`opq.quantization.error_feedback`). "trellis": the same, but the codes of larger matrices
            follow a trellis (`opq.quantization.trellis`), which takes less bits for the same squared error
            (`opq.compression.trellis_weights` says which). "deadzone": each weight alone, with the steps and dead zones of the
            Laplace rate-distortion curve, which give the least squared error that rounding alone can. "auto": trellis, but
            deadzone in `opq.finetune`. Calibration rounds by what it measured. A TwoStage target rounds each weight to nearest:
            only "auto" is valid.
        cost: What a byte target minimizes. "squared": the sum of squared errors, so that without dead zones all weights of
            one sensitivity share a step. "balanced": the sum of the relative squared errors of all weights, corrected for
            their scales (`opq.rate_distortion.costs`); a token embedding that is also the head of a language model counts
            more, and so do the weights of recurrent layers. "auto": squared with dead zones, in calibration and with a TwoStage
            target, where only "auto" and "squared" are valid; otherwise balanced.
        scales: Steps of single rows (`opq.rate_distortion.scales`). "none": one step per weight. "rows": in each weight with at
            least two dimensions the step of a row (axis 0) follows the row's mean magnitude, in eighths of an octave, so that
            relative errors of rows count alike. "auto": token embeddings as with "rows", recurrent weights with the root of the
            magnitudes, others none (`opq.compression.row_scales`); with dead zones none; in
            calibration rows and columns by the curvature (`opq.calibration.curvature_steps`). With a TwoStage target only
            "auto" and "none" are valid.
        include: Globs. Only weights whose names match one are compressed; the rest are stored as auxiliary tensors.
        exclude: Globs. Weights whose names match one are stored as auxiliary tensors.
        layers: {glob or name: LayerConfig}. If several fix the same field of a weight, the last one counts.
        auxiliary: How tensors that are not weights are stored. "exact": bit for bit. "float16": parameters that are not
            weights, and batch-norm statistics, as float16, if values keep a relative error of at most 2^-11 (in a tensor with
            negative values: or an error of 2^-16 of its root mean square) and batch norms change their outputs by at most 2^-9.
            "uint8": on a grid of 8 bits, if batch norms change their outputs by at most 2^-6, and other vectors by at most 2^-8
            of their median magnitude, or 2^-9 of each value if none is negative; the others as with "float16". Buffers and
            excluded weights are always exact. "auto": float16, or exact with a Lossless target. `opq.inspect` gives the error
            of each tensor.
        batch_norm: "keep", or "folded": running means become 0 and running variances a constant, which take almost no bytes;
            weights and biases compensate for it. In evaluation the network is the same up to float32 rounding; in training it
            differs. "auto": folded if the source is a module in evaluation mode, or calibrated, and batch norms have one eps,
            else "keep".
        speed: Which weights of at least 4,096 elements are coded for fast decoding, which is several times faster. "small":
            those that do not take more bytes. "balanced": those that take at most 2% more, as long as all weights together take
            at most 0.5% more. "fast": all that can be. In a lossless file other tensors too, of at least 4,096 elements; with
            "balanced" if their bytes grow by at most 0.5%, which is measured where they have at most 4 MiB together, and
            otherwise left to a sample. `opq.finetune` always takes "small", because it predicts the bytes of its file.
        batch_norm_eps: The eps of batch norms in a checkpoint without its modules, 0 <= eps < 1.

    Raises:
        TargetError: The target is malformed.
        ConfigError: Another setting is out of range or unknown.
    """

    target: Target
    rounding: RoundingName = "auto"
    cost: CostName = "auto"
    scales: ScalesName = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, LayerConfig] = field(default_factory=dict)
    auxiliary: AuxiliaryStorage = "auto"
    batch_norm: BatchNormForm = "auto"
    batch_norm_eps: float = 1e-5
    speed: Speed = "balanced"

    def __post_init__(self) -> None:
        """Check every field, and convert globs to tuples."""
        if not isinstance(self.target, Target):
            raise TargetError(f"target must be a Ratio, Size, TwoStage or Lossless, got {self.target!r}")
        for key, choices in _CHOICES:
            check_choice(key, getattr(self, key), get_args(choices))
        for key in ("include", "exclude"):
            object.__setattr__(self, key, read_globs(key, getattr(self, key)))
        if not isinstance(self.layers, Mapping) or not all(
            isinstance(key, str) and isinstance(value, LayerConfig) for key, value in self.layers.items()
        ):
            raise ConfigError(f"layers must map names or globs to LayerConfig objects, got {self.layers!r}")
        object.__setattr__(self, "layers", dict(self.layers))
        eps = finite_number("batch_norm_eps", self.batch_norm_eps, ConfigError)
        if not 0.0 <= eps < 1.0:
            raise ConfigError(f"batch_norm_eps must lie in [0, 1), got {self.batch_norm_eps!r}")
        given = self._non_default_fields()
        for key, reason in _NOT_IN_TWO_STAGE.items():
            if isinstance(self.target, TwoStage) and key in given and getattr(self, key) != _TWO_STAGE.get(key):
                raise ConfigError(
                    f"{key} (={getattr(self, key)!r}) cannot be combined with sparsity and bits, because that target {reason}; "
                    f"remove {key}"
                )
        harmless = {key for key, value in _LOSSLESS.items() if getattr(self, key) == value}
        harmless |= {"target", "include", "exclude", "speed"}
        if isinstance(self.target, Lossless) and (others := given - harmless):
            raise ConfigError(f"lossless can be combined with include, exclude and speed only; remove {min(others)}")

    def _non_default_fields(self) -> set[str]:
        """Names of the fields that differ from their defaults."""
        defaults = {
            item.name: item.default if item.default is not MISSING else {} for item in fields(self) if item.name != "target"
        }
        return {name for name, default in defaults.items() if getattr(self, name) != default}

    @property
    def resolved_rounding(self) -> str:
        """The rounding method, as in LayerPlan.rounding; with "trellis", weights that have none are compensated."""
        if isinstance(self.target, TwoStage):
            return "deadzone"
        return "trellis" if self.rounding == "auto" else self.rounding

    @property
    def resolved_cost(self) -> str:
        """What is minimized: "balanced" or "squared"."""
        if self.cost == "auto":
            return "squared" if self.resolved_rounding == "deadzone" else "balanced"
        return self.cost

    @property
    def resolved_auxiliary(self) -> str:
        """How tensors that are not weights are stored: "exact", "float16" or "uint8"."""
        if self.auxiliary == "auto":
            return "exact" if isinstance(self.target, Lossless) else "float16"
        return self.auxiliary

    def budget(self, dense_bytes: int) -> int | None:
        """The largest allowed size of the file in bytes; None if the target does not limit it.

        Args:
            dense_bytes: Bytes of all tensors in their dtypes; weights of equal values count once.
        """
        return self.target.budget(dense_bytes)

    def select(self, candidates: Sequence[str], exact: Collection[str] = ()) -> list[str]:
        """The weights to compress.

        Args:
            candidates: Names of all weights.
            exact: Names of the other tensors. `exclude` may name them, although they are not quantized anyway.

        Returns:
            Those that match `include`, if there is one, and do not match `exclude`, in the same order.

        Raises:
            SelectionError: A glob of `include` matches no candidate, or one of `exclude` matches no tensor.
        """
        chosen = list(candidates)
        if self.include:
            kept = {name for glob in self.include for name in match_glob("include", glob, candidates)}
            chosen = [name for name in chosen if name in kept]
        for glob in self.exclude:
            dropped = set(matches(glob, candidates) if matches(glob, exact) else match_glob("exclude", glob, candidates))
            chosen = [name for name in chosen if name not in dropped]
        return chosen

    def layer_configs(self, names: Sequence[str]) -> dict[str, LayerConfig]:
        """The settings of single weights.

        Args:
            names: Names of the weights.

        Returns:
            {name: its LayerConfig}, with the fields of all entries of `layers` that match it; `scales` is never None.

        Raises:
            SelectionError: A glob of `layers` matches none of them.
            ConfigError: A value is out of range for the target.
        """
        found = {name: LayerConfig(scales=self.scales) for name in names}
        for glob, given in self.layers.items():
            for name in match_glob("layers", glob, names):
                found[name] = found[name].updated(given)
        for name, config in found.items():
            config.check(name, self.target)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The config as plain objects, ready for JSON."""
        layers = {glob: {k: v for k, v in vars(layer).items() if v is not None} for glob, layer in self.layers.items()}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**values, "target": target_to_dict(self.target), "layers": layers}

    def to_json(self) -> str:
        """The config as JSON text; `from_json` gives back an equal config."""
        return json.dumps({"format": _JSON_FORMAT, **self.to_dict()}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, document: Any) -> CompressionConfig:
        """Inverse of `to_dict`.

        Args:
            document: What `to_dict` returned. Fields that have defaults may be missing.

        Raises:
            ConfigError: The document is anything else.
        """
        if not isinstance(document, Mapping):
            raise ConfigError(f"config must be an object of fields, got {document!r}")
        values = dict(document)
        check_fields("config", values, [item.name for item in fields(cls)])
        layers = values.pop("layers", {})
        if not isinstance(layers, Mapping) or not all(isinstance(layer, Mapping) for layer in layers.values()):
            raise ConfigError(f"layers must map names or globs to objects, got {layers!r}")
        for glob, layer in layers.items():
            check_fields(f"layers[{glob!r}]", layer, [item.name for item in fields(LayerConfig)])
        return cls(
            target=target_from_dict(values.pop("target", None)),
            layers={glob: _read_layer(glob, layer) for glob, layer in layers.items()},
            **values,
        )

    @classmethod
    def from_json(cls, text: str) -> CompressionConfig:
        """Inverse of `to_json`.

        Raises:
            ConfigError: The text is not JSON that `to_json` wrote.
        """
        return cls.from_dict(read_json(text, _JSON_FORMAT, "config"))


def _read_layer(glob: str, values: Mapping[str, Any]) -> LayerConfig:
    try:
        return LayerConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"layers[{glob!r}]: {error}") from None
