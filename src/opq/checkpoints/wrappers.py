"""The state dict within a nest of mappings, and the names of its tensors.

A checkpoint often holds its state dict under a key, beside other state dicts, an optimizer and settings. `find_state_dict`
chooses, and a warning names what it leaves out. Searches visit every object once, so that they end on mappings that contain
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from opq.errors import SourceError
from opq.progress import logger

USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module", "net")
"""If there are several state dicts, the one under the first of these keys is read."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel, DistributedDataParallel and torch.compile add to every name."""

_OPTIMIZER = re.compile(r"(?<![a-z])(optim|(lr_?)?sched|(grad_?)?scaler|rng|amp$|param_groups|callbacks|loops)", re.IGNORECASE)
_DEEPEST = 100
_Path = tuple[str, ...]


def find_state_dict(content: Any, source: object, key: str | None = None) -> dict[str, Any]:
    """The tensors of the state dict within `content`, by name.

    Args:
        content: A mapping, with tensors or with further mappings.
        source: Where it comes from, for messages.
        key: The key of the state dict; keys within keys are joined by dots. None: the only one, or the first usual one.

    Returns:
        {name: tensor}, with the names of the state dict.

    Raises:
        SourceError: There is no state dict or no tensor, `key` is not there, or there are several and none is usual.
    """
    if key is not None:
        content = _follow(content, key, source)
    outer: _Path = ()
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        inner = {name: paths for name, value in content.items() if (paths := _state_dicts(value, (name,), content))}
        usual = next((name for name in USUAL_KEYS if name in inner), None)
        if usual is None and any(map(is_tensor, content.values())):
            break
        taken = usual if usual is not None else next(iter(inner)) if len(inner) == 1 else None
        if taken is None:
            if not inner:
                break
            found = ", ".join(".".join((*outer, *path)) for paths in list(inner.values())[:8] for path in paths[:4])
            raise SourceError(source, f"it has several state dicts: {found}; choose one by its key (--key KEY, or key=)")
        ignored = [".".join((*outer, *path)) for name in inner if name != taken for path in inner[name]]
        ignored += [".".join((*outer, str(name))) for name, value in content.items() if is_tensor(value)]
        if ignored:
            chosen = ".".join((*outer, taken))
            logger.warning("%s: read %r, ignored %s; --key KEY (key=) reads another", source, chosen, _shown(ignored))
        outer, content = (*outer, taken), content[taken]
    return _tensors(content, source)


def is_tensor(value: Any) -> bool:
    """Whether a value is an array or a tensor of any library. NumPy scalars, such as a best accuracy, are not."""
    is_array = hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "__array__")
    return is_array and not isinstance(value, np.generic)


def without_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Names without the prefixes that all of them have: the rule for every format but HDF5, whose names are paths.

    Args:
        names: Names of tensors.

    Returns:
        {short name: name}, in the same order.
    """
    short = {name: name for name in names}
    while short and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in short)), None)):
        short = {name.removeprefix(prefix): old for name, old in short.items()}
    return short


def _tensors(content: Any, source: object) -> dict[str, Any]:
    entries = content if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in entries.items() if isinstance(name, str) and is_tensor(value)}
    if not tensors:
        raise SourceError(source, "it has no tensors; expected a state dict, or one under a key")
    rest = [name for name in entries if name not in tensors]
    visited = {id(content)}
    if nested := [name for name in rest if holds_tensor(entries[name], visited)]:
        raise SourceError(
            source,
            f"it has tensors at the top level and in {nested[0]!r:.80}; save one state dict, or give a key (--key)",
        )
    warn_of_ignored(source, rest)
    return tensors


def warn_of_ignored(source: object, names: Sequence[object], what: str = "not a tensor") -> None:
    """Log that parts of a checkpoint are not read.

    Args:
        source: The checkpoint.
        names: The parts. Nothing is logged if there are none.
        what: What each of them is.
    """
    if names:
        logger.warning("%s: ignored %s (%s)", source, _shown(names), what)


def holds_tensor(value: Any, visited: set[int]) -> bool:
    """Whether a value is a tensor, or contains one at any depth.

    Args:
        value: Any object.
        visited: Identities of the containers that were searched; more are added.
    """
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if is_tensor(part):
            return True
        if isinstance(part, (Mapping, list, tuple, set, frozenset)) and id(part) not in visited:
            visited.add(id(part))
            waiting.extend(part.values() if isinstance(part, Mapping) else part)
    return False


def _state_dicts(value: Any, path: _Path, parent: Any) -> list[_Path]:
    """Paths of the mappings at and below `value` that have tensors under names, without those of optimizers."""
    found: list[_Path] = []
    visited, waiting = {id(parent)}, [(value, path)]
    while waiting:
        part, path = waiting.pop()
        if not isinstance(part, Mapping) or id(part) in visited or len(path) > _DEEPEST:
            continue
        if not isinstance(path[-1], str) or _OPTIMIZER.search(path[-1]) or "param_groups" in part:
            continue
        visited.add(id(part))
        if any(isinstance(name, str) and is_tensor(tensor) for name, tensor in part.items()):
            found.append(path)
        else:
            waiting.extend((inner, (*path, name)) for name, inner in reversed(list(part.items())))
    return found


def _follow(content: Any, key: str, source: object) -> Any:
    """The value under a key whose parts are joined by dots; keys may have dots themselves."""
    rest = key
    while rest:
        keys = [name for name in content if isinstance(name, str)] if isinstance(content, Mapping) else []
        match = max((name for name in keys if rest == name or rest.startswith(name + ".")), key=len, default=None)
        if match is None:
            raise SourceError(source, f"it has no key {key!r}; there are {_shown(keys)}" if keys else f"it has no key {key!r}")
        content, rest = content[match], rest[len(match) + 1 :]
    return content


def _shown(names: Iterable[object]) -> str:
    names = list(names)
    return ", ".join(f"{name!r:.80}" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
