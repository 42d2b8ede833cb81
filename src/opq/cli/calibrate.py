"""opq calibrate MODEL --images DIR -o FILE, or --texts FILE"""

from __future__ import annotations

from typing import Any

import click

from opq.cli.calibration_options import calibrate, inputs_options
from opq.cli.compression_options import byte_target_options, read_config
from opq.cli.help import Command
from opq.cli.model_options import make_network, model_options
from opq.cli.output import check_output, output_options, save_and_print


@click.command(cls=Command)
@click.argument("model")
@model_options
@inputs_options
@byte_target_options
@output_options
def command(model: str, **given: Any) -> None:
    """Compress MODEL to a .opq file, calibrated on unlabelled images or texts, or on synthetic ones.

    Steps follow what errors in each weight cost on the inputs. The target is --ratio or --size. MODEL is torchvision:NAME,
    timm:NAME, transformers:FOLDER, package.module:factory or file.py:factory.

    Example: opq calibrate torchvision:resnet18 --images DIR --ratio 10 -o model.opq
    """
    config = read_config(given)
    check_output(given, [given["weights"]])
    named = make_network(model, given, "cpu")
    compressed = calibrate(named, model, given).compress(config, progress=True)
    save_and_print(compressed, given)
