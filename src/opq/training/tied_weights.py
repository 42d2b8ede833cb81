"""Weights that modules share, in the state dict of a prepared network: each under its first name alone.

Such a weight has one latent value and one codebook. Under all of its names a state dict would hold the same memory several
times, which safetensors refuses to write, and with it the Hugging Face Trainer, which knows tied weights by the network's own
names alone. Loading puts the others back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn


def tie(model: nn.Module, groups: Iterable[tuple[str, ...]]) -> None:
    """Leave all names of each group but the first out of the state dict of a prepared `model`, until `untie`."""
    aliases = {_inside(other): _inside(first) for first, *others in groups for other in others}
    if aliases:
        model.register_state_dict_post_hook(partial(_leave_out, aliases))  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(partial(_put_back, aliases))  # type: ignore[no-untyped-call]


def untie(model: nn.Module) -> None:
    """Undo `tie`."""
    for module in model.modules():
        for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(getattr(hook, "hook", hook), "func", None) in (_leave_out, _put_back):
                    del hooks[key]


def _inside(name: str) -> str:
    """What the names of a parametrized tensor's parts begin with."""
    path, _, attribute = name.rpartition(".")
    return f"{path}.parametrizations.{attribute}.".removeprefix(".")


def _leave_out(aliases: Mapping[str, str], module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(tuple(prefix + alias for alias in aliases))]:
        del state[key]


def _put_back(aliases: Mapping[str, str], module: nn.Module, state: dict[str, Any], prefix: str, *others: object) -> None:
    for alias, first in aliases.items():
        for key in [key for key in state if key.startswith(prefix + first)]:
            state.setdefault(prefix + alias + key.removeprefix(prefix + first), state[key])
