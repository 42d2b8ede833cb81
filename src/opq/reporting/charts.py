"""Pictures of a report: matplotlib's, as SVG that is part of a page, in the colours of the page."""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opq.text_table import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2
"""Inches; the page scales pictures to the width of the screen."""

_INK, _FAINT = "#010203", "#040506"
_PALETTE = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06", "#0a0b07", "#0a0b08")
"""Colours that the page replaces, so that it can have a light and a dark form."""

_VARIABLES = {_INK: "currentColor", _FAINT: "var(--faint)"} | {color: f"var(--c{n})" for n, color in enumerate(_PALETTE, 1)}


def stacked_bars(names: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str, alt: str) -> str:
    """A horizontal bar for each name, divided into parts.

    Args:
        names: The bars, from the top.
        parts: {part: its length in each bar}.
        unit: Label of the axis.
        alt: What the picture shows, for those who do not see it.
    """
    with _picture(0.8 + 0.2 * len(names)) as (figure, axes):
        places = np.arange(len(names))[::-1]
        left = np.zeros(len(names))
        for number, (part, lengths) in enumerate(parts.items()):
            axes.barh(places, lengths, left=left, label=part, color=_PALETTE[number % len(_PALETTE)], height=0.8)
            left += np.asarray(lengths)
        axes.set_yticks(places, [_short(name) for name in names])
        axes.set_xlabel(unit)
        axes.margins(y=0.01)
        if len(parts) > 1:
            figure.legend(loc="outside upper right", ncols=4, frameon=False)
    return _svg(figure, alt)


def bars_and_line(bars: Sequence[float], line: Sequence[float], bar_label: str, line_label: str, alt: str) -> str:
    """A bar and a point of a line for each layer, with two scales.

    Args:
        bars: Heights of the bars.
        line: The points.
        bar_label: Label of the scale of the bars.
        line_label: Label of that of the line.
        alt: As in `stacked_bars`.
    """
    with _picture(2.6) as (figure, axes):
        axes.bar(np.arange(len(bars)) + 1, bars, color=_PALETTE[0], width=0.85)
        axes.set_ylabel(bar_label)
        axes.set_xlabel("layer, in order of the network")
        axes.xaxis.set_major_locator(_whole_numbers())
        other = axes.twinx()
        other.plot(np.arange(len(line)) + 1, line, color=_PALETTE[1], marker="o", markersize=3, linewidth=1)
        other.set_ylabel(line_label)
        other.set_ylim(bottom=0)
        other.spines["top"].set_visible(False)
    return _svg(figure, alt)


def histograms(panels: Sequence[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any], float | None]], alt: str) -> str:
    """The codes of several weights as histograms, with the Laplace density that has their mean magnitude.

    Args:
        panels: Of each weight: name, values in the codebook, how often each occurs, the borders of the values that became zero
            (two of them, or none), and the mean magnitude of the weights before they were rounded, or None.
        alt: As in `stacked_bars`.
    """
    from matplotlib.figure import Figure

    with _style():
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(WIDTH, 1.9 * rows), layout="constrained")
        for number, (name, values, counts, borders, magnitude) in enumerate(panels):
            axes = figure.add_subplot(rows, 2, number + 1)
            width = float(np.min(np.diff(values))) if len(values) > 1 else 1.0
            share = counts / counts.sum()
            axes.bar(values, share, width=0.8 * width, color=_PALETTE[0])
            if magnitude:
                grid = np.linspace(values[0], values[-1], 201)
                axes.plot(grid, width * np.exp(-np.abs(grid) / magnitude) / (2.0 * magnitude), color=_PALETTE[1], linewidth=1)
            for border in borders:
                axes.axvline(border, color=_FAINT, linewidth=0.8, linestyle=":")
            axes.set_title(_short(name), fontsize=8)
            axes.set_yscale("log")
            axes.set_ylim(bottom=max(float(share[share > 0].min()) / 2.0, 1e-7))
            axes.tick_params(labelsize=7)
    return _svg(figure, alt)


def curve(ratios: Sequence[float], errors: Sequence[float], here: float, alt: str) -> str:
    """Error against ratio, with a line at one ratio.

    Args:
        ratios: File ratios.
        errors: The error at each.
        here: The ratio of the file.
        alt: As in `stacked_bars`.
    """
    with _picture(2.6) as (figure, axes):
        axes.plot(ratios, errors, color=_PALETTE[0], marker="o", markersize=4)
        axes.axvline(here, color=_PALETTE[1], linewidth=1.2, label="this file")
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted(
            {min(ratios), max(ratios), *(r for r in (4, 8, 16, 32, 64) if 1.2 * min(ratios) < r < max(ratios) / 1.2)}
        )
        axes.set_xticks(ticks, [f"{tick:.3g}x" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("dense bytes over file bytes")
        axes.set_ylabel("squared error, relative")
        axes.legend(frameon=False)
    return _svg(figure, alt)


def lines(panels: Mapping[str, Sequence[float]], alt: str) -> str:
    """A line for each quantity of a training, by epoch.

    Args:
        panels: {quantity: its value after each epoch}.
        alt: As in `stacked_bars`.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(WIDTH, 1.6 * len(panels)), layout="constrained")
        for number, (name, values) in enumerate(panels.items()):
            axes = figure.add_subplot(len(panels), 1, number + 1)
            axes.plot(np.arange(len(values)) + 1, values, color=_PALETTE[number % len(_PALETTE)], marker="o", markersize=3)
            axes.set_ylabel(name)
            axes.xaxis.set_major_locator(_whole_numbers())
        axes.set_xlabel("epoch")
    return _svg(figure, alt)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


@contextmanager
def _picture(height: float) -> Iterator[tuple[Figure, Axes]]:
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "opq",
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    with matplotlib.rc_context(settings):
        yield


def _short(name: str, length: int = 34) -> str:
    """A name with its middle left out if it is long. A dollar sign would begin a formula."""
    return shorten(name, length).replace("$", r"\$")


def _svg(figure: Figure, alt: str) -> str:
    """The SVG element of a figure, with its colours as variables of the page, and numbers of two decimals."""
    with _style():
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'"(?=[^"]*\d\.\d{3})[^"]*"', lambda match: re.sub(r"(\d\.\d\d)\d+", r"\1", match[0]), text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)
    title = f'role="img" aria-label="{html.escape(alt, quote=True)}"'
    text = text.replace("<svg", f"<svg {title}", 1)
    prefix = f"p{zlib.crc32(alt.encode())}"  # so that no two pictures of a page have the same ids
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    return re.sub(r'(xlink:href="|href="|url\()#([^")]+)', rf"\1#{prefix}-\2", text).replace("xlink:href", "href")
