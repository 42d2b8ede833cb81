"""The options of commands that take a MODEL: which network, with which weights, on which images, on which device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from opq.cli.compression_options import add_options

if TYPE_CHECKING:
    from opq.zoo.models import NamedModel

model_options = add_options(
    click.option("--weights", metavar="W", help="A checkpoint or .opq file, or published weights by name."),
    click.option("--input-size", type=click.IntRange(1), help="Height and width of the images, if the network has none."),
    click.option("--mean", metavar="R,G,B", help="Mean per channel of images in 0..1, if the network has none."),
    click.option("--std", metavar="R,G,B", help="Standard deviation per channel, if the network has none."),
)
"""Adds MODEL's own options to a command."""

data_options = add_options(
    click.option("--data", required=True, metavar="DIR", help="Images, in a folder per class, or a .npz file."),
    click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Images per batch."),
    click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images."),
    click.option("--device", metavar="D", help="cpu, cuda, cuda:1, ...; by default cuda if there is one."),
)
"""Adds the images that a network is trained or evaluated on to a command."""


def make_network(model: str, given: dict[str, Any], device: str | None) -> NamedModel:
    """The network of a command, on its device; one without weights has the same random ones in every process and run."""
    preprocessing = _read_preprocessing(given)
    from opq.zoo.models import open_model

    named = open_model(model, given["weights"], seed=0, **preprocessing)
    place(named, device)
    return named


def place(named: NamedModel, device: str | None) -> None:
    """Move a network to a device, by default to the GPU if there is one."""
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named.network.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(f"--device {chosen}: {str(error).splitlines()[0]}") from None


def _read_preprocessing(given: dict[str, Any]) -> dict[str, Any]:
    """What the command says about the network's images, None if it says nothing."""
    found: dict[str, Any] = {"input_size": given["input_size"], "mean": None, "std": None}
    for key in ("mean", "std"):
        if given[key] is not None:
            try:
                found[key] = tuple(float(part) for part in given[key].split(","))
            except ValueError:
                raise click.UsageError(f"--{key}: expected numbers with commas between, got {given[key]!r}") from None
            if len(found[key]) not in (1, 3) or not all(map(math.isfinite, found[key])):
                raise click.UsageError(f"--{key}: expected one finite number, or three, got {given[key]!r}")
            if key == "std" and min(found[key]) <= 0.0:
                raise click.UsageError(f"--std: expected one finite number, or three, > 0, got {given[key]!r}")
    return found
