"""Write options.md from the command line's own help: `python docs/options.py`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from opq.cli.main import COMMANDS

PAGE = Path(__file__).with_name("options.md")

HEAD = """# Options

Every command and its options, as `opq COMMAND --help` prints them; `python docs/options.py` writes this page. In Python the
same settings are the fields of `opq.CompressionConfig` and `opq.TrainingConfig`, or keywords of the functions: `--batch-norm
folded` is `batch_norm="folded"`, a repeated option is a list, and `--layer 'conv1.*:bits=6'` is
`layers={"conv1.*": opq.LayerConfig(bits=6)}`. Results go to stdout, progress to stderr. The exit status is 0 for success, 1 for
an error, 2 for wrong usage, and 130 for an interruption.

Completion in a shell: `eval "$(_OPQ_COMPLETE=bash_source opq)"`, with `zsh_source` or `fish_source` for other shells.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *(_section(name) for name in COMMANDS)])


def _section(name: str) -> str:
    command: click.Command = import_module(f"opq.cli.{name}").command
    arguments = " ".join(parameter.human_readable_name for parameter in command.params if isinstance(parameter, click.Argument))
    lines = [
        f"## opq {name} {arguments}",
        "",
        " ".join((command.help or "").split()),
        "",
        "| option | what it does |",
        "|---|---|",
    ]
    context = click.Context(command, info_name=name)
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            lines.append("| " + " | ".join(_cell(text) for text in (f"`{record[0]}`", record[1])) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
