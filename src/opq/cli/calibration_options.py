"""Options for calibration, and the calibration that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import opq
from opq.cli.compression_options import add_options, is_given

if TYPE_CHECKING:
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
        from opq.zoo.image_data import sample_images

        return opq.calibrate(named.network, sample_images(given["calibrate"], named.preprocessing, given["num_images"]))
    if is_given("num_images"):
        raise click.UsageError("--num-images requires a folder of images; leave it out with synthetic images.")
    if named.preprocessing.shape is None:
        raise click.UsageError("Synthetic images require an input size, and MODEL has none; give --input-size.")
    return opq.calibrate(named.network, shape=named.preprocessing.shape)
