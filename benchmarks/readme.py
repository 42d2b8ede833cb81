"""Write the README's tables from the result files: `python benchmarks/readme.py`.

Each table stands between <!-- name --> and <!-- /name -->, and comes from benchmarks/results/name.json.
tests/test_readme.py fails when they disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from readme_tables import SECTIONS, Row

ROOT = Path(__file__).resolve().parents[1]


def render(text: str) -> str:
    """`text` with every marked table written anew."""
    for name, (source, section) in SECTIONS.items():
        lines = _lines(ROOT / "benchmarks" / "results" / f"{source}.json", section)
        body = "\n".join(lines)
        pattern = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, name=name, body=body: f"<!-- {name} -->\n{body}\n<!-- /{name} -->", text)
    return text


def _lines(path: Path, section: Callable[[list[Row]], list[str]]) -> list[str]:
    """What stands between a marker and its end: what a section makes of a result, and where a table was measured."""
    if not path.is_file():
        return [f"Not run yet: `python benchmarks/{path.stem}.py`."]
    result = json.loads(path.read_text())
    lines = section(result["rows"])
    if lines[0].startswith("|"):
        lines += ["", f"<sub>{_made(result)}</sub>"]
    return lines


def _made(result: Row) -> str:
    """Processors, commits and date of a result; those of its rows where they were made one by one."""
    machine, rows = result["machine"], result["rows"]
    own = {key: [row[key] for row in rows if key in row] for key in ("processor", "commit")}
    processors, commits = (" and ".join(dict.fromkeys(own[key])) for key in own)
    return f"{processors or machine['processor']}, {machine['cores']} cores, {commits or result['commit']}, {result['date']}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
