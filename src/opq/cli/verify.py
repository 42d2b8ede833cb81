"""opq verify FILE"""

from __future__ import annotations

import click

import opq


@click.command()
@click.argument("file")
def command(file: str) -> None:
    """Prove that a .opq FILE is whole: checksums, every tensor decodes, and encodes again to the same bytes."""
    proof = opq.verify(file)
    click.echo(
        f"{file}: whole; {proof.weights} weights and {proof.auxiliary} auxiliary tensors in {proof.sections} sections, "
        f"{proof.file_bytes:,} bytes"
    )
