"""The options that verbs with a MODEL share: which network, with which weights, on which images, on which device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opq.zoo.models import NamedModel


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL's options and those of its images to a command, which gets them as keyword arguments."""
    data = click.option("--data", required=True, metavar="DIR", help="A folder of images, a folder a class, or a .npz file.")
    return _add(command, data)


def informed_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `network_options` for a command that can do without a network, with what is told of it by images."""
    for option in reversed(
        [
            click.option(
                "--max-drop",
                type=click.FloatRange(0.0),
                metavar="D",
                help="In place of a target, SOURCE being a MODEL: the smallest file whose top-1 on --data falls by at most D "
                "points.",
            ),
        ]
    ):
        command = option(command)
    data = click.option("--data", metavar="DIR", help="Labelled images for --max-drop: a folder a class, or .npz.")
    return calibration_options(_add(command, data))


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a network is calibrated on to a command, which gets it as keyword arguments."""
    for option in reversed(
        [
            click.option(
                "--calibrate",
                metavar="DIR|drawn",
                help="Of a MODEL: round each layer against its outputs on these images, which need no labels, or on "
                "drawn ones.",
            ),
            click.option(
                "--images", type=click.IntRange(1), default=256, show_default=True, help="How many to calibrate with, at most."
            ),
        ]
    ):
        command = option(command)
    return command


INFORMED = ("weights", "data", "batch", "workers", "input_size", "mean", "std", "device", "images")
"""Options that mean something with --calibrate or --max-drop alone."""


def _add(command: Callable[..., Any], data: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        [
            click.option("--weights", metavar="W", help="A checkpoint or .opq file, or published weights by name."),
            data,
            click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Images a step."),
            click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images."),
            click.option(
                "--input-size", type=click.IntRange(1), help="Their width and height, where the network does not tell."
            ),
            click.option("--mean", metavar="R,G,B", help="What is taken off RGB in 0..1, where the network does not tell."),
            click.option("--std", metavar="R,G,B", help="What that is divided by, where the network does not tell."),
            click.option("--device", metavar="D", help="cpu, cuda, cuda:1, ...; by default cuda where there is one."),
        ]
    ):
        command = option(command)
    return command


def make_network(model: str, given: dict[str, Any], device: str | None) -> NamedModel:
    """The network of a command, on its device; one without weights has the same random ones in each process and each time."""
    declared = _read_preprocessing(given)
    from opq.zoo.models import open_model

    named = open_model(model, given["weights"], seed=0, **declared)
    place(named, device)
    return named


def place(named: NamedModel, device: str | None) -> None:
    """Move a network to a device, by default to the GPU where there is one."""
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named.network.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(f"--device {chosen}: {str(error).splitlines()[0]}") from None


def _read_preprocessing(given: dict[str, Any]) -> dict[str, Any]:
    """What the command says of the network's images, None where it says nothing."""
    declared: dict[str, Any] = {"input_size": given["input_size"], "mean": None, "std": None}
    for key in ("mean", "std"):
        if given[key] is not None:
            try:
                declared[key] = tuple(float(part) for part in given[key].split(","))
            except ValueError:
                raise click.UsageError(f"--{key}: expected numbers with commas between, got {given[key]!r}") from None
            if len(declared[key]) not in (1, 3) or not all(map(math.isfinite, declared[key])):
                raise click.UsageError(f"--{key}: expected one finite number, or three, got {given[key]!r}")
            if key == "std" and min(declared[key]) <= 0.0:
                raise click.UsageError(f"--std: expected one finite number, or three, > 0, got {given[key]!r}")
    return declared
