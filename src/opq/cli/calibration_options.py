"""Options for calibration, and the calibration that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import opq
from opq.cli.compression_options import add_options, is_given
from opq.cli.help import FurtherOption

if TYPE_CHECKING:
    from opq.zoo.models import NamedModel

SYNTHETIC = "synthetic"

_TRANSFORMERS = "transformers:"
_TEXTS = 128

_NUMBER = click.option(
    "--num-images",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Maximum number of calibration images.",
    cls=FurtherOption,
)

calibration_options = add_options(
    click.option(
        "--calibrate",
        metavar=f"DIR|{SYNTHETIC}",
        help="Calibrate on unlabelled images, or on generated ones.",
    ),
    _NUMBER,
)
"""Adds the options of an optional calibration to a command."""

inputs_options = add_options(
    click.option(
        "--images",
        "calibrate",
        metavar=f"DIR|{SYNTHETIC}",
        help="A folder of unlabelled images, or generated images.",
    ),
    click.option(
        "--texts",
        metavar="FILE",
        help="Of a MODEL of transformers: a text file. Blank lines separate texts, or else lines. Default: texts that the "
        "model draws itself.",
    ),
    _NUMBER,
)
"""Adds the options of the inputs of `opq calibrate`."""


def calibrate(named: NamedModel, model: str, given: dict[str, Any]) -> opq.Calibration:
    """Calibrate a network under the options of a command.

    Args:
        named: The network, on the CPU.
        model: The command's MODEL.
        given: The command's parameters.

    Returns:
        The calibration.

    Raises:
        click.UsageError: The options do not fit each other or MODEL, or the size of synthetic images is unknown.
        CalibrationError: The network does not run on the images.
        SourceError: The images cannot be read.
    """
    if given.get("texts") is not None or (given["calibrate"] is None and model.startswith(_TRANSFORMERS)):
        return _of_texts(named, model, given)
    if given["calibrate"] is None:
        raise click.UsageError("Give --images: a folder of images, or synthetic.")
    if given["calibrate"] != SYNTHETIC:
        from opq.zoo.image_data import sample_images

        return opq.calibrate(
            named.network, sample_images(given["calibrate"], named.preprocessing, given["num_images"]), progress=True
        )
    if is_given("num_images"):
        raise click.UsageError("--num-images requires a folder of images; leave it out with synthetic images.")
    if named.preprocessing.shape is None:
        raise click.UsageError("Synthetic images require an input size, and MODEL has none; give --input-size.")
    return opq.calibrate(named.network, shape=named.preprocessing.shape, progress=True)


def _of_texts(named: NamedModel, model: str, given: dict[str, Any]) -> opq.Calibration:
    from opq.zoo.transformers_folder import open_tokenizer, read_texts

    if given["calibrate"] is not None or is_given("num_images"):
        raise click.UsageError("--texts and --images are for different networks; give one of them.")
    if not model.startswith(_TRANSFORMERS):
        raise click.UsageError("--texts requires a MODEL of transformers, transformers:FOLDER, which has a tokenizer.")
    if given["texts"] is None:
        return opq.calibrate(named.network, progress=True)
    tokenizer = open_tokenizer(model, model.removeprefix(_TRANSFORMERS))
    return opq.calibrate(named.network, read_texts(given["texts"], _TEXTS), tokenizer=tokenizer, progress=True)
