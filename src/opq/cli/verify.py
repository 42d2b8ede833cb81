"""opq verify FILE"""

from __future__ import annotations

import click

import opq


@click.command()
@click.argument("file")
def command(file: str) -> None:
    """Check that a .opq FILE is complete and valid.

    All checksums must match, every tensor must decode, and encoding the tensors again must give the same bytes.

    Example: opq verify model.opq
    """
    found = opq.verify(file)
    click.echo(
        f"{file}: valid; {found.weights} weights and {found.auxiliary} auxiliary tensors in {found.sections} sections, "
        f"{found.file_bytes:,} bytes"
    )
