"""Help that fits a screen: --help describes the common options and names the others, which --help-all describes too."""

from __future__ import annotations

import textwrap
from typing import Any

import click

_ALL = "opq.help_all"


class FurtherOption(click.Option):
    """An option that --help only names."""


class Command(click.Command):
    """A command with a short and a full help."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        if any(isinstance(parameter, FurtherOption) for parameter in self.params):
            text = "Show all options and exit."
            self.params.append(
                click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help=text)
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the descriptions of options, and the names of further ones."""
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        shown = [option for option in options if ctx.meta.get(_ALL) or not isinstance(option, FurtherOption)]
        records = [record for option in shown if (record := option.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl(records, col_max=24)
        if further := [option.opts[-1] for option in options if option not in shown]:
            with formatter.section("More options, described by --help-all"):
                for line in textwrap.wrap(" ".join(further), formatter.width - 2, break_on_hyphens=False):
                    formatter.write(f"  {line}\n")


def _show_all(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
