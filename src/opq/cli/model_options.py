"""Options of commands that take a MODEL: weights, preprocessing, images and device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from opq.cli.compression_options import add_options
from opq.cli.help import FurtherOption

if TYPE_CHECKING:
    from opq.zoo.models import NamedModel

model_options = add_options(
    click.option(
        "--weights",
        metavar="W",
        help="A checkpoint, a .opq file, the name of published weights, or none. [default: the best published ones]",
    ),
    click.option(
        "--input-size",
        type=click.IntRange(1),
        metavar="N",
        help="Height and width of the images. Default: as published.",
        cls=FurtherOption,
    ),
    click.option(
        "--mean",
        metavar="R,G,B",
        help="Mean per channel of images in 0..1. Default: as published, else ImageNet's.",
        cls=FurtherOption,
    ),
    click.option("--std", metavar="R,G,B", help="Standard deviation per channel, likewise.", cls=FurtherOption),
)
"""Adds the options of MODEL to a command."""

data_options = add_options(
    click.option("--data", required=True, metavar="DIR", help="Images: a folder for each class, or a .npz."),
    click.option(
        "--batch", type=click.IntRange(1), default=128, show_default=True, help="Images per batch.", cls=FurtherOption
    ),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Number of processes that read images.",
        cls=FurtherOption,
    ),
    click.option("--device", metavar="D", help="cpu, cuda, cuda:1. Default: cuda if available."),
)
"""Adds the options of images and device to a command."""


def make_network(model: str, given: dict[str, Any], device: str | None) -> NamedModel:
    """Make the network of a command.

    Args:
        model: Its name, as for `opq.zoo.models.open_model`.
        given: The command's parameters.
        device: Where to put it. None: the GPU if available.

    Returns:
        The network. Random initial weights are the same in every process and run.

    Raises:
        click.UsageError: --mean, --std or --device is malformed.
        OpqError: See `opq.zoo.models.open_model`.
    """
    preprocessing = read_preprocessing(given)
    from opq.zoo.models import open_model

    named = open_model(model, chosen_weights(model, given["weights"]), seed=0, **preprocessing)
    place(named, device)
    return named


def chosen_weights(model: str, weights: str | None) -> str | None:
    """The weights of a network, as for `opq.zoo.models.open_network`.

    Args:
        model: Its name.
        weights: What --weights gives. None: the published weights, or those of the factory's network; "none": initial weights.
    """
    from opq.zoo.models import default_weights

    if weights is None:
        return default_weights(model)
    return None if weights == "none" else weights


def place(named: NamedModel, device: str | None) -> None:
    """Move a network to a device.

    Args:
        named: The network.
        device: The device. None: the GPU if available.

    Raises:
        click.UsageError: There is no such device.
    """
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named.network.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(f"--device must be an available device, got {chosen!r}: {str(error).splitlines()[0]}") from None


def read_preprocessing(given: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing settings of the command line by name; None for those that are not given.

    Raises:
        click.UsageError: --mean or --std is malformed.
    """
    found: dict[str, Any] = {"input_size": given["input_size"], "mean": None, "std": None}
    for key in ("mean", "std"):
        if given[key] is not None:
            try:
                found[key] = tuple(float(part) for part in given[key].split(","))
            except ValueError:
                raise click.UsageError(f"--{key} must be numbers separated by commas, got {given[key]!r}") from None
            if len(found[key]) not in (1, 3) or not all(map(math.isfinite, found[key])):
                raise click.UsageError(f"--{key} must be one or three finite numbers, got {given[key]!r}")
            if key == "std" and min(found[key]) <= 0.0:
                raise click.UsageError(f"--std must be positive, got {given[key]!r}")
    return found
