"""Tied weights in the state dict of a prepared network: each is listed under its first name only.

A tied weight has one latent value and one codebook. If a state dict held the same memory under all of its names, safetensors
would refuse to write it. So would the Hugging Face Trainer, which recognizes tied weights only by their plain names.
Loading restores the other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn


def tie(model: nn.Module, groups: Iterable[tuple[str, ...]]) -> None:
    """Leave the other names of tied weights out of the state dict, until `untie`.

    Args:
        model: The prepared network.
        groups: The names of each weight in the plain network; the first one stays.
    """
    aliases = {_prefix(other): _prefix(first) for first, *others in groups for other in others}
    if aliases:
        model.register_state_dict_post_hook(partial(_remove_aliases, aliases))  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(partial(_restore_aliases, aliases))  # type: ignore[no-untyped-call]


def untie(model: nn.Module) -> None:
    """Undo `tie`."""
    for module in model.modules():
        for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(getattr(hook, "hook", hook), "func", None) in (_remove_aliases, _restore_aliases):
                    del hooks[key]


def _prefix(name: str) -> str:
    """The common prefix of the state-dict keys of a parametrized tensor."""
    path, _, attribute = name.rpartition(".")
    return f"{path}.parametrizations.{attribute}.".removeprefix(".")


def _remove_aliases(
    aliases: Mapping[str, str], module: nn.Module, state: dict[str, Any], prefix: str, metadata: object
) -> None:
    for key in [key for key in state if key.startswith(tuple(prefix + alias for alias in aliases))]:
        del state[key]


def _restore_aliases(
    aliases: Mapping[str, str], module: nn.Module, state: dict[str, Any], prefix: str, *others: object
) -> None:
    for alias, first in aliases.items():
        for key in [key for key in state if key.startswith(prefix + first)]:
            state.setdefault(prefix + alias + key.removeprefix(prefix + first), state[key])
