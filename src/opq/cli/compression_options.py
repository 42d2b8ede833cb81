"""Options for compression, and the CompressionConfig that they describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from opq.cli.help import FurtherOption
from opq.config import (
    AuxiliaryStorage,
    BatchNormForm,
    CompressionConfig,
    CostName,
    LayerConfig,
    RoundingName,
    ScalesName,
    Speed,
    as_config,
)
from opq.errors import ConfigError, PlanError
from opq.rate_distortion.plan import Plan

_FIELDS = ("sensitivity", "sparsity", "bits", "step", "scales")
_TARGETS = ({"ratio"}, {"size"}, {"sparsity", "bits"}, {"lossless"})
_CHOICES = ("rounding", "cost", "scales", "auxiliary", "batch_norm", "batch_norm_eps", "speed")
_LISTS = ("include", "exclude", "layers")

_TARGET_OPTIONS = (
    click.option("--ratio", type=float, metavar="R", help="Target: dense bytes over file bytes."),
    click.option("--size", metavar="S", help="Target: size of the file: 250000, 250kB or 1.5MiB."),
    click.option(
        "--sparsity", type=float, metavar="P", help="Target, with --bits: fraction of zeros, 0..1.", cls=FurtherOption
    ),
    click.option(
        "--bits", type=float, metavar="B", help="Target, with --sparsity: mean nominal bits per kept weight.", cls=FurtherOption
    ),
)
_OTHER_OPTIONS = (
    click.option("--include", multiple=True, metavar="GLOB", help="Quantize only the weights that match. Repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Do not quantize weights that match. Repeatable."),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="GLOB:KEY=X",
        help="Fix sparsity, bits or step, or set sensitivity or scales (none or rows), of the weights that match. With several "
        "keys: GLOB:KEY=X,KEY=X. Repeatable.",
        cls=FurtherOption,
    ),
    click.option(
        "--rounding",
        type=click.Choice(get_args(RoundingName)),
        help="compensated: rounding errors within an output row compensate each other. trellis: the same, but larger matrices "
        "are trellis coded. deadzone: each weight is rounded alone, with the dead zone of the least squared error. auto "
        "(default): trellis, except in finetune.",
        cls=FurtherOption,
    ),
    click.option(
        "--cost",
        type=click.Choice(get_args(CostName)),
        help="balanced: relative errors of all weights count about alike. squared: squared errors count alike, so that all "
        "weights share a step. auto (default): balanced, but squared with dead zones and in finetune.",
        cls=FurtherOption,
    ),
    click.option(
        "--scales",
        type=click.Choice(get_args(ScalesName)),
        help="rows: the step of each row of a matrix or convolution follows the row's mean magnitude. none: one step. "
        "auto (default): rows for token embeddings and, less so, recurrent weights.",
        cls=FurtherOption,
    ),
    click.option(
        "--auxiliary",
        type=click.Choice(get_args(AuxiliaryStorage)),
        help="Storage of biases, batch norms and other vectors. exact: bit for bit. float16: relative error at most 2^-11. "
        "uint8: 8 bits where the network's outputs hardly change. auto (default): float16. Buffers are always exact.",
        cls=FurtherOption,
    ),
    click.option(
        "--batch-norm",
        type=click.Choice(get_args(BatchNormForm)),
        help="folded: fold means and variances of batch norms into their weights and biases. The outputs in evaluation mode "
        "stay the same up to rounding. keep: store them. auto (default): folded in calibration and where SOURCE is a network, "
        "otherwise keep.",
        cls=FurtherOption,
    ),
    click.option(
        "--batch-norm-eps",
        type=float,
        metavar="E",
        help="The eps of the checkpoint's batch norms. Default: 1e-5, as in PyTorch; Keras uses 1e-3.",
        cls=FurtherOption,
    ),
    click.option(
        "--speed",
        type=click.Choice(get_args(Speed)),
        help="Which weights are coded for fast decoding. small: those that do not take more bytes. balanced (default): as many "
        "as let the weights grow by at most 0.5%. fast: all that can be.",
        cls=FurtherOption,
    ),
)


def add_options(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Combine options into one decorator.

    Args:
        options: Decorators of click, in the order of the help text.

    Returns:
        A decorator that adds all of them to a command.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


selection_options = add_options(*_OTHER_OPTIONS)
"""Adds the options for compression, without the target, to a command."""

_CONFIG = click.option(
    "--config", "config_file", metavar="JSON", help="All settings from a CompressionConfig in a JSON file.", cls=FurtherOption
)

byte_target_options = add_options(*_TARGET_OPTIONS[:2], *_OTHER_OPTIONS, _CONFIG)
"""Adds all options for compression but the two-stage target to a command."""

compression_options = add_options(
    *_TARGET_OPTIONS,
    *_OTHER_OPTIONS,
    _CONFIG,
)
"""Adds all options for compression to a command."""


def is_given(key: str) -> bool:
    """Whether the command line holds this option of the current command."""
    return click.get_current_context().get_parameter_source(key) is ParameterSource.COMMANDLINE


def read_config(given: dict[str, Any]) -> CompressionConfig:
    """Make the config that a command's options describe.

    Args:
        given: The command's parameters.

    Returns:
        The config.

    Raises:
        click.UsageError: There is no target or more than one, or --config is given with other options.
        ConfigError: A setting is out of range, or the file of --config is malformed.
    """
    if given.get("config_file") is not None:
        if idle := _first_given(given):
            raise click.UsageError(f"--config holds all settings; leave out --{idle.replace('_', '-')}.")
        path = given["config_file"]
        text = _read_text(path, ConfigError)
        try:
            return CompressionConfig.from_json(text)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    targets = {key for key in ("ratio", "size", "sparsity", "bits") if given.get(key) is not None}
    if given.get("lossless"):
        targets.add("lossless")
    if targets not in _TARGETS:
        raise click.UsageError(
            "Give exactly one target: --ratio, or --size, or --sparsity with --bits; `opq compress` also takes --lossless."
        )
    return as_config(None, {**{key: given[key] for key in targets}, **read_selection(given)}, "opq")


def read_selection(given: dict[str, Any]) -> dict[str, Any]:
    """Read the fields of a config from a command's options, without the target.

    Args:
        given: The command's parameters.

    Returns:
        {field of CompressionConfig: value}.

    Raises:
        click.UsageError: A --layer is malformed.
    """
    return {
        "include": given["include"],
        "exclude": given["exclude"],
        "layers": _layers(given["layers"]),
        **{key: given[key] for key in _CHOICES if given[key] is not None},
    }


def refuse_compression_options(given: dict[str, Any], instead: str, reason: str = "already determines masks and steps") -> None:
    """Check that no option for compression is given.

    Args:
        given: The command's parameters.
        instead: The option that excludes them.
        reason: What that option does.

    Raises:
        click.UsageError: An option for compression is given.
    """
    idle = "config" if given.get("config_file") is not None else _first_given(given)
    if idle is not None:
        raise click.UsageError(f"{instead} {reason}; leave out --{idle.replace('_', '-')}.")


def read_plan(path: str) -> Plan:
    """Read a plan that `opq plan -o` wrote.

    Args:
        path: The JSON file.

    Returns:
        The plan.

    Raises:
        PlanError: The file cannot be read or holds no plan.
    """
    text = _read_text(path, PlanError)
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise PlanError(f"{path}: {error.problem}") from None


def _first_given(given: dict[str, Any]) -> str | None:
    names = ("ratio", "size", "sparsity", "bits", "lossless", *_CHOICES)
    found = [key for key in names if given.get(key) is not None and given[key] is not False]
    found += [key for key in _LISTS if given.get(key)]
    return found[0].replace("layers", "layer") if found else None


def _read_text(path: str, error: type[ConfigError] | type[PlanError]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise error(f"{path} must be a JSON file in UTF-8") from None
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None


def _layers(texts: Sequence[str]) -> dict[str, LayerConfig]:
    layers: dict[str, LayerConfig] = {}
    for text in texts:
        glob, _, fields = text.rpartition(":")
        try:
            pairs = {key.strip(): value for key, _, value in (field.partition("=") for field in fields.split(","))}
            values: dict[str, Any] = {key: value if key == "scales" else float(value) for key, value in pairs.items()}
        except ValueError:
            values = {}
        if not glob or not values or not set(values) <= set(_FIELDS):
            raise click.UsageError(
                f"--layer must be GLOB:KEY=X[,KEY=X], where KEY is one of {', '.join(_FIELDS)}, and X a number (for scales "
                f"none or rows); got {text!r}."
            )
        layers[glob] = layers.get(glob, LayerConfig()).updated(LayerConfig(**values))
    return layers
