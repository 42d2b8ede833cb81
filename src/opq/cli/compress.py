"""opq compress SOURCE -o FILE, and opq compress MODEL --calibrate DIR -o FILE"""

from __future__ import annotations

import json
from typing import Any

import click

import opq
from opq.atomic_file import refuse_existing, refuse_same
from opq.cli.compress_model import compress_informed
from opq.cli.compression_options import is_given, read_options, read_plan, target_options
from opq.cli.model_options import INFORMED, informed_options
from opq.compression.journal import work_path
from opq.progress import progress_bar


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="FILE", help="The .opq file to write.")
@target_options
@click.option("--lossless", is_flag=True, help="Keep every bit, in place of a target: for clustered or quantized weights.")
@click.option("--plan", "plan_file", metavar="PLAN", help="Follow a plan that `opq plan -o` wrote, in place of a target.")
@informed_options
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(source: str, output: str, plan_file: str | None, force: bool, as_json: bool, **given: Any) -> None:
    """Compress SOURCE to a .opq file.

    With --ratio or --size the file, all of it, takes at most that many bytes, and close to it. With --lossless every tensor
    comes back bit for bit: weights that were clustered or quantized elsewhere become codes, far smaller than their values. A
    long run keeps what it has done in FILE.partial: when it was stopped, the same command goes on where it was.

    With --calibrate or --max-drop SOURCE is the network itself, MODEL: torchvision:NAME, timm:NAME, package.module:factory or
    file.py:factory.
    """
    informed = given["calibrate"] is not None or given["max_drop"] is not None
    if not informed and (idle := [key for key in INFORMED if is_given(key)]):
        raise click.UsageError(f"--{idle[0].replace('_', '-')} goes with --calibrate or --max-drop.")
    refuse_same(source if not informed else given["weights"] or source, output)
    if not force:
        refuse_existing(output)
    compressed = compress_informed(source, given, plan_file) if informed else _compress(source, output, plan_file, given)
    compressed.save(output, overwrite=force)
    inspection = opq.inspect(output)
    if as_json:
        result = inspection.to_dict()
        del result["tensors"], result["metadata"]
        click.echo(json.dumps({"file": output, **result}))
    else:
        click.echo(f"{output}: {inspection.summary()}")


def _compress(source: str, output: str, plan_file: str | None, given: dict[str, Any]) -> opq.CompressedModel:
    options = read_options(given, required=plan_file is None)
    plan = read_plan(plan_file) if plan_file is not None else None
    with progress_bar() as progress:
        return opq.compress(source, plan=plan, progress=progress, work_file=work_path(output), **options)
