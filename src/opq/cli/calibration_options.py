"""Options for calibration, and the calibration that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

import opq
from opq.cli.compression_options import add_options, is_given

if TYPE_CHECKING:
    from torch import Tensor

    from opq.zoo.models import NamedModel

SYNTHETIC = "synthetic"

_NUMBER = click.option(
    "--num-images", type=click.IntRange(1), default=256, show_default=True, help="Maximum number of calibration images."
)

calibration_options = add_options(
    click.option(
        "--calibrate",
        metavar=f"DIR|{SYNTHETIC}",
        help="Calibrate on these unlabelled images, or on generated images.",
    ),
    _NUMBER,
)
"""Adds the options of an optional calibration to a command."""

images_options = add_options(
    click.option(
        "--images",
        "calibrate",
        required=True,
        metavar=f"DIR|{SYNTHETIC}",
        help="A folder of unlabelled images, or generated images.",
    ),
    _NUMBER,
)
"""Adds the options of a required calibration to a command."""


def calibrate(named: NamedModel, given: dict[str, Any]) -> opq.Calibration:
    """Calibrate a network under the options of a command.

    Args:
        named: The network, on the CPU.
        given: The command's parameters.

    Returns:
        The calibration.

    Raises:
        click.UsageError: --num-images is given with synthetic images, or their size is unknown.
        CalibrationError: The network does not run on the images.
        SourceError: The images cannot be read.
    """
    if given["calibrate"] != SYNTHETIC:
        return opq.calibrate(named.network, _images(named, given))
    if is_given("num_images"):
        raise click.UsageError("--num-images requires a folder of images; leave it out with synthetic images.")
    if named.preprocessing.shape is None:
        raise click.UsageError("Synthetic images require an input size, and MODEL has none; give --input-size.")
    return opq.calibrate(named.network, shape=named.preprocessing.shape)


def _images(named: NamedModel, given: dict[str, Any]) -> Tensor:
    """A random subset of the images, the same in every run."""
    import torch

    from opq.zoo.image_data import Images, open_images

    loader = open_images(given["calibrate"], named.preprocessing, training=False)
    images = cast("Images", loader.dataset)
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: given["num_images"]].tolist()
    batch = loader.collate_fn([images[place] for place in picked])
    inputs: Tensor = batch if images.labels is None else batch[0]
    return inputs
