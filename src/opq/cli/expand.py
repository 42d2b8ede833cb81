"""opq expand FILE -o OUT"""

from __future__ import annotations

import click

import opq
from opq.atomic_file import refuse_existing, refuse_same


@click.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT", help="Path of the .safetensors file.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(file: str, output: str, force: bool) -> None:
    """Convert a .opq FILE to a .safetensors checkpoint. Each tensor keeps its name, shape and dtype."""
    refuse_same(file, output)
    if not force:
        refuse_existing(output, "use --force to replace it")
    written = opq.expand(file, output, overwrite=force)
    click.echo(f"{output}: {written.tensors} tensors, {written.file_bytes:,} bytes")
