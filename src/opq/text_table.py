"""Aligned tables, sizes and one-line summaries as plain text, for plans, reports and the command line.

Plain text is the same in a terminal, a file and a pipe. Tables of rich take 0.2 s longer for a few hundred rows, which is most
of the time of `opq inspect` on a small file.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

LINE = 80
"""Characters of a line that is not wrapped in a terminal."""

_SHORTEST = 12


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Format rows of cells as a table.

    Characters that are not printable are escaped, since names come from files and could hold control sequences of a terminal.

    Args:
        columns: Names of the columns. The first column is aligned to the left, the others to the right.
        rows: The cells of each row.
        width: The largest length of a line: texts of the first column that are too long lose their beginning.

    Returns:
        The lines, without a newline at the end.
    """
    rows = [[_printable(cell) for cell in cells] for cells in rows]
    if width is not None:
        others = sum(max(map(len, cells)) + 2 for cells in list(zip(columns, *rows, strict=True))[1:])
        rows = [[shorten(cells[0], max(width - others, _SHORTEST)), *cells[1:]] for cells in rows]
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


def shorten(text: str, length: int) -> str:
    """The end of a text that is longer than `length` characters: of long names of tensors it tells more than the beginning."""
    return text if len(text) <= length else f"...{text[3 - length :]}"


def size_text(size: float) -> str:
    """A number of bytes with three significant digits and a decimal unit, such as "2.34 MB"."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if size < 999.5:
            break
        size, unit = size / 1000.0, larger
    digits = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"


def step_text(step: float, scaled_axes: Sequence[str] = ()) -> str:
    """A step with four digits and the axes that have scales, such as "0.01234 by rows"."""
    return f"{step:.4g}" + (f" by {', '.join(scaled_axes)}" if scaled_axes else "")


def file_summary(file_bytes: int, dense_bytes: int, bits_per_weight: float | None, sparsity: float | None) -> str:
    """Summarize a file in one line, such as "2.34 MB, 20.0x smaller than 46.8 MB (1.60 bits per weight, 55% zeros)".

    Args:
        file_bytes: Size of the file.
        dense_bytes: Bytes of its tensors as their dtypes store them.
        bits_per_weight: 8 * file_bytes over the number of weights. None if there are no weights.
        sparsity: Fraction of zeros over all weights, 0..1. None if there are no weights.

    Returns:
        The line; without the part in brackets if there are no weights.
    """
    smaller, ratio = file_bytes <= dense_bytes, dense_bytes / file_bytes
    times = f"{ratio:.1f}x smaller" if smaller else f"{1.0 / ratio:.2f}x larger"
    text = f"{size_text(file_bytes)}, {times} than {size_text(dense_bytes)}"
    if bits_per_weight is None or sparsity is None:
        return text
    return f"{text} ({bits_per_weight:.2f} bits per weight, {100.0 * sparsity:.0f}% zeros)"


def html_text(text: str) -> str:
    """Text as HTML in a font of fixed width, for notebooks."""
    return f"<pre>{html.escape(text)}</pre>"
