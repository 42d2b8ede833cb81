"""opq compress SOURCE -o FILE"""

from __future__ import annotations

import json
import os
from typing import Any

import click

import opq
from opq.cli.compression_options import compression_options, read_config, read_plan, refuse_compression_options
from opq.cli.help import Command, FurtherOption
from opq.cli.output import check_folder, check_output, output_options, print_sizes, save_and_print
from opq.cli.source import base_option, open_source, source_options
from opq.codec.file_start import DELTA_MAGIC, MAGIC, magic_of
from opq.reporting.coded_folder import compress_for_folder


@click.command(cls=Command)
@click.argument("source")
@compression_options
@source_options
@click.option("--lossless", is_flag=True, help="Keep every bit, instead of meeting a target.")
@base_option("FILE")
@click.option("--plan", "plan_file", metavar="PLAN", help="Follow a plan of `opq plan -o`.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["file", "transformers"]),
    default="file",
    help="transformers: FILE is a folder that from_pretrained loads after `import opq.transformers`. [default: file]",
)
@click.option(
    "--quality",
    metavar="TEXT",
    help="What was measured of the network's quality, for the README.md of that folder.",
    cls=FurtherOption,
)
@click.option("--ray", metavar="CLUSTER", help="Encode on a Ray cluster: its address, or local.")
@output_options
def command(
    source: str,
    key: str | None,
    weights: str | None,
    base: tuple[str, ...],
    plan_file: str | None,
    ray: str | None,
    **given: Any,
) -> None:
    """Compress SOURCE to a .opq file, using the weights alone.

    SOURCE is a checkpoint in a file of any name, a folder in Hugging Face's layout, or a network with its published weights:
    torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. With --ratio or --size, the file takes at most that
    many bytes, and at least 99.5% of them. With --lossless, every tensor is restored bit for bit.

    With --base, FILE is a delta: what SOURCE, which may also be a .opq file, adds to OLD, bit for bit.

    Example: opq compress model.safetensors --ratio 8 -o model.opq
    """
    if base:
        if ray is not None:
            raise click.UsageError("--base and --ray exclude each other.")
        _compress_delta(source, key, weights, base, plan_file, given)
        return
    if plan_file is not None:
        refuse_compression_options(given, "--plan")
    config = read_plan(plan_file) if plan_file is not None else read_config(given)
    form, quality = given.pop("form"), given.pop("quality")
    is_folder = form == "transformers"
    if quality is not None and not is_folder:
        raise click.UsageError("--quality needs --as transformers")
    if is_folder:
        check_folder(given, source)
    else:
        check_output(given, [source, plan_file, weights])
    if ray is not None:
        if is_folder or not os.path.exists(source):
            raise click.UsageError("--ray makes a .opq file of a checkpoint on disk; leave out --ray, or --as and a network.")
        print_sizes(opq.save(source, given["output"], config, key=key, ray=ray), given)
        return
    if not is_folder:
        save_and_print(opq.compress(open_source(source, key, weights), config, progress=True), given)
        return
    compressed = compress_for_folder(open_source(source, key, weights), config, progress=True)
    folder = opq.save_pretrained(compressed, given["output"], like=source, quality=quality, overwrite=given["force"])
    click.echo(json.dumps(folder.to_dict()) if given["as_json"] else f"{folder.path}: {folder}")


def _compress_delta(
    source: str, key: str | None, weights: str | None, base: tuple[str, ...], plan_file: str | None, given: dict[str, Any]
) -> None:
    refuse_compression_options({**given, "lossless": None}, "--base", "keeps every bit")
    if plan_file is not None or given["form"] != "file" or given["quality"] is not None:
        raise click.UsageError("--base keeps every bit of a checkpoint; leave out --plan, --as and --quality.")
    check_output(given, [source, weights, *base])
    opened = source if magic_of(source) in (MAGIC, DELTA_MAGIC) else open_source(source, key, weights)
    save_and_print(opq.compress(opened, base=list(base), progress=True), given)
