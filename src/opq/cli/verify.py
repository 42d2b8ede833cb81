"""opq verify FILE"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

import opq
from opq.cli.help import Command
from opq.cli.output import json_option
from opq.cli.source import base_option


@click.command(cls=Command)
@click.argument("file")
@base_option("FILE")
@json_option
def command(file: str, base: tuple[str, ...], as_json: bool) -> None:
    """Check that a .opq FILE is complete and valid.

    All checksums must match, every tensor must decode, and encoding the tensors again must give the same bytes.

    Of a delta without --base only checksums and header are checked.

    Example: opq verify model.opq
    """
    try:
        found = opq.verify(file, base=list(base) or None, progress=True)
    except opq.FormatError as error:
        if as_json:
            click.echo(json.dumps({"file": file, "valid": False, "error": str(error)}))
        raise
    if as_json:
        click.echo(json.dumps({"file": file, "valid": found.decoded, **asdict(found)}))
        return
    if found.base is not None:
        checked = "valid" if found.decoded else "undamaged; --base OLD checks its tensors too"
        click.echo(
            f"{file}: a delta, {checked}; {found.weights + found.auxiliary} tensors in {found.sections} sections, "
            f"{found.file_bytes:,} bytes, SHA-256 of its base {found.base}"
        )
        return
    click.echo(
        f"{file}: valid; {found.weights} weights and {found.auxiliary} auxiliary tensors in {found.sections} sections, "
        f"{found.file_bytes:,} bytes"
    )
