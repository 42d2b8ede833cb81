"""opq verify FILE"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

import opq
from opq.cli.help import Command
from opq.cli.output import json_option


@click.command(cls=Command)
@click.argument("file")
@json_option
def command(file: str, as_json: bool) -> None:
    """Check that a .opq FILE is complete and valid.

    All checksums must match, every tensor must decode, and encoding the tensors again must give the same bytes.

    Example: opq verify model.opq
    """
    found = opq.verify(file, progress=True)
    if as_json:
        click.echo(json.dumps({"file": file, "valid": True, **asdict(found)}))
        return
    click.echo(
        f"{file}: valid; {found.weights} weights and {found.auxiliary} auxiliary tensors in {found.sections} sections, "
        f"{found.file_bytes:,} bytes"
    )
