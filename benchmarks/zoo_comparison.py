"""Compare the rows of results/zoo.json at the same bytes: opq with every other way, and with inputs or without."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Row, print_rows

_LEAST = 0.98
"""Share of another file's bytes that opq's file must have to be compared with it."""


def is_compared(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row of another way is compared with opq: its size is in the range of the targets, or it has eight bits."""
    targets = [other["asked_bytes"] for other in rows if is_target(other)]
    return bool(row["setting"] == "8 bits" or 0.5 * min(targets) <= row["file_bytes"] <= 1.5 * max(targets))


def is_target(row: Row) -> bool:
    """Whether a row is opq's at one of TARGETS."""
    return bool(row["method"] == "opq" and row["against"] is None)


def partner(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of opq that is compared with a row: the largest file of at most its bytes; None if all are much smaller.

    Rows of opq at the bytes of files that were replaced since are left out.
    """
    size, sizes = row["file_bytes"], {other["file_bytes"] for other in rows if other["method"] != "opq"}
    own = [other for other in rows if is_target(other) or (other["method"] == "opq" and other["asked_bytes"] in sizes)]
    smaller = [other for other in own if _LEAST * size <= other["file_bytes"] <= size]
    return max(smaller, key=lambda other: other["file_bytes"], default=None)


def compare(rows: Sequence[Row]) -> int:
    """Print the difference of opq from every other way at the same bytes; 1 if opq is behind anywhere, otherwise 0."""
    table = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        table += [_columns(row, other) for row, other in _pairs(own)]
        table += [_columns(other, row) for row, other in _pairs_with_inputs(own)]
    if table:
        print_rows(table)
    return int(any(row["verdict"] == "behind" for row in table))


def verdicts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """For each file of another way that is compared: the way, and whether opq is "ahead", "equal" or "behind" at its bytes.

    The rows are those of one network. Within two standard errors both are equal.
    """
    return [(row["method"], _verdict(row, other)) for row, other in _pairs(rows)]


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The files of other ways that are compared, each with that of opq."""
    rows = [row for row in rows if row["data"] == "none"]
    if not any(is_target(row) for row in rows):
        return []
    pairs = [(row, partner(row, rows)) for row in rows if row["method"] != "opq" and is_compared(row, rows)]
    return [(row, other) for row, other in pairs if other is not None]


def _pairs_with_inputs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The files of opq that used inputs, each with that from the weights alone at the same target, or with GPTQ's."""
    own = [row for row in rows if row["method"].startswith("opq, ")]
    alone = {row["setting"]: row for row in rows if row["method"] == "opq"}
    pairs = [(row, alone[row["setting"]]) for row in own if row["setting"] in alone]
    others = {f"{row['method']}, {row['setting']}": row for row in rows if row["method"] == "gptq"}
    return pairs + [(row, others[row["against"]]) for row in own if row["against"] in others]


def _columns(row: Row, own: Row) -> Row:
    difference, error = difference_of(row, own)
    columns = {column: row[column] for column in ("network", "method", "setting", "bits", "value")}
    return {
        **columns,
        "by": own["method"],
        "opq": own["value"],
        "difference": difference,
        "error": error,
        "verdict": _verdict(row, own),
    }


def _verdict(row: Row, own: Row) -> str:
    difference, error = difference_of(row, own)
    return "behind" if difference < -2.0 * error else "ahead" if difference > 2.0 * error else "equal"


def difference_of(row: Row, own: Row) -> tuple[float, float]:
    """How much better opq's row is than another one, in the unit of the measure, and the standard error of this difference."""
    sign = 1.0 if row["higher_is_better"] else -1.0
    return sign * (own["value"] - row["value"]), float(own["change_error"] ** 2 + row["change_error"] ** 2) ** 0.5
