"""The command line: one module per command. No other part of the package prints."""

from opq.cli.main import main

__all__ = ["main"]
