"""The options that `compress` and `plan` share, and what they mean to the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from opq.config import CompressionOptions
from opq.errors import PlanError
from opq.rate_distortion.plan import Plan

_FIELDS = ("sensitivity", "sparsity", "bits", "step")


def is_given(key: str) -> bool:
    """Whether the command line names an option of the present command."""
    return click.get_current_context().get_parameter_source(key) is ParameterSource.COMMANDLINE


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the target, the selection and the overrides to a command, which gets them as keyword arguments."""
    for option in reversed(
        [
            click.option("--ratio", type=float, metavar="R", help="Dense bytes over file bytes."),
            click.option("--size", metavar="S", help="Size of the file: 250000, 250kB, 1.5MiB."),
            click.option("--sparsity", type=float, metavar="P", help="Fraction of zeros, 0..1; goes with --bits."),
            click.option("--bits", type=float, metavar="B", help="Mean nominal bits of a kept weight; goes with --sparsity."),
            click.option("--include", multiple=True, metavar="GLOB", help="Compress only weights that match. Repeatable."),
            click.option("--exclude", multiple=True, metavar="GLOB", help="Store weights that match as they are. Repeatable."),
            click.option(
                "--override",
                "overrides",
                multiple=True,
                metavar="GLOB:KEY=X[,KEY=X]",
                help="Fix sparsity, bits or step, or weigh by sensitivity, where names match. Repeatable.",
            ),
            click.option(
                "--rounding",
                type=click.Choice(["shaped", "plain"]),
                help="shaped (the default): errors of a row make up for each other; plain: each weight by itself, with the "
                "dead zones of the Laplace curve.",
            ),
            click.option(
                "--auxiliary",
                type=click.Choice(["exact", "half", "8bit"]),
                help="Biases, batch-norm and the like: bit for bit (the default); float16 where that errs by at most 2^-11; or "
                "8 bits, which err by at most 1/500 of a tensor's span, or 1/64 of a value where none is negative.",
            ),
            click.option(
                "--batch-norm",
                type=click.Choice(["keep", "canonical"]),
                help="canonical: fold means and variances into weights and biases. The same function when evaluating, but for "
                "rounding; another network in training.",
            ),
            click.option(
                "--batch-norm-eps",
                type=float,
                metavar="E",
                help="What batch-norms add to their variances: 1e-5, PyTorch's, unless given; Keras has 1e-3.",
            ),
        ]
    ):
        command = option(command)
    return command


_CHOSEN = ("rounding", "auxiliary", "batch_norm", "batch_norm_eps")


def read_options(given: dict[str, Any], *, required: bool = True) -> CompressionOptions:
    """The library's options from a command's; UsageError unless exactly one target is given, or none and none required."""
    targets = {key for key in ("ratio", "size", "sparsity", "bits") if given[key] is not None}
    if given.get("lossless"):
        targets.add("lossless")
    if not required:
        if (
            targets
            or given["include"]
            or given["exclude"]
            or given["overrides"]
            or any(given[key] is not None for key in _CHOSEN)
        ):
            raise click.UsageError("--plan, or --from, already says how to compress; give it alone.")
        return CompressionOptions()
    if targets not in ({"ratio"}, {"size"}, {"sparsity", "bits"}, {"lossless"}):
        raise click.UsageError("Give one target: --ratio, or --size, or --sparsity and --bits; or compress --lossless.")
    options = _selection(given)
    for key in targets:
        options[key] = given[key]  # type: ignore[literal-required]  # one of the keys above
    return options


def read_selection(given: dict[str, Any], instead: str) -> CompressionOptions:
    """The library's options but for a target; UsageError, saying what there is `instead`, when one is given."""
    if given.get("lossless") or any(given[key] is not None for key in ("ratio", "size", "sparsity", "bits")):
        raise click.UsageError(f"{instead}; leave the target out.")
    return _selection(given)


def _selection(given: dict[str, Any]) -> CompressionOptions:
    options = CompressionOptions(
        include=given["include"],
        exclude=given["exclude"],
        overrides=_overrides(given["overrides"]),
    )
    for key in _CHOSEN:
        if given[key] is not None:
            options[key] = given[key]  # type: ignore[literal-required]  # one of the keys above
    return options


def _overrides(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    overrides: dict[str, dict[str, float]] = {}
    for text in texts:
        pattern, _, fields = text.rpartition(":")
        try:
            values = {key.strip(): float(value) for key, _, value in (field.partition("=") for field in fields.split(","))}
        except ValueError:
            values = {}
        if not pattern or not values or not set(values) <= set(_FIELDS):
            raise click.UsageError(f"--override {text!r}: expected GLOB:KEY=X[,KEY=X] with keys {', '.join(_FIELDS)}.")
        overrides.setdefault(pattern, {}).update(values)
    return overrides


def read_plan(path: str) -> Plan:
    """The plan that `opq plan -o` wrote; PlanError where there is none."""
    try:
        return Plan.from_json(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not text") from None
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
