"""Write options.md from the command line's own help: `python docs/options.py`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from opq.cli.main import COMMANDS

PAGE = Path(__file__).with_name("options.md")

HEAD = """# Options

Every command and its options, as `opq COMMAND --help-all` prints them; `python docs/options.py` writes this page. In Python the
same settings are the fields of `opq.CompressionConfig` and `opq.TrainingConfig`, or keywords of the functions: `--batch-norm
folded` is `batch_norm="folded"`, a repeated option is a list, and `--layer 'conv1.*:bits=6'` is
`layers={"conv1.*": opq.LayerConfig(bits=6)}`. Results go to stdout, progress to stderr. The exit status is 0 for success, 1 for
an error, 2 for wrong usage, and 130 for an interruption.

## Completion in a shell

Commands, options and their choices are completed after Tab. Add a line to the file that your shell reads when it starts:

    eval "$(_OPQ_COMPLETE=bash_source opq)"     # ~/.bashrc
    eval "$(_OPQ_COMPLETE=zsh_source opq)"      # ~/.zshrc
    _OPQ_COMPLETE=fish_source opq | source      # ~/.config/fish/config.fish

## JSON

With `--json` a command prints one JSON value on stdout, and nothing else. The keys below stay; later versions may add others.
Bytes are integers, percentages are 0..100, fractions 0..1; what does not apply is null.

| command | keys |
|---|---|
"""


_SIZES = (
    "file_bytes dense_bytes file_ratio nominal_ratio bits_per_weight sparsity format_version weights header_bytes bytes_by_kind"
)
JSON_KEYS = {
    "compress": f"file {_SIZES}",
    "compress --as transformers": "path file_bytes dense_bytes shards",
    "calibrate": f"file {_SIZES}",
    "finetune": f"file {_SIZES} before after history",
    "search": f"file {_SIZES} drop dense_top1 trials",
    "plan": "format mode target auxiliary lmbda dense_bytes predicted_bytes layers exact speed",
    "plan --curve (each point of a list)": "ratio bytes bits_per_weight sparsity distortion",
    "evaluate (`dense`, and with a FILE `file`)": "inputs top1 top5 loss agreement",
    "expand": "file file_bytes tensors integers floats",
    "inspect": f"{_SIZES} metadata tensors",
    "inspect --compare": f"{_SIZES} metadata tensors comparison",
    "diff": "names file_bytes tensors counts",
    "report": "file page_bytes",
    "verify": "file valid file_bytes weights auxiliary sections base decoded",
    "verify (of an invalid file)": "file valid error",
}
"""{command: keys of what it prints with --json}."""


def page() -> str:
    """The text of the page."""
    rows = [f"| {command} | {' '.join(f'`{key}`' for key in keys.split())} |" for command, keys in JSON_KEYS.items()]
    return "\n".join([HEAD + "\n".join(rows) + "\n", *(_section(name) for name in COMMANDS)])


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
