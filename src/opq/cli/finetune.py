"""opq finetune MODEL --data DIR --epochs N -o FILE"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, cast

import click

import opq
from opq.cli.calibration_options import calibrate, calibration_options
from opq.cli.compression_options import compression_options, read_config, read_plan, refuse_compression_options
from opq.cli.help import Command, FurtherOption
from opq.cli.model_options import data_options, make_network, model_options, place, read_preprocessing
from opq.cli.output import check_output, output_options, save_and_print, show_information


@click.command(cls=Command)
@click.argument("model")
@model_options
@data_options
@click.option("--epochs", type=click.IntRange(1), required=True, metavar="N", help="Passes over the images.")
@compression_options
@click.option("--from", "start", metavar="FILE", help="Start from a .opq file: keep its masks and steps.")
@click.option(
    "--plan",
    "plan_file",
    metavar="PLAN",
    help="Follow a plan that `opq plan -o` wrote, instead of a target.",
    cls=FurtherOption,
)
@calibration_options
@click.option(
    "--mask-update-epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Recompute the pruning masks in the first N epochs. Default with --ratio or --size: two thirds of all epochs; else 0.",
    cls=FurtherOption,
)
@click.option(
    "--label-weight",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="Weight of the cross-entropy with the labels, 0..1. Distillation from the dense network has the rest. "
    "0 needs no labels.",
    cls=FurtherOption,
)
@click.option(
    "--learning-rate",
    type=float,
    metavar="R",
    help="Peak learning rate. Default: that of opq.TrainingConfig.",
    cls=FurtherOption,
)
@click.option(
    "--no-augment",
    is_flag=True,
    help="Train on images as `opq evaluate` sees them. Default: training images are cropped, or shifted if they are small, and "
    "flipped at random. Loss and accuracy before and after are always those of images without random changes: up to 200 "
    "batches of test images, or of training images if there are no others.",
    cls=FurtherOption,
)
@click.option("--run", "folder", metavar="FOLDER", help="Keep history and checkpoints in FOLDER, to resume.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random numbers.", cls=FurtherOption
)
@output_options
def command(model: str, start: str | None, plan_file: str | None, **given: Any) -> None:
    """Train MODEL with quantized and pruned weights, and write a .opq file of the requested size.

    Steps are fixed before training, pruning masks after two thirds of it. MODEL is torchvision:NAME, timm:NAME,
    package.module:factory or file.py:factory. To train in several processes, run `accelerate launch -m opq`.

    Example: opq finetune torchvision:resnet18 --data DIR --epochs 8 --ratio 25 -o model.opq
    """
    if start is not None and plan_file is not None:
        raise click.UsageError("--from and --plan both determine masks and steps; give one of them.")
    fixed = "--from" if start is not None else "--plan" if plan_file is not None else None
    if fixed is not None and given["calibrate"] is not None:
        raise click.UsageError(f"--calibrate and {fixed} both determine masks and steps; give one of them.")
    if fixed is not None:
        refuse_compression_options(given, fixed)
    start_from = start or (read_plan(plan_file) if plan_file else read_config(given))
    rate = {} if given["learning_rate"] is None else {"learning_rate": given["learning_rate"]}
    training = opq.TrainingConfig(
        epochs=given["epochs"],
        mask_update_epochs=given["mask_update_epochs"],
        seed=given["seed"],
        label_weight=given["label_weight"],
        **rate,
    )
    check_output(given, [start, plan_file])
    from opq.training.bn_statistics import REFRESHING
    from opq.zoo.image_data import Images, open_images, validation_images

    named = make_network(model, given, "cpu")
    images, augment = (given["data"], named.preprocessing), not given["no_augment"]
    reading = {"batch": given["batch"], "workers": given["workers"]}
    loader = open_images(*images, training=True, augment=augment, **reading)
    validation = validation_images(*images, REFRESHING * given["batch"], **reading)
    settings = None
    if given["folder"] is not None:
        digest = cast(Images, loader.dataset).digest()
        settings = {"data": digest, "batch": given["batch"], "augment": augment, **read_preprocessing(given)}
    calibration = calibrate(named, model, given) if given["calibrate"] is not None else None
    place(named, given["device"])
    accelerator = _accelerator()
    with show_information():
        finetuned = opq.finetune(
            named.network,
            loader,
            start_from,
            training,
            teacher="dense" if given["label_weight"] < 1.0 else None,
            calibration=calibration,
            validation=validation,
            folder=given["folder"],
            accelerator=accelerator,
            loader_settings=settings,
        )
    if accelerator is None or accelerator.is_main_process:
        measured = {"before": finetuned.before, "after": finetuned.after}
        more = {key: None if value is None else asdict(value) for key, value in measured.items()}
        save_and_print(finetuned.compressed, given, str(finetuned), {**more, "history": finetuned.history})


def _accelerator() -> Any:
    """An Accelerator if Accelerate started several processes, else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        from accelerate import Accelerator
    except ImportError:
        raise opq.MissingExtraError("training in several processes", "training") from None
    return Accelerator()
