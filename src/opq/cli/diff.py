"""opq diff BEFORE AFTER"""

from __future__ import annotations

import json

import click

import opq
from opq.cli.help import Command
from opq.cli.output import json_option


@click.command(cls=Command)
@click.argument("before")
@click.argument("after")
@json_option
def command(before: str, after: str, as_json: bool) -> None:
    """Print what changed between two .opq files or checkpoints of one network, tensor by tensor.

    error: norm of the difference over the norm before. codes: how many differ. step x: the step after over that before.

    Example: opq diff monday.opq tuesday.opq
    """
    found = opq.diff(before, after, progress=True)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))
