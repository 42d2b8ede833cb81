"""opq compress SOURCE -o FILE"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import opq
from opq.cli.asking import read_options, target_options
from opq.compression import work_path
from opq.files import refuse_existing, refuse_same
from opq.progress import progress_bar


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="FILE", help="The .opq file to write.")
@target_options
@click.option("--lossless", is_flag=True, help="Keep every bit, in place of a target: for clustered or quantized weights.")
@click.option("--plan", "plan_file", metavar="PLAN", help="Follow a plan that `opq plan -o` wrote, in place of a target.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(source: str, output: str, plan_file: str | None, force: bool, as_json: bool, **given: Any) -> None:
    """Compress SOURCE to a .opq file.

    With --ratio or --size the file, all of it, takes at most that many bytes, and close to it. With --lossless every tensor
    comes back bit for bit: weights that were clustered or quantized elsewhere become codes, far smaller than their values. A
    long run keeps what it has done in FILE.partial: when it was stopped, the same command goes on where it was.
    """
    options = read_options(given, required=plan_file is None)
    refuse_same(source, output)
    if not force:
        refuse_existing(output)
    plan = _read_plan(plan_file) if plan_file is not None else None
    with progress_bar() as progress:
        compressed = opq.compress(source, plan=plan, progress=progress, work_file=work_path(output), **options)
    compressed.save(output, overwrite=force)
    inspection = opq.inspect(output)
    if as_json:
        result = inspection.to_dict()
        del result["tensors"], result["metadata"]
        click.echo(json.dumps({"file": output, **result}))
    else:
        click.echo(f"{output}: {inspection.summary()}")


def _read_plan(path: str) -> opq.Plan:
    try:
        return opq.Plan.from_json(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise opq.PlanError(f"{path} is not text") from None
    except OSError as error:
        raise opq.PlanError(f"cannot read {path}: {error.strerror}") from None
