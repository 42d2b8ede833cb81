"""opq evaluate MODEL [FILE] --data DIR"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import Any

import click

import opq
from opq.cli.help import Command
from opq.cli.model_options import data_options, make_network, model_options
from opq.cli.output import json_option
from opq.text_table import format_table


@click.command(cls=Command)
@click.argument("model")
@click.argument("file", required=False)
@model_options
@data_options
@json_option
def command(model: str, file: str | None, as_json: bool, **given: Any) -> None:
    """Print the accuracy of MODEL on the images, and the accuracy with the weights of a .opq FILE.

    MODEL is torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. If the accuracy is not the expected one,
    give the preprocessing: --mean, --std and --input-size. The agreement is the percentage of images that MODEL, dense and with
    the weights of FILE, assigns to the same class.

    Example: opq evaluate torchvision:resnet18 model.opq --data DIR
    """
    from opq.zoo.image_data import open_images
    from opq.zoo.models import load_weights

    named = make_network(model, given, given["device"])
    loader = open_images(given["data"], named.preprocessing, training=False, batch=given["batch"], workers=given["workers"])
    results = {"dense": opq.evaluate(named.network, loader, progress=True)}
    if file is not None:
        compressed = copy.deepcopy(named.network)
        load_weights(model, compressed, file)
        results["file"] = opq.evaluate(compressed, loader, dense=named.network, progress=True)
    if as_json:
        click.echo(json.dumps({key: asdict(value) for key, value in results.items()}, indent=1))
        return
    columns = ("weights", "images", "top-1 %", "top-5 %", "loss", "agreement %")
    rows = [
        (
            str(file) if key == "file" else "dense",
            f"{found.inputs:,}",
            *(
                _text(value, digits)
                for value, digits in ((found.top1, 2), (found.top5, 2), (found.loss, 4), (found.agreement, 2))
            ),
        )
        for key, found in results.items()
    ]
    click.echo(format_table(columns, rows))


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
