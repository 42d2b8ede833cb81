"""opq inspect FILE"""

from __future__ import annotations

import json

import click

import opq
from opq.cli.help import Command
from opq.cli.output import json_option
from opq.codec.file_start import DELTA_MAGIC, magic_of


@click.command(cls=Command)
@click.argument("file")
@click.option("--all", "every", is_flag=True, help="A row for every tensor, and more columns: storage, dtype, error, scales.")
@click.option("--compare", is_flag=True, help="Also compress the tensors with gzip, zstd and xz; about 3 s per 10 MB.")
@json_option
def command(file: str, every: bool, compare: bool, as_json: bool) -> None:
    """Print the weights of a .opq FILE, their zeros, bits and bytes, and what the bytes of the file are used for.

    Of a delta, print how each tensor is stored that is not as in its base.

    Example: opq inspect model.opq
    """
    if magic_of(file) == DELTA_MAGIC:
        if compare:
            raise click.UsageError("--compare needs a complete file; FILE is a delta.")
        delta = opq.inspect_delta(file)
        click.echo(json.dumps(delta.to_dict(), indent=1) if as_json else delta.table(every=every))
        return
    inspection = opq.inspect(file, progress=True)
    comparison = opq.compare(file, progress=True) if compare else None
    if as_json:
        compared = {} if comparison is None else {"comparison": comparison.to_dict()}
        click.echo(json.dumps({**inspection.to_dict(), **compared}, indent=1))
    else:
        table = inspection.table(every=every)
        click.echo(table if comparison is None else f"{table}\n\n{comparison}")
