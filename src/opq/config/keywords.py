"""The settings of a CompressionConfig as keywords of a function, turned into a config once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from opq.config.compression_config import AuxiliaryStorage, BatchNormForm, CompressionConfig, RoundingName
from opq.config.layer_config import LayerConfig
from opq.config.targets import Lossless, Ratio, Size, Target, TwoStage
from opq.errors import TargetError


class CompressionOptions(TypedDict, total=False):
    """The settings of a CompressionConfig as keywords; the target is `ratio`, `size`, `sparsity` with `bits`, or `lossless`."""

    ratio: float | None
    size: int | str | None
    sparsity: float | None
    bits: float | None
    lossless: bool
    rounding: RoundingName
    include: Sequence[str]
    exclude: Sequence[str]
    layers: Mapping[str, LayerConfig]
    auxiliary: AuxiliaryStorage
    batch_norm: BatchNormForm
    batch_norm_eps: float


_TARGET_OPTIONS = ("ratio", "size", "sparsity", "bits", "lossless")


def as_config(config: CompressionConfig | None, options: Mapping[str, Any], caller: str) -> CompressionConfig:
    """The config that was given, or the one that keywords describe.

    Args:
        config: A config, then `options` must be empty; or None.
        options: Keywords as in CompressionOptions.
        caller: Name of the function that was called, for messages.

    Raises:
        TypeError: There is no such keyword, or a config and keywords were both given.
        TargetError: Not exactly one target is given, or it is malformed.
        ConfigError: Another setting is out of range.
    """
    if config is not None:
        if not isinstance(config, CompressionConfig):
            raise TypeError(f"{caller}() takes a CompressionConfig, got {type(config).__name__}")
        if options:
            raise TypeError(f"{caller}() takes a config or keywords, got both a config and {min(options)!r}")
        return config
    refuse_unknown(caller, options, CompressionOptions.__annotations__)
    settings = {key: value for key, value in options.items() if key not in _TARGET_OPTIONS and value is not None}
    return CompressionConfig(target=_target_of(options), **settings)


def without_target(options: Mapping[str, Any], caller: str, reason: str) -> dict[str, Any]:
    """Keywords as in CompressionOptions, for a function that finds the target itself.

    Raises:
        TypeError: There is no such keyword.
        TargetError: A target is given; the message says the `reason` why there must be none.
    """
    refuse_unknown(caller, options, CompressionOptions.__annotations__)
    if given := [key for key in _TARGET_OPTIONS if options.get(key) not in (None, False)]:
        raise TargetError(f"{given[0]} must not be given: {reason}")
    return {key: value for key, value in options.items() if key not in _TARGET_OPTIONS and value is not None}


def refuse_unknown(caller: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first given keyword that is not known, naming the nearest one that is."""
    names = list(known)
    for key in sorted(set(given) - set(names)):
        near = difflib.get_close_matches(key, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}"
        raise TypeError(f"{caller}() got an unexpected keyword argument {key!r}{hint}")


def _target_of(options: Mapping[str, Any]) -> Target:
    given = {key: options[key] for key in _TARGET_OPTIONS if options.get(key) is not None and options[key] is not False}
    if set(given) == {"ratio"}:
        return Ratio(given["ratio"])
    if set(given) == {"size"}:
        return Size(given["size"])
    if set(given) == {"sparsity", "bits"}:
        return TwoStage(given["sparsity"], given["bits"])
    if set(given) == {"lossless"}:
        return Lossless()
    got = ", ".join(sorted(given)) or "none of them"
    raise TargetError(f"exactly one target must be given: ratio, size, sparsity and bits together, or lossless; got {got}")
