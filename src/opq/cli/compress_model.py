"""Compressing a network that is at hand, not its checkpoint alone: calibrated, or to a drop of accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

import opq
from opq.cli.compression_options import is_given, read_options, read_selection
from opq.cli.model_options import make_network, place

if TYPE_CHECKING:
    from torch import Tensor

    from opq.evaluation.accuracy_search import AccuracyTrial
    from opq.zoo.models import NamedModel


def compress_informed(model: str, given: dict[str, Any], plan_file: str | None) -> opq.CompressedModel:
    """The file of a named network, from `compress`'s options with --calibrate or --max-drop or both among them."""
    if plan_file is not None:
        raise click.UsageError("--plan says how weights are rounded; leave --calibrate and --max-drop out.")
    drop = given["max_drop"]
    if drop is not None and given["data"] is None:
        raise click.UsageError("--max-drop needs --data, labelled images.")
    if drop is None and given["data"] is not None:
        raise click.UsageError("--data goes with --max-drop; images to calibrate with are those of --calibrate DIR.")
    _refuse_idle(given)
    if given["lossless"]:
        raise click.UsageError("--lossless keeps every bit; leave --calibrate and --max-drop out.")
    options = read_options(given) if drop is None else read_selection(given, "--max-drop finds the size")
    named = make_network(model, given, "cpu")
    calibration = calibrate(named, given) if given["calibrate"] is not None else None
    if drop is None:
        if calibration is None:
            raise click.UsageError("give --calibrate or --max-drop.")
        return calibration.compress(**options)
    from opq.zoo.image_data import open_images

    loader = open_images(given["data"], named.preprocessing, training=False, batch=given["batch"], workers=given["workers"])
    place(named, given["device"])
    found = opq.compress_to_accuracy(named.network, loader, max_drop=drop, calibration=calibration, report=_report, **options)
    return found.compressed


def _refuse_idle(given: dict[str, Any]) -> None:
    """UsageError for an option that only the other of --calibrate and --max-drop, or images to calibrate with, would heed."""
    needed = [(key, "--max-drop") for key in ("batch", "workers", "device") if given["max_drop"] is None]
    if given["calibrate"] in (None, "drawn"):
        needed.append(("images", "--calibrate DIR"))
    for key, whose in needed:
        if is_given(key):
            raise click.UsageError(f"--{key} goes with {whose}.")


def calibrate(named: NamedModel, given: dict[str, Any]) -> opq.Calibration:
    """As --calibrate and --images say; the network is on the processor."""
    if given["calibrate"] != "drawn":
        return opq.calibrate(named.network, _images(named, given))
    if named.preprocessing.shape is None:
        raise click.UsageError("--calibrate drawn: the network does not tell how large its images are; give --input-size.")
    return opq.calibrate(named.network, shape=named.preprocessing.shape)


def _images(named: NamedModel, given: dict[str, Any]) -> Tensor:
    """Some of the images of a folder, drawn at random, alike at every run."""
    import torch

    from opq.zoo.image_data import Images, open_images

    loader = open_images(given["calibrate"], named.preprocessing, training=False)
    images = cast("Images", loader.dataset)
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: given["images"]].tolist()
    batch = loader.collate_fn([images[place] for place in picked])
    inputs: Tensor = batch if images.labels is None else batch[0]
    return inputs


def _report(trial: AccuracyTrial) -> None:
    made = trial.compressed
    click.echo(f"{made.file_bytes:,} bytes, ratio {made.file_ratio:.2f}: top-1 falls by {trial.drop:.2f} points", err=True)
