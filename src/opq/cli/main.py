"""The entry point of the command line: imports the called command, prints errors in one line, returns the exit status."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from opq.errors import OpqError
from opq.progress import logger
from opq.version import __version__

COMMANDS = {
    "compress": "Make a .opq file of a checkpoint or a network, from its weights.",
    "calibrate": "Make a better one, with unlabelled or synthetic inputs.",
    "finetune": "Train a network with quantized and pruned weights: the best one.",
    "search": "Find the smallest file that loses at most so much accuracy.",
    "plan": "Print what each weight would get, without compressing.",
    "evaluate": "Print the accuracy of a network and of its .opq file.",
    "expand": "Write a .opq file as a .safetensors checkpoint or ONNX model.",
    "inspect": "Print the tensors of a .opq file and what its bytes are for.",
    "diff": "Print what changed between two files of one network.",
    "report": "Write a page about a .opq file: sizes, pictures, comparisons.",
    "verify": "Check that a .opq file is complete and valid.",
}
"""{command: what it does}, in the order of the help. Each is `command` in the module of its name."""

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


class _Commands(click.Group):
    """Commands by name. Only the module of the called command is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"opq.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with an error that names the nearest command."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else f"The commands are {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}. {advice}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="opq")
def _opq() -> None:
    """Compress pretrained networks to small .opq files, and read these files.

    Start with a checkpoint that you have, in a file or a folder:

    \b
      opq compress model.safetensors --ratio 8 -o model.opq
      opq inspect model.opq
      opq expand model.opq -o dense.safetensors

    Checkpoints are safetensors, PyTorch, NumPy, GGUF, Keras, ONNX, or folders in Hugging Face's layout. Commands that run a
    network take a MODEL: torchvision:NAME or timm:NAME, with its published weights, transformers:FOLDER, package.module:factory
    or file.py:factory. Results go to stdout, progress to stderr. The exit status is 0 for success, 1 for an error, 2 for wrong
    usage, 130 for an interruption.
    """  # noqa: D301  click needs the backspace itself, which keeps lines as they are


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments. None: those of the process.

    Returns:
        The exit status: 0 for success, 1 for an error, which is printed in one line, 2 for wrong usage, and 130 if it was
        interrupted.
    """
    if sys.stdout is None:  # as after `>&-` in a shell
        return _fail("stdout is closed")
    handler = _show_warnings()
    try:
        status = _opq.main(args=list(arguments) if arguments is not None else None, prog_name="opq", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has closed it. Without this Python would report the same error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OpqError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        return _fail("out of memory")
    finally:
        logger.removeHandler(handler)


class _WarningLine(logging.Formatter):
    """One line for each warning of the library."""

    def format(self, record: logging.LogRecord) -> str:
        return f"opq: warning: {' '.join(record.getMessage().split())}"


def _show_warnings() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_WarningLine())
    logger.addHandler(handler)
    return handler


def _fail(problem: str) -> int:
    click.echo(f"opq: error: {' '.join(problem.split())}", err=True)
    return 1
