"""opq report FILE -o report.html"""

from __future__ import annotations

import json

import click

import opq
from opq.atomic_file import refuse_existing, refuse_same
from opq.cli.help import Command
from opq.cli.output import json_option
from opq.text_table import size_text


@click.command(cls=Command)
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="HTML", help="Path of the page.")
@click.option("--dense", metavar="SOURCE", help="The checkpoint that was compressed: adds errors, and why tensors are exact.")
@click.option("--run", metavar="FOLDER", help="The folder of `opq finetune`: adds the history of the training.")
@click.option("--curve", is_flag=True, help="Add the predicted error at other sizes; needs --dense.")
@click.option("--since", metavar="OTHER", help="Another file or checkpoint of the network: adds what changed since.")
@click.option("--force", is_flag=True, help="Replace HTML if it exists.")
@json_option
def command(
    file: str,
    output: str,
    dense: str | None,
    run: str | None,
    curve: bool,
    since: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a report on a .opq FILE: one HTML page that needs no network, with pictures and the tables behind them.

    Example: opq report resnet.opq --dense resnet.safetensors --curve -o resnet.html
    """
    for source in (file, dense, run, since):
        if source is not None:
            refuse_same(source, output)
    if not force:
        refuse_existing(output, "use --force to replace it")
    page = opq.report(file, dense=dense, run=run, curve=curve, since=since, progress=True)
    page.save(output, overwrite=force)
    size = len(page.html.encode())
    click.echo(json.dumps({"file": output, "page_bytes": size}) if as_json else f"{output}: {size_text(size)}")
