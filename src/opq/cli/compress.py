"""opq compress SOURCE -o FILE"""

from __future__ import annotations

import json
from typing import Any

import click

import opq
from opq.cli.compression_options import compression_options, read_config, read_plan, refuse_compression_options
from opq.cli.output import check_folder, check_output, output_options, save_and_print
from opq.cli.source import base_option, open_source, source_options
from opq.codec.delta_file import magic_of
from opq.codec.file_writer import DELTA_MAGIC, MAGIC


@click.command()
@click.argument("source")
@compression_options
@source_options
@click.option(
    "--lossless", is_flag=True, help="Keep every bit, instead of meeting a target; for clustered or quantized weights."
)
@base_option("FILE")
@click.option("--plan", "plan_file", metavar="PLAN", help="Follow a plan that `opq plan -o` wrote, instead of a target.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["file", "transformers"]),
    default="file",
    help="transformers: FILE is a folder that from_pretrained loads after `import opq.transformers`, with the config and "
    "tokenizer of the folder SOURCE. [default: file]",
)
@click.option("--quality", metavar="TEXT", help="What was measured of the network's quality, for the README.md of that folder.")
@output_options
def command(
    source: str, key: str | None, weights: str | None, base: tuple[str, ...], plan_file: str | None, **given: Any
) -> None:
    """Compress SOURCE to a .opq file, using the weights alone.

    SOURCE is a checkpoint in a file of any name, a folder in Hugging Face's layout, or a network with its published weights:
    torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. With --ratio or --size, the file takes at most that
    many bytes, and at least 99.5% of them. With --lossless, every tensor is restored bit for bit.

    With --base, FILE is a delta: what SOURCE, which may also be a .opq file, adds to OLD. `opq expand FILE --base OLD` restores
    every tensor bit for bit.

    Example: opq compress model.safetensors --ratio 8 -o model.opq
    """
    if base:
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
    compressed = opq.compress(open_source(source, key, weights), config, progress=True)
    if not is_folder:
        save_and_print(compressed, given)
        return
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
