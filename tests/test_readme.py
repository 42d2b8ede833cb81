"""The README tells the truth."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readmes_tables_are_the_results(monkeypatch):
    """Every table in the README is what its result file says; `python benchmarks/readme.py` writes them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    text = (ROOT / "README.md").read_text()
    assert readme.render(text) == text


def test_the_first_screen_has_the_two_commands():
    """`make demo` and `make test` stand in the first 24 lines, and the Makefile has them."""
    head = (ROOT / "README.md").read_text().split("\n")[:24]
    makefile = (ROOT / "Makefile").read_text()
    assert [line.split()[1] for line in head if line.startswith("    make ")] == ["demo", "test"]
    for target in ("demo", "test"):
        assert f"\n{target}:" in makefile


def test_the_changelog_knows_this_version():
    """A release has its own heading; a development version stands under Unreleased."""
    import opq

    heading = "## Unreleased" if "dev" in opq.__version__ else f"## {opq.__version__}"
    assert heading in (ROOT / "CHANGELOG.md").read_text()
