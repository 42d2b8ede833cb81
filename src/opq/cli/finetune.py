"""opq finetune MODEL --data DIR --epochs N -o FILE"""

from __future__ import annotations

import os
from typing import Any

import click

import opq
from opq.atomic_file import refuse_existing, refuse_same
from opq.cli.compress_model import calibrate
from opq.cli.compression_options import is_given, read_options, read_plan, target_options
from opq.cli.model_options import calibration_options, make_network, network_options, place


@click.command()
@click.argument("model")
@network_options
@click.option("--epochs", type=click.IntRange(1), required=True, metavar="N", help="Passes over the images.")
@click.option("-o", "--output", required=True, metavar="FILE", help="The .opq file to write.")
@target_options
@click.option("--from", "start", metavar="FILE", help="Keep the masks and steps of a .opq file, in place of a target.")
@click.option("--plan", "plan_file", metavar="PLAN", help="Follow a plan that `opq plan -o` wrote, in place of a target.")
@calibration_options
@click.option(
    "--open-epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Leave open in the first N epochs which weights are pruned; by default two thirds, where a ratio or size plans them.",
)
@click.option(
    "--labels",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="Share of the labels in what is learnt; the dense network teaches the rest, and the images need no labels at 0.",
)
@click.option("--learning-rate", type=float, metavar="R", help="The highest; by default that of opq.Recipe.")
@click.option("--run", "folder", metavar="FOLDER", help="Keep history and checkpoints there, and go on from them.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything drawn at random.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(model: str, output: str, start: str | None, plan_file: str | None, force: bool, **given: Any) -> None:
    """Train MODEL's weights with the steps of a plan, and write a .opq file of the asked size.

    MODEL is torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. Under `accelerate launch -m opq` it trains
    in as many processes as that starts.
    """
    if start is not None and plan_file is not None:
        raise click.UsageError("--from and --plan both say how to compress; give one of them.")
    fixed = start is not None or plan_file is not None
    if fixed and given["calibrate"] is not None:
        raise click.UsageError("--calibrate decides masks and steps, and so do --from and --plan; give one of them.")
    if given["calibrate"] in (None, "drawn") and is_given("images"):
        raise click.UsageError("--images goes with --calibrate DIR.")
    options = read_options(given, required=not fixed)
    for source in filter(None, (given["weights"], start)):
        refuse_same(source, output)
    if not force:
        refuse_existing(output)
    from opq.zoo.image_data import open_images

    named = make_network(model, given, "cpu")
    loader = open_images(given["data"], named.preprocessing, training=True, batch=given["batch"], workers=given["workers"])
    calibration = calibrate(named, given) if given["calibrate"] is not None else None
    place(named, given["device"])
    recipe = opq.TrainingConfig(labels=given["labels"])
    if given["learning_rate"] is not None:
        recipe = opq.TrainingConfig(labels=given["labels"], learning_rate=given["learning_rate"])
    accelerator = _accelerator()
    finetuned = opq.finetune(
        named.network,
        loader,
        epochs=given["epochs"],
        start=read_plan(plan_file) if plan_file else start,
        teacher="dense" if given["labels"] < 1.0 else None,
        recipe=recipe,
        calibration=calibration,
        mask_update_epochs=given["open_epochs"],
        folder=given["folder"],
        seed=given["seed"],
        accelerator=accelerator,
        **options,
    )
    if accelerator is None or accelerator.is_main_process:
        finetuned.save(output, overwrite=force)
        click.echo(f"{output}: {finetuned}")


def _accelerator() -> Any:
    """Accelerate's, where it started several processes; else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        from accelerate import Accelerator
    except ImportError:
        raise opq.MissingExtraError("training in several processes", "training") from None
    return Accelerator()
