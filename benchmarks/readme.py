"""Write the tables of the README and of docs/results.md from the result files: `python benchmarks/readme.py`.

Each table stands between <!-- name --> and <!-- /name -->, and comes from benchmarks/results/name.json.
tests/test_readme.py fails when they disagree.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from readme_tables import SECTIONS, Row, Section

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")


def format_table(text: str) -> str:
    """`text` with every marked table written anew."""
    for name, section in SECTIONS.items():
        body = "\n".join(_lines(section))
        pattern = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, name=name, body=body: f"<!-- {name} -->\n{body}\n<!-- /{name} -->", text)
    return text


def _lines(section: Section) -> list[str]:
    """What stands between a marker and its end: what a section makes of a result, and where a table was measured."""
    path = ROOT / "benchmarks" / "results" / f"{section.source}.json"
    if not path.is_file():
        return [f"Not run yet: `python benchmarks/{path.stem}.py`."]
    result = json.loads(path.read_text())
    rows = [row for row in result["rows"] if section.has(row)]
    lines = section.lines(rows)
    if lines[0].startswith("|"):
        lines += ["", f"<sub>{_made(result, rows)}</sub>"]
    return lines


def _made(result: Row, rows: list[Row]) -> str:
    """Processors, commits and dates of a result; those of `rows` where they were made one by one."""
    machine = result["machine"]
    processors, commits = (
        " and ".join(dict.fromkeys(row[key] for row in rows if key in row)) or other
        for key, other in (("processor", machine["processor"]), ("commit", result.get("commit")))
    )
    dates = {row.get("date") or result["date"] for row in rows}
    return f"{processors}, {machine['cores']} cores, {commits}, {' to '.join(sorted({min(dates), max(dates)}))}"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(format_table(page.read_text()))
