"""Checks of single settings. Each raises ConfigError with the name, the rule and the value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from opq.errors import ConfigError, SelectionError


def match_glob(option: str, glob: str, names: Sequence[str]) -> list[str]:
    """The names that a glob selects.

    Args:
        option: Name of the setting that holds the glob, for the message.
        glob: A name, or a pattern as in fnmatch, case-sensitive.
        names: Names to choose from.

    Returns:
        The names that equal or match the glob, in the order of `names`.

    Raises:
        SelectionError: The glob matches no name.
    """
    if found := matches(glob, names):
        return found
    raise SelectionError(option, glob, names)


def matches(glob: str, names: Iterable[str]) -> list[str]:
    """The names that equal or match a glob, in their order; there may be none."""
    return [name for name in names if name == glob or fnmatchcase(name, glob)]


def read_globs(option: str, value: Any) -> tuple[str, ...]:
    """One glob or several as a tuple.

    Args:
        option: Name of the setting, for the message.
        value: A string, or an iterable of strings.

    Raises:
        ConfigError: `value` is anything else.
    """
    globs: tuple[Any, ...] = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(glob, str) for glob in globs):
        raise ConfigError(f"{option} must be a glob or a list of globs, got {value!r}")
    return globs


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_fields(where: str, values: Iterable[str], known: Sequence[str]) -> None:
    """Raise ConfigError if one of the fields `values` is not in `known`; `where` starts the message."""
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(known)}")


def finite_number(what: str, value: Any, error: type[ConfigError]) -> float:
    """Convert a number of any library to a float.

    Args:
        what: Name of the setting, for the message.
        value: The number.
        error: Class of the error.

    Raises:
        ConfigError: `value` is text, a boolean, NaN or infinite, or is beyond the range of a float; of class `error`.
    """
    number = math.nan
    if not isinstance(value, bool | str) and hasattr(value, "__float__"):
        with suppress(TypeError, ValueError, OverflowError):  # an array of several numbers, or a huge integer
            number = float(value)
    if not math.isfinite(number):
        raise error(f"{what} must be a finite number, got {value!r}")
    return number


def read_json(text: str, kind: str, what: str) -> dict[str, Any]:
    """The fields of a JSON object that has "format": `kind`, without that one.

    Raises:
        ConfigError: The text is anything else; the message begins with `what`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} must be JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != kind:
        got = f"format {document.get('format')!r}" if isinstance(document, dict) else type(document).__name__
        raise ConfigError(f'{what} must be an object with "format": "{kind}", as to_json writes it, got {got}')
    del document["format"]
    return document
