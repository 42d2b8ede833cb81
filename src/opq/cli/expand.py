"""opq expand FILE -o OUT"""

from __future__ import annotations

import click

import opq
from opq.atomic_file import refuse_same
from opq.reporting.expand import check_output


@click.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT", help="Path of the .safetensors file, or of a folder.")
@click.option("--like", metavar="FOLDER", help="The folder with the config and tokenizer. [default: that of FILE]")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(file: str, output: str, like: str | None, force: bool) -> None:
    """Convert a .opq FILE to a .safetensors checkpoint. Each tensor keeps its name, shape and dtype.

    If OUT does not end in .safetensors or .sft, it is a folder for from_pretrained: the checkpoint, and copies of the
    config, the tokenizer and similar files.

    Example: opq expand model.opq -o dense.safetensors
    """
    refuse_same(file, output)
    if not force:
        check_output(output, "use --force to replace it")
    written = opq.expand(file, output, like=like, overwrite=force)
    click.echo(f"{written.path}: {written.tensors} tensors, {written.file_bytes:,} bytes")
