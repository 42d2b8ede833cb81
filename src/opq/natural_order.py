"""The order of names that people expect: numbers in them by their values, so that layer 2 comes before layer 10."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key of a name.

    Args:
        name: The name.
    """
    parts = _DIGITS.split(name)
    return tuple((0, int(part), part) if number % 2 else (1, 0, part) for number, part in enumerate(parts) if part)
