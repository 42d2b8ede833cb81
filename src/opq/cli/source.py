"""The SOURCE of compress and plan: a checkpoint, or a network by name with its published weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from opq.checkpoints import as_state
from opq.checkpoints.state import State
from opq.cli.compression_options import add_options
from opq.cli.help import FurtherOption
from opq.cli.model_options import chosen_weights

source_options = add_options(
    click.option(
        "--key",
        metavar="KEY",
        help="The key of the state dict in a SOURCE that has several; keys within keys are joined by dots.",
        cls=FurtherOption,
    ),
    click.option(
        "--weights",
        metavar="W",
        help="Of a SOURCE that is a network: a checkpoint, a .opq file, the name of published weights, or none. "
        "[default: the best published ones]",
    ),
)
"""Adds the options of SOURCE to a command."""


def base_option(metavar: str) -> Callable[[Any], Any]:
    """The option --base of a command that makes or reads deltas.

    Args:
        metavar: What the command calls the delta.
    """
    return click.option(
        "--base",
        multiple=True,
        metavar="OLD",
        help=f"What {metavar} is a delta of. Of a chain, each in order.",
    )


def open_source(source: str, key: str | None, weights: str | None) -> State:
    """Open what SOURCE names.

    Args:
        source: The path of a checkpoint; or torchvision:NAME, timm:NAME, package.module:factory or file.py:factory.
        key: The key of the state dict in a checkpoint that has several.
        weights: As for `chosen_weights`.

    Returns:
        The tensors of the checkpoint, or of the network.

    Raises:
        click.UsageError: `weights` are given for a checkpoint, or `key` for a network.
        OpqError: See `opq.checkpoints.as_state` and `opq.zoo.models.open_network`.
    """
    if os.path.exists(source) or ":" not in source:
        if weights is not None:
            raise click.UsageError(f"--weights requires a network as SOURCE, such as torchvision:resnet18; got {source!r}.")
        return as_state(source, key=key)
    if key is not None:
        raise click.UsageError(f"--key requires a checkpoint as SOURCE, got {source!r}.")
    from opq.zoo.models import open_network

    return as_state(open_network(source, chosen_weights(source, weights), seed=0))
