"""opq inspect FILE"""

from __future__ import annotations

import json

import click

import opq


@click.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(file: str, as_json: bool) -> None:
    """Show what is in a .opq FILE: each tensor, how it is stored, and what it costs."""
    inspection = opq.inspect(file)
    click.echo(json.dumps(inspection.to_dict(), indent=1) if as_json else str(inspection))
