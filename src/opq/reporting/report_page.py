"""The page of a report."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

import numpy as np

from opq import dtypes
from opq.errors import MissingExtraError
from opq.natural_order import natural_key
from opq.reporting import charts
from opq.reporting.diff import COLUMNS
from opq.reporting.inspection import KINDS, TensorReport
from opq.reporting.report import Report
from opq.text_table import size_text

LARGEST_BARS, LARGEST_TABLE = 25, 400
"""Layers in the picture of bytes, and rows of a table."""


def render(report: Report) -> str:
    """The HTML of a report; MissingExtraError if matplotlib or Jinja is not installed."""
    try:
        import jinja2
        import matplotlib  # noqa: F401 - charts needs it
    except ImportError:
        raise MissingExtraError("opq.report", "report") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("opq.reporting").joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(page=Page(report))


class Page:
    """What the template shows: texts, pictures and tables.

    Args:
        report: The report.
    """

    def __init__(self, report: Report) -> None:
        self.report, self.inspection = report, report.inspection
        self.weights = sorted(
            (tensor for tensor in self.inspection.tensors if tensor.kind == "weight"),
            key=lambda tensor: natural_key(tensor.name),
        )
        self.title = report.name

    difference_columns = COLUMNS

    @property
    def headline(self) -> list[tuple[str, str]]:
        """(number, what it says in plain words)."""
        found = self.inspection
        cards = [
            (f"{found.file_ratio:.1f}x", f"smaller: {size_text(found.file_bytes)} in place of {size_text(found.dense_bytes)}"),
        ]
        if found.bits_per_weight is not None and found.sparsity is not None:
            cards.append((f"{found.bits_per_weight:.2f}", "bits of the file for each weight"))
            cards.append((f"{100.0 * found.sparsity:.0f}%", "of the weights are zero"))
        cards.append(
            (
                f"{len(self.weights):,}",
                f"weights are quantized, {len(found.tensors) - len(self.weights):,} other tensors are not",
            )
        )
        return cards

    @property
    def bytes_picture(self) -> str:
        """Bytes by layer and kind."""
        groups: dict[str, dict[str, int]] = {}
        for tensor in self.inspection.tensors:
            layer = tensor.name.rpartition(".")[0] or tensor.name
            groups.setdefault(layer, dict.fromkeys(KINDS, 0))[tensor.byte_kind] += tensor.bytes
        largest = sorted(groups, key=lambda layer: -sum(groups[layer].values()))[:LARGEST_BARS]
        shown = sorted(largest, key=natural_key)
        bars = [groups[layer] for layer in shown]
        if others := [groups[layer] for layer in groups if layer not in largest]:
            shown.append(f"{len(others):,} smaller layers")
            bars.append({kind: sum(group[kind] for group in others) for kind in KINDS})
        shown.append("header and checksums")
        bars.append({**dict.fromkeys(KINDS, 0), "header": self.inspection.header_bytes})
        parts = {kind: [bar[kind] / 1000.0 for bar in bars] for kind in KINDS if any(bar[kind] for bar in bars)}
        return charts.stacked_bars(shown, parts, "kB of the file", f"Bytes of {self.title} by layer and kind")

    @property
    def bytes_rows(self) -> list[tuple[str, str, str]]:
        """(kind, bytes, share)."""
        found = self.inspection
        return [
            (kind, f"{size:,}", f"{100.0 * size / found.file_bytes:.2f}%") for kind, size in found.bytes_by_kind.items() if size
        ]

    @property
    def layers_picture(self) -> str:
        """Zeros and bits of each weight, in order."""
        return charts.bars_and_line(
            [100.0 * (tensor.sparsity or 0.0) for tensor in self.weights],
            [8.0 * tensor.bytes / max(_count(tensor), 1) for tensor in self.weights],
            "zeros, %",
            "bits for each weight",
            f"Zeros and bits for each weight of {len(self.weights):,} layers",
        )

    @property
    def layer_rows(self) -> list[tuple[str, ...]]:
        """A row for each weight; the largest ones if there are many."""
        chosen = sorted(self.weights, key=lambda tensor: -tensor.bytes)[:LARGEST_TABLE]
        return [
            (
                tensor.name,
                "x".join(map(str, tensor.shape)),
                f"{100.0 * (tensor.sparsity or 0.0):.1f}%",
                f"{8.0 * tensor.bytes / max(_count(tensor), 1):.2f}",
                f"{tensor.step:.4g}" if tensor.step is not None else f"{tensor.levels} levels",
                f"{tensor.bytes:,}",
            )
            for tensor in _ordered(chosen)
        ]

    @property
    def left_out(self) -> int:
        """Weights that have no row."""
        return max(len(self.weights) - LARGEST_TABLE, 0)

    @property
    def histograms_picture(self) -> str:
        """Histograms of the largest weights."""
        panels = [
            (
                found.name,
                found.values,
                found.counts,
                np.asarray([] if found.zeroed is None else [-found.zeroed, found.zeroed]),
                found.mean_magnitude,
            )
            for found in self.report.histograms
        ]
        return charts.histograms(panels, f"Histograms of the codes of the {len(panels)} largest weights")

    @property
    def histogram_rows(self) -> list[tuple[str, ...]]:
        """(name, values in use, mean magnitude, border of zeros, error)."""
        return [
            (
                found.name,
                f"{len(found.values)}",
                f"{found.mean_magnitude:.4g}",
                "" if found.zeroed is None else f"{found.zeroed:.4g}",
                "" if found.relative_error is None else f"{100.0 * found.relative_error:.3g}%",
            )
            for found in self.report.histograms
        ]

    @property
    def curve_picture(self) -> str:
        """The rate-distortion curve."""
        points = self.report.points
        return charts.curve(
            [point.ratio for point in points],
            [point.distortion for point in points],
            self.inspection.file_ratio,
            "Predicted error of the weights against the ratio of the file",
        )

    @property
    def curve_rows(self) -> list[tuple[str, ...]]:
        """(ratio, bytes, bits, zeros, error)."""
        return [
            (
                f"{point.ratio:g}x",
                f"{point.bytes:,}",
                f"{point.bits_per_weight:.2f}",
                f"{100.0 * point.sparsity:.1f}%",
                f"{100.0 * point.distortion:.3g}%",
            )
            for point in self.report.points
        ]

    @property
    def history_names(self) -> list[str]:
        """The quantities of the history that are numbers in every epoch, without the epoch."""
        rows = self.report.history
        return [
            name
            for name in rows[0]
            if name != "epoch"
            and all(isinstance(row.get(name), int | float) and not isinstance(row[name], bool) for row in rows)
        ]

    @property
    def history_picture(self) -> str:
        """A line for each quantity."""
        rows = self.report.history
        panels = {name: [row[name] for row in rows] for name in self.history_names if name != "seconds"}
        return charts.lines(panels, f"History of {len(rows)} epochs")

    @property
    def history_rows(self) -> list[tuple[str, ...]]:
        """A row for each epoch."""
        return [
            (str(number), *(f"{row[name]:.4g}" for name in self.history_names))
            for number, row in enumerate(self.report.history, 1)
        ]

    @property
    def comparison(self) -> dict[str, float]:
        """{how the same network is stored: kB}."""
        compared, found = self.report.comparison, self.inspection
        saved = sum((dtypes.NUMPY[t.dtype].itemsize - 2) * _count(t) for t in found.tensors if t.dtype in dtypes.COMPRESSIBLE)
        codes = sum((dtypes.NUMPY[t.dtype].itemsize - 1) * _count(t) for t in self.weights)
        sizes: dict[str, float | None] = {
            "dense": found.dense_bytes,
            "float16": found.dense_bytes - saved,
            "int8": found.dense_bytes - codes,
            **{f"quantized values, {name}": size for name, size in compared.dense.items()},
            **{f"codes as integers, {name}": size for name, size in compared.codes.items()},
            "opq": compared.opq_bytes,
        }
        return {name: size / 1000.0 for name, size in sizes.items() if size is not None}  # None: zstd is not installed

    @property
    def comparison_picture(self) -> str:
        """Sizes of the same network, stored in other ways."""
        return charts.stacked_bars(
            list(self.comparison), {"size": list(self.comparison.values())}, "kB", "Sizes of the network, stored in other ways"
        )

    @property
    def comparison_rows(self) -> list[tuple[str, str, str]]:
        """(way, bytes, over opq's)."""
        opq_size = self.comparison["opq"]
        return [(name, f"{1000.0 * size:,.0f}", f"{size / opq_size:.2f}") for name, size in self.comparison.items()]

    @property
    def exact_rows(self) -> list[tuple[str, ...]]:
        """(tensor, shape, storage, largest error, why) of those that are not quantized."""
        others = [tensor for tensor in self.inspection.tensors if tensor.kind != "weight"]
        return [
            (
                tensor.name,
                "x".join(map(str, tensor.shape)) or "scalar",
                f"{tensor.dtype}, {tensor.storage}",
                _error(tensor),
                self.report.exact.get(tensor.name, ""),
            )
            for tensor in _ordered(others)[:LARGEST_TABLE]
        ]


def _ordered(tensors: Iterable[TensorReport]) -> list[TensorReport]:
    return sorted(tensors, key=lambda tensor: natural_key(tensor.name))


def _count(tensor: TensorReport) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _error(tensor: TensorReport) -> str:
    if tensor.relative_error:
        return f"{100.0 * tensor.relative_error:.2g}% of a value"
    return f"{tensor.absolute_error:.2g}" if tensor.absolute_error else "none"
