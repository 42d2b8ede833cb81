"""The options of commands that calibrate a network, and what they stand for."""

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
    "--num-images", type=click.IntRange(1), default=256, show_default=True, help="Calibration images to use, at most."
)

calibration_options = add_options(
    click.option(
        "--calibrate",
        metavar=f"DIR|{SYNTHETIC}",
        help="Start from a file that is calibrated on these unlabelled images, or on synthetic ones.",
    ),
    _NUMBER,
)
"""Adds an optional calibration to a command."""

images_options = add_options(
    click.option(
        "--images", "calibrate", required=True, metavar=f"DIR|{SYNTHETIC}", help="Unlabelled images, or synthetic ones."
    ),
    _NUMBER,
)
"""Adds a required calibration to a command."""


def calibrate(named: NamedModel, given: dict[str, Any]) -> opq.Calibration:
    """The calibration that a command's options ask for; the network is on the CPU."""
    if given["calibrate"] != SYNTHETIC:
        return opq.calibrate(named.network, _images(named, given))
    if is_given("num_images"):
        raise click.UsageError("--num-images needs a folder of images.")
    if named.preprocessing.shape is None:
        raise click.UsageError("synthetic images need a size, and the network has none; give --input-size.")
    return opq.calibrate(named.network, shape=named.preprocessing.shape)


def _images(named: NamedModel, given: dict[str, Any]) -> Tensor:
    """Some of the images of a folder, drawn at random, the same in every run."""
    import torch

    from opq.zoo.image_data import Images, open_images

    loader = open_images(given["calibrate"], named.preprocessing, training=False)
    images = cast("Images", loader.dataset)
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: given["num_images"]].tolist()
    batch = loader.collate_fn([images[place] for place in picked])
    inputs: Tensor = batch if images.labels is None else batch[0]
    return inputs
