"""Draw benchmarks/results/accuracy_vs_size.png from the result files: `python benchmarks/picture.py`.

The plot shows the change of top-1 against the bytes of the whole file, for opq and for other tools, on ResNet-20 and MobileNet.
It shows changes, not top-1 itself, because the finetuned ResNet-20 was adapted to the JPEG images first, and so has a different
dense network. Changes are relative to the dense network that each row was compressed from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PATH = RESULTS / "accuracy_vs_size.png"

Row = dict[str, Any]
Point = tuple[float, float]
"""Bytes of a file, and its change of top-1 in points."""

TITLES = {
    "resnet20": "ResNet-20, CIFAR-10 (JPEG)",
    "mobilenet": "MobileNet-V1 0.75, ImageNet",
}
LOWEST, HIGHEST = -9.0, 1.6
"""Range of the vertical axis; files that lose more are not shown."""

SIZES = {"resnet20": (25e3, 260e3), "mobilenet": (0.8e6, 2.6e6)}
TICKS = {"resnet20": (30e3, 50e3, 100e3, 200e3), "mobilenet": (1e6, 1.5e6, 2e6, 2.5e6)}
RATIOS = {"resnet20": (40, 30, 20, 10, 5), "mobilenet": (12, 10, 8, 6, 5, 4)}


@dataclass(frozen=True)
class Style:
    """The style of a method in the plot.

    Args:
        label: Its text in the legend.
        color: Color of line and markers.
        marker: Matplotlib's name of the marker.
        line: Matplotlib's name of the line style; "" for markers only.
    """

    label: str
    color: str
    marker: str
    line: str = "-"


STYLES = {
    "finetuned": Style("opq, finetuned", "#7b1e1e", "D"),
    "calibrated": Style("opq, calibrated (unlabelled images)", "#d1492e", "s"),
    "weights": Style("opq, weights only", "#f2a03d", "o"),
    "nncodec-dependent": Style("nncodec, dependent quantization", "#1f4e8c", "v", "--"),
    "nncodec-uniform": Style("nncodec, uniform quantization", "#6d9bd1", "^", "--"),
    "NNCF, pruned, 8 bits": Style("NNCF, pruned, 8 bits, packed", "#2f7d4f", "P", ""),
    "torchao, integers": Style("torchao, integers, packed", "#7a5aa6", "X", ""),
    "k-means, pruned": Style("pruning, k-means, packed", "#777777", "*", ""),
    "integers, pruned": Style("pruning, integers, packed", "#222222", "p", ""),
}
"""{method: its style}; "packed" means after gzip, bzip2 or xz, whichever is smallest."""


def points_of(network: str) -> dict[str, list[Point]]:
    """{method: its files, smallest first}."""
    allocation, finetune, peers = (
        [row for row in _rows(name) if row["network"] == network] for name in ("allocation", "finetune", "peers")
    )
    points = {method: _points(row for row in allocation if row["method"] == method) for method in STYLES}
    points["weights"] = _points(row for row in allocation if row["method"] == "opq-joint")
    if network == "mobilenet":
        points["calibrated"] = _points(row for row in finetune if row["epochs"] == 0)
        points["finetuned"] = _points(row for row in finetune if row["epochs"] > 0)
    else:
        points["calibrated"] = _points(row for row in allocation if row["method"] == "opq-calibrated")
        rows = [row for row in finetune if (row["mode"], row["epochs"]) == ("joint", 6)]
        points["finetuned"] = _points({**row, "dense_top1": row["teacher_top1"]} for row in rows)
    for row in peers:
        if row["way"] in STYLES:
            points[row["way"]] = _points([{**row, "file_bytes": row["packed_bytes"]}])
    return points


def draw() -> None:
    """Write the plot."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold"})
    figure, panels = pyplot.subplots(1, 2, figsize=(8.0, 4.8), sharey=True)
    for panel, network in zip(panels, TITLES, strict=True):
        _draw_panel(panel, network)
    panels[0].set_ylabel("change of top-1 (percentage points)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=8.5, frameon=False)
    figure.tight_layout(rect=(0.0, 0.13, 1.0, 1.0), w_pad=1.5)
    figure.savefig(PATH, dpi=200, metadata={"Software": None})
    pyplot.close(figure)
    print(f"wrote {PATH.name}")


def _draw_panel(panel: Any, network: str) -> None:
    for method, points in points_of(network).items():
        style = STYLES[method]
        panel.plot(
            [size for size, _ in points],
            [change for _, change in points],
            label=style.label,
            color=style.color,
            marker=style.marker,
            linestyle=style.line or "none",
            linewidth=2.0 if method in ("finetuned", "calibrated", "weights") else 1.2,
            markersize=8 if style.marker == "*" else 5.5,
        )
    panel.axhline(0.0, color="black", linewidth=0.8)
    panel.annotate("dense network", (0.985, 0.08), (0, 0), ("axes fraction", "data"), "offset points", ha="right", va="bottom")
    dense_bytes = next(row["dense_bytes"] for row in _rows("main_job") if row["network"] == network)
    panel.set(title=TITLES[network], xlabel="file size", xscale="log", xlim=SIZES[network], ylim=(LOWEST, HIGHEST))
    panel.set_xticks(TICKS[network], [_size_text(size) for size in TICKS[network]])
    panel.minorticks_off()
    panel.grid(alpha=0.25)
    above = panel.secondary_xaxis("top")
    shown = [ratio for ratio in RATIOS[network] if SIZES[network][0] <= dense_bytes / ratio <= SIZES[network][1]]
    above.set_xticks([dense_bytes / ratio for ratio in shown], [f"{ratio}x" for ratio in shown])
    above.minorticks_off()
    above.set_xlabel("times smaller than the dense network", fontsize=8.5)


def _size_text(size: float) -> str:
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"


def _rows(result: str) -> list[Row]:
    rows: list[Row] = json.loads((RESULTS / f"{result}.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _points(rows: Iterable[Row]) -> list[Point]:
    return sorted((row["file_bytes"], row["top1"] - row["dense_top1"]) for row in rows)


if __name__ == "__main__":
    draw()
