"""The command line: one module a verb, and the only place that prints."""

from opq.cli.main import main

__all__ = ["main"]
