"""opq plan SOURCE"""

from __future__ import annotations

from typing import Any

import click

import opq
from opq.cli.asking import read_options, target_options
from opq.files import refuse_existing, refuse_same, write_file


@click.command()
@click.argument("source")
@target_options
@click.option("-o", "--output", metavar="PLAN", help="Write the plan as JSON, for `opq compress --plan`.")
@click.option("--force", is_flag=True, help="Replace PLAN if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON instead of as a table.")
def command(source: str, output: str | None, force: bool, as_json: bool, **given: Any) -> None:
    """Show what compressing SOURCE would do: each weight's zeros, step and bytes. Nothing is compressed.

    Bytes are predicted, to about 3%; `opq compress` with the same target counts them and meets it.
    """
    options = read_options(given)
    if output is not None:
        refuse_same(source, output)
        if not force:
            refuse_existing(output)
    plan = opq.plan(source, **options)
    if output is not None:
        write_file(output, plan.to_json().encode(), overwrite=force)
    click.echo(plan.to_json() if as_json else str(plan), nl=not as_json)
