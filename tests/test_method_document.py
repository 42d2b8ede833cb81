"""docs/method.md: each of its formulas names a test, and that test exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "method.md").read_text()


def functions():
    """The names of all tests."""
    return {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }


def test_every_test_that_the_document_names_exists():
    """A formula whose test was renamed or removed is found."""
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 40
    assert named <= functions()


def test_every_formula_names_a_test():
    """In each table of quantities the last column names a test, or refers to the row above."""
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| quantity")]
    formulas = [row for row in rows if row.count(" | ") >= 3 and not re.match(r"\| [0-9λ]", row)]
    assert len(formulas) > 20
    for row in formulas:
        last = row.rstrip("| ").rpartition(" | ")[2]
        assert re.search(r"`test_\w+`|the same", last), row
