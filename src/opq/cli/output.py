"""Output of the commands that write a .opq file: the path is checked before the work, and the size printed after it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import opq
from opq.atomic_file import refuse_existing, refuse_same
from opq.cli.compression_options import add_options
from opq.errors import OutputError
from opq.progress import logger
from opq.reporting.model_folder import refuse_files, transformers_config

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON. docs/options.md lists its keys.")
"""Adds --json to a command."""

output_options = add_options(
    click.option("-o", "--output", required=True, metavar="FILE", help="Path of the .opq file."),
    click.option("--force", is_flag=True, help="Replace FILE if it exists."),
    json_option,
)
"""Adds the options of the output to a command that writes a .opq file."""

_INPUTS = ("config_file", "plan_file", "calibrate", "data", "weights")
"""Parameters of commands that may name a file or a folder that is read."""


def check_output(given: dict[str, Any], sources: Sequence[str | None]) -> None:
    """Check the output path before the work.

    Args:
        given: The command's parameters.
        sources: Paths that the command reads beside those of its options, or None.

    Raises:
        OutputError: The output is one of the sources, ends like a checkpoint, or it exists and --force is not given.
    """
    for source in (*sources, *(given.get(key) for key in _INPUTS)):
        if source is not None:
            refuse_same(source, given["output"])
    if Path(given["output"]).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise OutputError(given["output"], "it would hold a .opq file; choose a path that ends in .opq")
    if not given["force"]:
        refuse_existing(given["output"], "use --force to replace it")


def check_folder(given: dict[str, Any], source: str) -> None:
    """Check an output folder before the work, and that the source is a folder of transformers.

    Args:
        given: The command's parameters.
        source: The source.

    Raises:
        OutputError: The output is the source, or it has files and --force is not given.
        SourceError: The source is not such a folder.
    """
    refuse_same(source, given["output"])
    transformers_config(Path(source))
    if not given["force"]:
        refuse_files(Path(given["output"]), "use --force to replace them")


@contextmanager
def show_information() -> Iterator[None]:
    """Context in which the library's messages about what it does go to stderr, a line each."""
    handler, level = logging.StreamHandler(), logger.level
    handler.addFilter(lambda record: record.levelno == logging.INFO)  # warnings have a handler of their own
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def save_and_print(
    compressed: opq.CompressedModel,
    given: dict[str, Any],
    line: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the file, and print its sizes in a line or as JSON.

    Args:
        compressed: The compressed network.
        given: The command's parameters.
        line: Text to print after the path. None: the sizes.
        more: Further JSON values by name.

    Raises:
        OutputError: The file cannot be written.
    """
    compressed.save(given["output"], overwrite=given["force"])
    print_sizes(compressed, given, line, more)


def print_sizes(
    compressed: opq.CompressedModel,
    given: dict[str, Any],
    line: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """As `save_and_print`, of a file that is written."""
    output = given["output"]
    if given["as_json"]:
        inspection = opq.inspect_delta if isinstance(compressed, opq.Delta) else opq.inspect
        result = inspection(output).to_dict()
        del result["tensors"], result["metadata"]
        click.echo(json.dumps({"file": output, **result, **(more or {})}))
    else:
        click.echo(f"{output}: {line or compressed}")
