"""A report on a file as one HTML page that needs nothing else: numbers, pictures, and the tables behind them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq.atomic_file import write_file
from opq.checkpoints import State, as_state
from opq.codec.file_reader import OpqFile
from opq.codec.file_start import DELTA_MAGIC, magic_of
from opq.compression.rd_curve import RDPoint, rd_curve
from opq.compression.tensor_roles import tensor_roles
from opq.errors import SourceError, TargetError
from opq.progress import Progress, show_progress
from opq.quantization.codebook import ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.reporting.compare import Comparison, compare
from opq.reporting.diff import Difference, diff
from opq.reporting.inspect import inspect
from opq.reporting.inspection import Inspection

HISTOGRAMS = 6
"""Weights with a histogram."""

_WIDEST_CODE = 32
"""Codes of larger magnitude are counted with the largest that a histogram shows."""

_SHARE = 0.99
"""Of the weights that became zero, between the dotted lines."""


@dataclass(frozen=True)
class WeightHistogram:
    """How often each code of a weight occurs.

    Args:
        name: The weight.
        values: Values in its codebook, ascending; with scales, those of rows and columns whose scale is 1.
        counts: How often each occurs.
        zeroed: The magnitude below which 99% of the weights lie that became zero; None without the dense weight.
        mean_magnitude: Mean magnitude of the dense weights, or, without them, of the values.
        relative_error: Squared error over the energy of the dense weight; None without it.
    """

    name: str
    values: NDArray[np.floating[Any]]
    counts: NDArray[np.int64]
    zeroed: float | None
    mean_magnitude: float
    relative_error: float | None


@dataclass(frozen=True)
class Report:
    """What is known of a file.

    Args:
        name: Name of the file.
        inspection: Its tensors and bytes.
        comparison: Sizes under other compressors.
        histograms: Of its largest weights.
        exact: {auxiliary tensor: why it is no weight}; empty if that is unknown.
        points: The rate-distortion curve of the dense checkpoint; empty without it.
        history: A row for each epoch of the training; empty without one.
        difference: What changed since another file; None without one.
    """

    name: str
    inspection: Inspection
    comparison: Comparison
    histograms: Sequence[WeightHistogram]
    exact: Mapping[str, str]
    points: Sequence[RDPoint]
    history: Sequence[Mapping[str, Any]]
    difference: Difference | None = None

    @cached_property
    def html(self) -> str:
        """The page; MissingExtraError if matplotlib or Jinja is not installed."""
        from opq.reporting.report_page import render

        return render(self)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the page.

        Args:
            path: The path.
            overwrite: Whether to replace an existing file.

        Raises:
            OutputError: The file cannot be written, or it exists and `overwrite` is False.
            MissingExtraError: matplotlib or Jinja is not installed.
        """
        write_file(path, self.html.encode(), overwrite=overwrite)


def report(
    file: str | os.PathLike[str],
    *,
    dense: Any = None,
    run: str | os.PathLike[str] | None = None,
    curve: bool = False,
    since: Any = None,
    progress: Progress | bool = False,
) -> Report:
    """Collect what a report shows. Every tensor is decoded, and compressed with gzip, zstd and xz: 3 s per 10 MB.

    Args:
        file: The .opq file.
        dense: The checkpoint that was compressed, as `opq.compress` takes it: then the report has errors, and why tensors are
            exact.
        run: The folder of `opq.finetune`, for the history of the training.
        curve: Whether to compute the rate-distortion curve; needs `dense`.
        since: Another file or checkpoint of the network, as `opq.diff` takes it: then the report says what changed since.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Raises:
        SourceError: The file, the checkpoint or the run cannot be read, or the checkpoint has other tensors.
        FormatError: The file is not valid.
        TargetError: `curve` without `dense`.
    """
    if curve and dense is None:
        raise TargetError("the curve is that of the dense checkpoint; give it as dense (--dense)")
    if magic_of(file) == DELTA_MAGIC:
        raise SourceError(
            Path(file), "it is a delta; expand it with its base (opq expand --base) to a .opq file, and report that"
        )
    state = None if dense is None else as_state(dense)
    with OpqFile(file) as opened:
        if state is not None:
            _check_names(opened, state, Path(file))
        weights = sorted((entry for entry in opened.entries if entry.is_weight), key=lambda entry: -entry.count)
        histograms = [_histogram(opened, entry.name, state) for entry in weights[:HISTOGRAMS]]
    roles = {} if state is None else tensor_roles(state).exact
    history = [] if run is None else _history(Path(run))
    with show_progress(progress) as show:
        points = [] if state is None or not curve else rd_curve(dense, progress=show)
        changes = None if since is None else diff(since, file, progress=show)
        inspection, comparison = inspect(file, progress=show), compare(file, progress=show)
    return Report(Path(file).name, inspection, comparison, histograms, roles, points, history, changes)


def _check_names(file: OpqFile, state: State, path: Path) -> None:
    if missing := [entry.name for entry in file.entries if entry.is_weight and entry.name not in state]:
        raise SourceError(path, f"the dense checkpoint has no tensor {missing[0]!r}; give the one that was compressed")


def _histogram(file: OpqFile, name: str, state: State | None) -> WeightHistogram:
    weight = file[name]
    if not isinstance(weight, CompressedTensor):
        raise TypeError(f"{name} is no weight")
    codes, codebook = weight.codes.ravel(), weight.codebook
    if isinstance(codebook, UniformCodebook | ScaledCodebook):
        found, counts = np.unique(np.clip(codes, -_WIDEST_CODE, _WIDEST_CODE), return_counts=True)
        values = found * float(codebook.step)
    else:
        values, counts = np.unique(np.asarray(weight.values(), dtype=np.float64), return_counts=True)
    if state is None:
        magnitude = float(np.abs(values) @ counts / counts.sum())
        return WeightHistogram(name, values, counts, None, magnitude, None)
    dense = np.asarray(state[name], dtype=np.float64).ravel()
    restored = np.asarray(weight.values(), dtype=np.float64).ravel()
    zeros = np.abs(dense[codes == 0])
    energy = float(dense @ dense)
    return WeightHistogram(
        name,
        values,
        counts,
        float(np.quantile(zeros, _SHARE)) if zeros.size else None,
        float(np.abs(dense).mean()),
        float((dense - restored) @ (dense - restored)) / energy if energy else 0.0,
    )


def _history(run: Path) -> list[dict[str, Any]]:
    path = run / "history.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise SourceError(run, f"it has no history of a training: {error}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise SourceError(run, "its history is empty")
    return rows
