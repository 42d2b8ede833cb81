"""What a user asks for: the target, which tensors, and what is fixed about them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypedDict

from opq.errors import PlanError, SelectionError, TargetError
from opq.rate_distortion.layers import LayerConfig
from opq.rate_distortion.plan import AuxiliaryPlan

ROUNDINGS = ("shaped", "plain")

_FREE = LayerConfig()
_LARGEST = 2**62
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class CompressionOptions(TypedDict, total=False):
    """Keyword arguments of `plan`, `compress` and the `save_` functions.

    The target is exactly one of

    ratio        dense bytes over file bytes, > 0; a weight that modules share counts once, as it is stored
    size         bytes of the whole file: an integer, or text such as "250kB", "1.5 MB", "2MiB"
    sparsity, bits  the paper's: fraction of zeros over all weights, 0 <= p < 1, and mean nominal width of a kept code,
                 1 < b <= 16
    lossless     True: every tensor comes back bit for bit. A weight of few distinct values, as clustering or quantization
                 elsewhere leaves, is stored as codes and a step or a table of levels; all others as auxiliary tensors. There
                 is no plan then, and of the following only `include` and `exclude` may be given

    include      globs: only weights whose names match one are compressed, the rest is stored as auxiliary tensors
    exclude      globs: weights whose names match one are stored as auxiliary tensors
    overrides    {glob or name: Override or a mapping of its fields}; of several that fix the same field, the last one counts
    sensitivity  {glob or name: what a unit of squared error costs there, > 0}; 1 where none matches
    rounding     with a ratio or a size: "shaped" (the default), one step for the network and errors that make up for each other
                 within a row (`opq.quantization.error_feedback`); or "plain", each weight by itself, with the steps and dead zones of
                 the Laplace curve, which leave the least squared error of the weights
    auxiliary    "exact" (the default); "half": store float32 and float64 auxiliary tensors as float16 where every value
                 keeps a relative error of at most 2^-11; or "8bit": store those of one dimension and 16 elements or more on a
                 grid of 8 bits, with an error of at most 1/500 of the tensor's span, or 2^-6 of each value where none is
                 negative, and the others as "half" does. `opq.inspect` tells the error of each
    batch_norm   "keep" (the default), or "canonical": y = weight (x - mean) / sqrt(var + eps) + bias with mean 0 and a constant
                 var, which cost next to nothing; equal when evaluating but for float32's rounding, another network in training
    batch_norm_eps  the eps of batch-norms in a checkpoint without its modules, 0 <= eps < 1; 1e-5, PyTorch's, unless given
    """

    ratio: float | None
    size: int | str | None
    sparsity: float | None
    bits: float | None
    lossless: bool
    include: Sequence[str]
    exclude: Sequence[str]
    overrides: Mapping[str, LayerConfig | Mapping[str, float]]
    sensitivity: Mapping[str, float]
    rounding: str
    auxiliary: str
    batch_norm: str
    batch_norm_eps: float


@dataclass(frozen=True)
class Target:
    """What is asked of the file: `asked` as the user put it; either a byte budget, or sparsity and bits."""

    asked: dict[str, float]

    def budget(self, dense_bytes: int) -> int | None:
        """Most bytes the file may have, or None in paper mode."""
        if "ratio" in self.asked:
            return max(math.floor(dense_bytes / self.asked["ratio"]), 1)
        return int(self.asked["bytes"]) if "bytes" in self.asked else None


def read_target(options: CompressionOptions) -> Target:
    """The target in `options`; TargetError unless exactly one is given, and sensible."""
    check_known(options)
    if options.get("lossless"):
        raise TargetError("there is nothing to plan where everything is kept: lossless is for compressing, without a target")
    given = {key: options.get(key) for key in ("ratio", "size", "sparsity", "bits")}
    names = {key for key, value in given.items() if value is not None}
    is_shaped(options)
    if names == {"sparsity", "bits"}:
        if "rounding" in options:
            raise TargetError("sparsity and bits, the paper's target, round each weight by itself: leave rounding out")
        return Target({"sparsity": _number("sparsity", given["sparsity"]), "bits": _number("bits", given["bits"])})
    if names == {"ratio"}:
        ratio = _number("ratio", given["ratio"])
        if not 1e-9 <= ratio <= 1e9:
            raise TargetError(f"ratio must be positive, from 1e-9 to 1e9, got {ratio:g}")
        return Target({"ratio": ratio})
    if names == {"size"}:
        return Target({"bytes": float(parse_size(given["size"]))})
    got = ", ".join(sorted(names)) or "none of them"
    raise TargetError(f"a target is a ratio, or a size, or sparsity and bits together, or else lossless; got {got}")


def check_known(options: CompressionOptions) -> None:
    """Raise TargetError for an option that there is not."""
    if unknown := sorted(set(options) - set(CompressionOptions.__annotations__)):
        raise TargetError(f"unknown option {unknown[0]!r}; there are {', '.join(CompressionOptions.__annotations__)}")


def parse_size(size: Any) -> int:
    """Bytes from an integer or from text such as "250kB"; kB is 1000 bytes, KiB is 1024."""
    if isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _LARGEST:
        return size
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)", str(size).strip())
    unit = _UNITS.get(match.group(2).lower()) if match else None
    value = float(match.group(1)) * unit if match and unit else 0.0
    if not 1.0 <= value <= _LARGEST:
        raise TargetError(f"size must be a positive number of bytes such as 250000, '250kB' or '1.5MiB', got {size!r}")
    return math.floor(value)


def select(candidates: Sequence[str], options: CompressionOptions) -> list[str]:
    """Those of the candidate weights that `include` and `exclude` leave; SelectionError for a glob that matches none."""
    chosen = list(candidates)
    if include := _globs("include", options):
        kept = {name for pattern in include for name in _matching(pattern, candidates, "include")}
        chosen = [name for name in chosen if name in kept]
    for pattern in _globs("exclude", options):
        dropped = set(_matching(pattern, candidates, "exclude"))
        chosen = [name for name in chosen if name not in dropped]
    return chosen


def read_overrides(names: Sequence[str], options: CompressionOptions, *, joint: bool) -> dict[str, LayerConfig]:
    """The override of each weight; SelectionError for a glob that matches none, TargetError for values out of range."""
    fields: dict[str, dict[str, float]] = {name: {} for name in names}
    for field in ("sensitivity", "overrides"):
        if not isinstance(options.get(field, {}), Mapping):
            raise TargetError(f"{field} must map names or globs to values, got {options[field]!r}")
    for pattern, value in options.get("sensitivity", {}).items():
        for name in _matching(pattern, names, "sensitivity"):
            fields[name]["sensitivity"] = _number(f"sensitivity of {pattern!r}", value)
    for pattern, override in options.get("overrides", {}).items():
        if not isinstance(override, (LayerConfig, Mapping)):
            raise TargetError(f"override of {pattern!r}: expected an Override or a mapping of its fields, got {override!r}")
        values = (
            {key: value for key, value in vars(override).items() if value != getattr(_FREE, key)}
            if isinstance(override, LayerConfig)
            else override
        )
        if unknown := sorted(set(values) - set(LayerConfig.__dataclass_fields__)):
            raise TargetError(
                f"override of {pattern!r}: unknown field {unknown[0]!r}; there are sensitivity, sparsity, bits, step"
            )
        set_values = {
            key: _number(f"override of {pattern!r}: {key}", value) for key, value in values.items() if value is not None
        }
        for name in _matching(pattern, names, "overrides"):
            fields[name].update(set_values)
    overrides = {name: LayerConfig(**values) for name, values in fields.items()}
    for name, override in overrides.items():
        override.check(name, joint=joint)
    return overrides


def read_auxiliary(options: CompressionOptions) -> AuxiliaryPlan:
    """How auxiliary tensors are stored; TargetError for what there is not."""
    try:
        return AuxiliaryPlan(
            options.get("auxiliary", "exact"), options.get("batch_norm", "keep"), options.get("batch_norm_eps", 1e-5)
        )
    except PlanError as error:
        raise TargetError(error.problem) from None


def is_shaped(options: CompressionOptions) -> bool:
    """Whether weights are to be rounded in view of each other; TargetError for a rounding that there is not."""
    rounding = options.get("rounding", "shaped")
    if rounding not in ROUNDINGS:
        raise TargetError(f"rounding must be 'shaped' or 'plain', got {rounding!r}")
    return rounding == "shaped"


def _matching(pattern: str, names: Iterable[str], option: str) -> list[str]:
    candidates = list(names)
    if not isinstance(pattern, str):
        raise TargetError(f"{option} must map names or globs, got {pattern!r}")
    if matches := [name for name in candidates if name == pattern or fnmatchcase(name, pattern)]:
        return matches
    raise SelectionError(option, pattern, candidates)


def _globs(option: str, options: CompressionOptions) -> Sequence[str]:
    value: Any = options.get(option) or ()
    globs = (value,) if isinstance(value, str) else value
    if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
        raise TargetError(f"{option} must hold globs, got {value!r}")
    return tuple(globs)


def _number(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise TargetError(f"{what} must be a finite number, got {value!r}")
    return number
