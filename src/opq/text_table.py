"""Rows of text as an aligned table, the one look that plans, reports and the command line share.

Plain text, so that it is the same in a terminal, a file and a pipe; rich's tables take 0.2 s longer for a few hundred rows,
which is most of what inspecting a small file takes.
"""

from __future__ import annotations

from collections.abc import Sequence


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their column names, aligned: first column to the left, the rest to the right. No closing newline.

    Characters that are not printable are escaped: names come from files, and a file must not command a terminal.
    """
    rows = [[_printable(cell) for cell in cells] for cells in rows]
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip()


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
