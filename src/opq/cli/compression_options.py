"""The options that say how to compress, shared by several commands, and the config they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from opq.config import AuxiliaryStorage, BatchNormForm, CompressionConfig, LayerConfig, RoundingName, as_config
from opq.errors import ConfigError, PlanError
from opq.rate_distortion.plan import Plan

_FIELDS = ("sensitivity", "sparsity", "bits", "step")
_TARGETS = ({"ratio"}, {"size"}, {"sparsity", "bits"}, {"lossless"})
_CHOICES = ("rounding", "auxiliary", "batch_norm", "batch_norm_eps")
_LISTS = ("include", "exclude", "layers")

_TARGET_OPTIONS = (
    click.option("--ratio", type=float, metavar="R", help="Dense bytes over file bytes."),
    click.option("--size", metavar="S", help="Size of the file: 250000, 250kB, 1.5MiB."),
    click.option("--sparsity", type=float, metavar="P", help="Fraction of zeros, 0..1; goes with --bits."),
    click.option("--bits", type=float, metavar="B", help="Mean nominal bits of a kept weight; goes with --sparsity."),
)
_OTHER_OPTIONS = (
    click.option("--include", multiple=True, metavar="GLOB", help="Compress only weights that match. Repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Store weights that match as they are. Repeatable."),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="GLOB:KEY=X[,KEY=X]",
        help="Fix sparsity, bits or step, or set the sensitivity, of weights that match. Repeatable.",
    ),
    click.option(
        "--rounding",
        type=click.Choice(get_args(RoundingName)),
        help="compensated: rounding errors within an output row compensate each other; deadzone: each weight alone, with dead "
        "zones for the least squared error; auto (the default): compensated, but deadzone in finetune.",
    ),
    click.option(
        "--auxiliary",
        type=click.Choice(get_args(AuxiliaryStorage)),
        help="How biases, batch norms and the like are stored: bit for bit (the default); as float16, with a relative error of "
        "at most 2^-11; or in 8 bits, with an error of at most 1/500 of a tensor's span (1/64 of each value if none is "
        "negative).",
    ),
    click.option(
        "--batch-norm",
        type=click.Choice(get_args(BatchNormForm)),
        help="folded: fold means and variances into weights and biases. The network is the same in evaluation, but for "
        "rounding, and differs in training.",
    ),
    click.option(
        "--batch-norm-eps",
        type=float,
        metavar="E",
        help="The eps of batch norms in a checkpoint: 1e-5, PyTorch's, by default; Keras has 1e-3.",
    ),
)


def add_options(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds options to a command, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


selection_options = add_options(*_OTHER_OPTIONS)
"""Adds everything but the target to a command."""

compression_options = add_options(
    *_TARGET_OPTIONS,
    *_OTHER_OPTIONS,
    click.option("--config", "config_file", metavar="JSON", help="A CompressionConfig as JSON, in place of these options."),
)
"""Adds the target and everything else to a command."""


def is_given(key: str) -> bool:
    """Whether the command line names an option of the present command."""
    return click.get_current_context().get_parameter_source(key) is ParameterSource.COMMANDLINE


def read_config(given: dict[str, Any]) -> CompressionConfig:
    """The config that a command's options describe; UsageError unless there is exactly one target."""
    if given.get("config_file") is not None:
        if idle := _first_given(given):
            raise click.UsageError(f"--config already says how to compress; leave --{idle.replace('_', '-')} out.")
        return CompressionConfig.from_json(_read_text(given["config_file"], ConfigError))
    targets = {key for key in ("ratio", "size", "sparsity", "bits") if given[key] is not None}
    if given.get("lossless"):
        targets.add("lossless")
    if targets not in _TARGETS:
        raise click.UsageError("Give one target: --ratio, or --size, or --sparsity and --bits; or compress --lossless.")
    return as_config(None, {**{key: given[key] for key in targets}, **read_selection(given)}, "opq")


def read_selection(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config that a command's options give, without a target."""
    return {
        "include": given["include"],
        "exclude": given["exclude"],
        "layers": _layers(given["layers"]),
        **{key: given[key] for key in _CHOICES if given[key] is not None},
    }


def refuse_compression_options(given: dict[str, Any], instead: str) -> None:
    """UsageError if a command's options say how to compress, which `instead`, an option, already does."""
    idle = "config" if given.get("config_file") is not None else _first_given(given)
    if idle is not None:
        raise click.UsageError(f"{instead} already says how to compress; leave --{idle.replace('_', '-')} out.")


def read_plan(path: str) -> Plan:
    """The plan that `opq plan -o` wrote; PlanError if there is none."""
    return Plan.from_json(_read_text(path, PlanError))


def _first_given(given: dict[str, Any]) -> str | None:
    names = ("ratio", "size", "sparsity", "bits", "lossless", *_CHOICES)
    found = [key for key in names if given.get(key) not in (None, False)] + [key for key in _LISTS if given.get(key)]
    return found[0].replace("layers", "layer") if found else None


def _read_text(path: str, error: type[ConfigError] | type[PlanError]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise error(f"{path} is not text") from None
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None


def _layers(texts: Sequence[str]) -> dict[str, LayerConfig]:
    layers: dict[str, LayerConfig] = {}
    for text in texts:
        glob, _, fields = text.rpartition(":")
        try:
            values = {key.strip(): float(value) for key, _, value in (field.partition("=") for field in fields.split(","))}
        except ValueError:
            values = {}
        if not glob or not values or not set(values) <= set(_FIELDS):
            raise click.UsageError(f"--layer {text!r}: expected GLOB:KEY=X[,KEY=X] with keys {', '.join(_FIELDS)}.")
        layers[glob] = layers.get(glob, LayerConfig()).updated(LayerConfig(**values))
    return layers
