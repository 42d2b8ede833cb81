"""Checks of single settings, which raise ConfigError with the name, the rule and the value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from opq.errors import ConfigError, SelectionError


def match_glob(option: str, glob: str, names: Sequence[str]) -> list[str]:
    """The names that equal or match `glob`; SelectionError, naming the `option`, if there are none."""
    if matches := [name for name in names if name == glob or fnmatchcase(name, glob)]:
        return matches
    raise SelectionError(option, glob, names)


def read_globs(option: str, value: Any) -> tuple[str, ...]:
    """One glob or several as a tuple; ConfigError for anything that is not text."""
    globs: tuple[Any, ...] = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(glob, str) for glob in globs):
        raise ConfigError(f"{option} must hold globs, got {value!r}")
    return globs


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_fields(where: str, values: Iterable[str], known: Sequence[str]) -> None:
    """Raise ConfigError for the first field that is not known."""
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; there are {', '.join(known)}")


def finite_number(what: str, value: Any, error: type[ConfigError]) -> float:
    """A float from a number of any library; `error` for text, booleans, NaN, infinity, and what is beyond a float."""
    number = math.nan
    if not isinstance(value, bool | str) and hasattr(value, "__float__"):
        with suppress(TypeError, ValueError, OverflowError):  # an array of several numbers, or a huge integer
            number = float(value)
    if not math.isfinite(number):
        raise error(f"{what} must be a finite number, got {value!r}")
    return number
