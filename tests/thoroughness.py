"""How much the tests try: a part of it in the default suite, all of it with `make test-thorough` and `make mutants`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import settings

THOROUGH = settings.get_current_profile_name() in ("thorough", "mutants")


def examples(number: int, **options: Any) -> settings:
    """Settings of a law that takes `number` examples to check well: in each profile its share of a hundred, at least five."""
    return settings(max_examples=max(5, number * settings().max_examples // 100), **options)


def one_in(step: int, places: Sequence[Any]) -> Sequence[Any]:
    """Every `step`-th of the places that an exhaustive test tries; all of them in the thorough profile."""
    return places if THOROUGH else places[::step]


def some(few: int, many: int) -> int:
    """A number of repetitions: `few`, or `many` in the thorough profile."""
    return many if THOROUGH else few
