"""opq search MODEL --max-drop D --data DIR -o FILE"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import opq
from opq.cli.calibration_options import calibrate, calibration_options
from opq.cli.compression_options import read_selection, selection_options
from opq.cli.help import Command
from opq.cli.model_options import data_options, make_network, model_options, place
from opq.cli.output import check_output, output_options, save_and_print

if TYPE_CHECKING:
    from opq.evaluation.accuracy_search import AccuracyTrial


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "--max-drop",
    type=click.FloatRange(0.0),
    required=True,
    metavar="D",
    help="Largest allowed drop of top-1 accuracy, in percentage points.",
)
@model_options
@data_options
@calibration_options
@selection_options
@output_options
def command(model: str, max_drop: float, **given: Any) -> None:
    """Find the smallest .opq file of MODEL whose top-1 accuracy on labelled images falls by at most D percentage points.

    MODEL is torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. With --calibrate, every tried file is
    calibrated.

    Example: opq search torchvision:resnet18 --data DIR --max-drop 1 -o model.opq
    """
    selection = read_selection(given)
    check_output(given, [given["weights"]])
    from opq.zoo.image_data import open_images

    named = make_network(model, given, "cpu")
    calibration = calibrate(named, model, given) if given["calibrate"] is not None else None
    loader = open_images(given["data"], named.preprocessing, training=False, batch=given["batch"], workers=given["workers"])
    place(named, given["device"])
    found = opq.compress_to_accuracy(
        named.network, loader, max_drop=max_drop, calibration=calibration, report=_report, progress=True, **selection
    )
    trials = [{"file_bytes": trial.compressed.file_bytes, "drop": trial.drop} for trial in found.trials]
    more = {"drop": found.best.drop, "dense_top1": found.dense.top1, "trials": trials}
    save_and_print(found.compressed, given, f"{found.compressed}, top-1 drop {found.best.drop:.2f} points", more)


def _report(trial: AccuracyTrial) -> None:
    click.echo(f"{trial.compressed}, top-1 drop {trial.drop:.2f} points", err=True)
