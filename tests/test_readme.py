"""The tables of README.md and docs/results.md are those of the result files."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def readme(monkeypatch):
    """benchmarks/readme.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("readme")


def test_all_tables_are_the_results(readme):
    """Every table matches its result files; `python benchmarks/readme.py` writes them."""
    for page in readme.PAGES:
        assert readme.write_tables(page.read_text()) == page.read_text()


def test_every_table_is_in_the_results_page(readme):
    """docs/results.md has each section once, except those that only the README has; the README has none twice."""
    in_readme, in_results = (readme.names_in(page.read_text()) for page in (readme.README, readme.RESULTS))
    assert sorted(in_results) == sorted(set(readme.SECTIONS) - set(readme.README_ONLY))
    assert len(in_readme) == len(set(in_readme))


def test_a_changed_figure_is_corrected(readme):
    """Changed digits between any markers are replaced by those of the result files; other text stays."""
    text = "\n".join(["Text."] + [f"<!-- {name} -->\n0\n<!-- /{name} -->\n" for name in readme.SECTIONS])
    written = readme.write_tables(text)
    assert written.startswith("Text.\n")
    for name in readme.SECTIONS:
        before, rest = written.split(f"<!-- {name} -->")
        body, after = rest.split(f"<!-- /{name} -->")
        last = max(place for place, letter in enumerate(body) if letter.isdigit() or letter == ".")
        changed = body[:last] + "#" + body[last + 1 :]
        assert readme.write_tables(f"{before}<!-- {name} -->{changed}<!-- /{name} -->{after}") == written


def test_the_headline_has_five_files(readme):
    """The README's first table has five rows, each at least five times smaller and within a point of its network."""
    rows = [line.split(" | ") for line in readme.write_tables("<!-- headline -->\n<!-- /headline -->").split("\n")[3:-1]]
    assert len(rows) == 5
    for row in rows:
        ratio, top1, dense_top1 = (float(cell) for cell in row[-4:-1])
        assert ratio > 5.0
        assert top1 > dense_top1 - 1.0


def test_the_readme_is_short():
    """It has at most 1,300 words, those of tables and code included."""
    assert len([word for word in (ROOT / "README.md").read_text().split() if re.search(r"\w", word)]) <= 1300


def test_every_result_comes_from_reproduce(readme):
    """The Makefile's two lists hold every benchmark, each in one; these write every result file and every table."""
    makefile = (ROOT / "Makefile").read_text()
    lists = [re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE).group(1) for name in ("QUICK", "LONG")]
    quick, long = ({command.split()[0] for command in shlex.split(text)} for text in lists)
    folder = ROOT / "benchmarks"
    texts = {path.name: path.read_text() for path in folder.glob("*.py")}
    benchmarks = {name for name, text in texts.items() if '__name__ == "__main__"' in text} - {"readme.py", "picture.py"}
    assert not quick & long
    assert quick | long == benchmarks
    call = r'(?:save_result|keep_row|run)\(\s*"(\w+)"'
    written = {result for name in quick | long for result in re.findall(call, texts[name])}
    assert {path.stem for path in (folder / "results").glob("*.json")} <= written
    assert {source for section in readme.SECTIONS.values() for source in section.sources} <= written


def test_the_readme_names_the_two_commands():
    """`make demo` and `make test` are in the README, and the Makefile has them."""
    text, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"    make {target} " in text
        assert f"\n{target}:" in makefile


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path, monkeypatch, torchvision):
    """The README's first example runs as it is written, but for the download of its weights."""
    text = (ROOT / "README.md").read_text()
    code = re.search(r"<!-- quick start -->\n```python\n(.*?)```", text, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('weights="DEFAULT"', "weights=None"), {})  # noqa: S102 - our own README
    assert (tmp_path / "resnet18.opq").stat().st_size < 46_800_000 / 8


def test_the_changelog_has_this_version():
    """A release has its own heading; a development version is under Unreleased."""
    import opq

    heading = "## Unreleased" if "dev" in opq.__version__ else f"## {opq.__version__}"
    assert heading in (ROOT / "CHANGELOG.md").read_text()
