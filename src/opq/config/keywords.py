"""The settings of a CompressionConfig as keywords of a function."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from opq.config.compression_config import AuxiliaryStorage, BatchNormForm, CompressionConfig, CostName, RoundingName, Speed
from opq.config.layer_config import LayerConfig, ScalesName
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
    cost: CostName
    scales: ScalesName
    include: Sequence[str]
    exclude: Sequence[str]
    layers: Mapping[str, LayerConfig]
    auxiliary: AuxiliaryStorage
    batch_norm: BatchNormForm
    batch_norm_eps: float
    speed: Speed


_TARGET_OPTIONS = ("ratio", "size", "sparsity", "bits", "lossless")


def as_config(config: CompressionConfig | None, options: Mapping[str, Any], caller: str) -> CompressionConfig:
    """Convert the arguments of a function to a config.

    Args:
        config: A config, then `options` must be empty; or None.
        options: Keywords as in CompressionOptions.
        caller: Name of the called function, for messages.

    Returns:
        `config`, or a config with the settings in `options`.

    Raises:
        TypeError: A keyword is unknown, or both a config and keywords are given.
        TargetError: There is not exactly one target, or it is malformed.
        ConfigError: Another setting is out of range.
    """
    if config is not None:
        if not isinstance(config, CompressionConfig):
            raise TypeError(f"{caller}() takes a CompressionConfig, or keywords such as ratio=8, got {type(config).__name__}")
        if options:
            raise TypeError(f"{caller}() takes a config or keywords, got both a config and {min(options)!r}")
        return config
    refuse_unknown(caller, options, CompressionOptions.__annotations__)
    settings = {key: value for key, value in options.items() if key not in _TARGET_OPTIONS and value is not None}
    return CompressionConfig(target=_target_of(options), **settings)


def without_target(options: Mapping[str, Any], caller: str, reason: str) -> dict[str, Any]:
    """Check the keywords of a function that chooses the target itself.

    Args:
        options: Keywords as in CompressionOptions.
        caller: Name of the called function, for messages.
        reason: Why there must be no target, for the message.

    Returns:
        The keywords that are given, other than a target.

    Raises:
        TypeError: A keyword is unknown.
        TargetError: A target is given.
    """
    refuse_unknown(caller, options, CompressionOptions.__annotations__)
    if given := [key for key in _TARGET_OPTIONS if options.get(key) is not None and options[key] is not False]:
        raise TargetError(f"{given[0]} must not be given: {reason}")
    return {key: value for key, value in options.items() if key not in _TARGET_OPTIONS and value is not None}


def refuse_unknown(caller: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError if a keyword is unknown.

    Args:
        caller: Name of the called function, for the message.
        given: Keywords of the call.
        known: Keywords of the function. The message names the nearest one.
    """
    names = list(known)
    for key in sorted(set(given) - set(names)):
        near = difflib.get_close_matches(key, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; the keywords are {', '.join(names)}"
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
    got = ", ".join(sorted(given)) or "none"
    raise TargetError(f"exactly one target must be given: ratio, size, sparsity and bits together, or lossless; got {got}")
