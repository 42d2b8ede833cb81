"""opq plan SOURCE"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import opq
from opq.atomic_file import refuse_existing, refuse_same, write_file
from opq.cli.compression_options import compression_options, read_config, read_selection
from opq.cli.help import Command, FurtherOption
from opq.cli.output import json_option
from opq.cli.source import open_source, source_options
from opq.errors import MissingExtraError
from opq.text_table import format_table


@click.command(cls=Command)
@click.argument("source")
@compression_options
@source_options
@click.option("-o", "--output", metavar="PLAN", help="Write the plan as JSON, for the option --plan of compress and finetune.")
@click.option("--force", is_flag=True, help="Replace PLAN or PICTURE if it exists.")
@json_option
@click.option("--curve", is_flag=True, help="Print bytes and distortion at eleven ratios from 4 to 50, instead of a target.")
@click.option(
    "--plot",
    metavar="PICTURE",
    help="With --curve: also draw the curve to a .png, .svg or .pdf file. Needs the extra opq[plot].",
    cls=FurtherOption,
)
def command(
    source: str,
    key: str | None,
    weights: str | None,
    output: str | None,
    force: bool,
    as_json: bool,
    curve: bool,
    plot: str | None,
    **given: Any,
) -> None:
    """Print zeros, step and predicted bytes of each weight of SOURCE without compressing.

    SOURCE is a checkpoint in a file of any name, a folder in Hugging Face's layout, or a network with its published weights:
    torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. The predicted size of the file is accurate to about
    3%. `opq compress` with the same target corrects the plan until the file meets the target.

    Example: opq plan model.safetensors --ratio 8
    """
    for path in (output, plot):
        if path is not None:
            refuse_same(source, path)
            for read in (given["config_file"], weights):
                if read is not None:
                    refuse_same(read, path)
            if not force:
                refuse_existing(path, "use --force to replace it")
    if curve:
        if output is not None:
            raise click.UsageError("--curve makes no plan; leave out --output.")
        if given["config_file"] is not None or any(given[key] is not None for key in ("ratio", "size", "sparsity", "bits")):
            raise click.UsageError("--curve covers all ratios; leave out the target.")
        _show_curve(opq.rd_curve(open_source(source, key, weights), progress=True, **read_selection(given)), as_json, plot)
        return
    if plot is not None:
        raise click.UsageError("--plot requires --curve.")
    config = read_config(given)
    plan = opq.plan(open_source(source, key, weights), config, progress=True)
    if output is not None:
        write_file(output, plan.to_json().encode(), overwrite=force)
    click.echo(plan.to_json() if as_json else str(plan), nl=not as_json)


def _show_curve(points: Sequence[opq.RDPoint], as_json: bool, plot: str | None) -> None:
    if plot is not None:
        write_file(plot, _draw(points, plot), overwrite=True)
    if as_json:
        click.echo(json.dumps([asdict(point) for point in points], indent=1))
        return
    rows = [
        (f"{p.ratio:.2f}", f"{p.bytes:,}", f"{p.bits_per_weight:.3f}", f"{100.0 * p.sparsity:.2f}%", f"{p.distortion:.4f}")
        for p in points
    ]
    click.echo(format_table(("ratio", "bytes", "bits/weight", "zeros", "distortion"), rows))


def _draw(points: Sequence[opq.RDPoint], path: str) -> bytes:
    """The picture's bytes: a full disk must not cost the old one."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("--plot", "plot") from None
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--plot must end in .png, .svg or .pdf, got {path!r}.")
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([point.ratio for point in points], [point.distortion for point in points], marker="o", markersize=3)
    axes.set(xlabel="file ratio", ylabel="distortion (squared error over energy)", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:])
    return picture.getvalue()
