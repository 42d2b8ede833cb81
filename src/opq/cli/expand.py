"""opq expand FILE -o OUT"""

from __future__ import annotations

import click
import safetensors.numpy

import opq
import opq.numpy
from opq.atomic_file import refuse_existing, refuse_same, write_file


@click.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT", help="The .safetensors file to write.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(file: str, output: str, force: bool) -> None:
    """Turn a .opq FILE back into a .safetensors checkpoint with every tensor's name, shape and dtype."""
    refuse_same(file, output)
    if not force:
        refuse_existing(output)
    with opq.numpy.safe_open(file) as reader:
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a dict
        metadata = reader.metadata()
    data = safetensors.numpy.save(tensors, metadata or None)
    write_file(output, data, overwrite=force)
    click.echo(f"{output}: {len(tensors)} tensors, {len(data):,} bytes")
