"""The entry point: commands imported when they are called, errors in one line, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from opq.errors import OpqError
from opq.version import __version__

_COMMANDS = {
    "compress": "Compress a checkpoint to a .opq file, from the weights alone.",
    "calibrate": "Compress a network to a .opq file, calibrated on unlabelled or synthetic images.",
    "finetune": "Train a network with quantized and pruned weights, to a .opq file.",
    "search": "Find the smallest .opq file within a drop of accuracy.",
    "plan": "Show what compressing would do, without doing it.",
    "evaluate": "Show the accuracy of a network, dense and from a .opq file.",
    "expand": "Turn a .opq file back into a .safetensors checkpoint.",
    "inspect": "Show what is in a .opq file, and what its bytes are spent on.",
    "verify": "Check that a .opq file is whole and valid.",
}


class _Commands(click.Group):
    """Commands by name; only the module of the one that is called is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"opq.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="opq")
def _opq() -> None:
    """Pretrained networks to files many times smaller, and back.

    SOURCE is a .safetensors file, a folder of shards with its index, or a .pt/.pth checkpoint. Results go to stdout,
    progress to stderr. Exit status: 0 done, 1 an error, 2 wrong usage.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status, 0 done, 1 the user's error in one line, 2 usage."""
    try:
        status = _opq.main(args=list(arguments) if arguments is not None else None, prog_name="opq", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        return _fail("interrupted")
    except BrokenPipeError:
        # The reader of the output is gone; this keeps Python from reporting it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OpqError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        return _fail("out of memory")


def _fail(problem: str) -> int:
    click.echo(f"opq: error: {' '.join(problem.split())}", err=True)
    return 1
