"""opq expand FILE -o OUT"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

import opq
from opq.atomic_file import refuse_same
from opq.cli.help import Command
from opq.cli.output import json_option
from opq.cli.source import base_option
from opq.progress import logger
from opq.reporting.expand import check_output
from opq.reporting.onnx_export import CHOICES


@click.command(cls=Command)
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT", help="Path of the .safetensors or .onnx file, or of a folder.")
@base_option("FILE")
@click.option("--like", metavar="FOLDER", help="The folder with the config and tokenizer. [default: that of FILE]")
@click.option(
    "--weights",
    type=click.Choice(CHOICES),
    default="float",
    show_default=True,
    help="Of a .onnx file: weights as integers where their codes fit.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@json_option
def command(file: str, output: str, base: tuple[str, ...], like: str | None, weights: str, force: bool, as_json: bool) -> None:
    """Convert a .opq FILE to a .safetensors checkpoint. Each tensor keeps its name, shape and dtype.

    If OUT ends in .onnx, it is the ONNX model from which FILE was made. --weights int8 and int4 keep codes as integers of 8 or
    4 bits, which the model multiplies by their steps: a small model with the same values. auto takes 4 bits where all codes
    fit.

    If OUT ends in another way than .safetensors, .sft and .onnx, it is a folder for from_pretrained: the checkpoint, and copies
    of the config, the tokenizer and similar files.

    If FILE is a delta, --base names what it was made from, which is checked. If that and OUT end in .opq, OUT has the codes and
    steps of the .opq file that the delta was made from.

    Example: opq expand model.opq -o dense.safetensors
    """
    refuse_same(file, output)
    if not force:
        check_output(output, "use --force to replace it")
    written = opq.expand(file, output, base=list(base) or None, like=like, weights=weights, overwrite=force, progress=True)
    if as_json:
        fields = asdict(written)
        click.echo(json.dumps({"file": str(fields.pop("path")), **fields}))
        return
    integers = f", {len(written.integers)} weights as integers" if written.integers else ""
    click.echo(f"{written.path}: {written.tensors} tensors, {written.file_bytes:,} bytes{integers}")
    for reason in sorted(set(written.floats.values())):
        names = [name for name, why in written.floats.items() if why == reason]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        logger.warning("%s%s stay in floating point: %s", ", ".join(names[:3]), more, reason)
