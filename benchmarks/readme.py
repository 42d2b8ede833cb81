"""Write the tables of docs/results.md and README.md, and the plot, from the result files: `python benchmarks/readme.py`.

A table is between <!-- name --> and <!-- /name -->, where name is one of readme_tables.SECTIONS. docs/results.md has all of
them except those of README_ONLY. README.md has some of them. tests/test_readme.py fails if a table does not match its
result files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from readme_tables import SECTIONS, Row, Section

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"
PAGES = (README, RESULTS)

README_ONLY = ("headline", "example")
"""Sections that are meant for README.md; every other section is in docs/results.md."""


def write_tables(text: str) -> str:
    """`text` with all marked blocks updated."""
    for name in names_in(text):
        body = "\n".join(_lines(SECTIONS[name]))
        pattern = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, name=name, body=body: f"<!-- {name} -->\n{body}\n<!-- /{name} -->", text)
    return text


def names_in(text: str) -> list[str]:
    """The sections of SECTIONS that `text` has markers of, in its order."""
    return [name for name in re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE) if name in SECTIONS]


def _lines(section: Section) -> list[str]:
    """The lines between two markers: those of the section and, below a table of one result, where it was measured."""
    results = {}
    for source in section.sources:
        path = ROOT / "benchmarks" / "results" / f"{source}.json"
        if not path.is_file():
            return [f"Not run yet: `python benchmarks/{source}.py`."]
        results[source] = json.loads(path.read_text())
    rows = [[row for row in result["rows"] if section.has(row)] for result in results.values()]
    lines = section.lines(*rows)
    if section.shows_origin and lines[0].startswith("|"):
        lines += ["", f"<sub>{_origin(results[section.sources[0]], rows[0])}</sub>"]
    return lines


def _origin(result: Row, rows: list[Row]) -> str:
    """Processors, commits and dates of a result; those of `rows` if they were saved one by one."""
    machine = result["machine"]
    processors, commits = (
        " and ".join(dict.fromkeys(row[key] for row in rows if key in row)) or other
        for key, other in (("processor", machine["processor"]), ("commit", result.get("commit")))
    )
    dates = {row.get("date") or result["date"] for row in rows}
    return f"{processors}, {machine['cores']} cores, {commits}, {' to '.join(sorted({min(dates), max(dates)}))}"


if __name__ == "__main__":
    import picture

    for page in PAGES:
        page.write_text(write_tables(page.read_text()))
    picture.draw()
