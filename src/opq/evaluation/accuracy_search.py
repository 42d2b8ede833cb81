"""Search for the smallest file within a drop of top-1, by evaluating files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Unpack

from torch import nn

from opq import torch as save_load
from opq.calibration.calibrate import Calibration
from opq.compression.compress import compress
from opq.compression.compressed_model import CompressedModel
from opq.config import CompressionConfig, CompressionOptions, Ratio, Size, Target, without_target
from opq.errors import TargetError
from opq.evaluation.evaluate import Evaluation, evaluate
from opq.progress import Progress
from opq.rate_distortion.rate_control import geometric_bisection
from opq.text_table import format_table, html_text
from opq.training.batches import Loader

TOLERANCE = 0.03
"""Default share by which a file that is too lossy may be smaller than the best one."""

_FIRST, _FACTOR = 10.0, 2.0
_LOWEST, _HIGHEST = 1.25, 1e4
# Share of the predicted largest file.
_NEARLY = 0.98


@dataclass(frozen=True, eq=False)
class AccuracyTrial:
    """A file that was evaluated.

    Args:
        compressed: The file.
        evaluation: The quality of its network.
        drop: Percentage points of top-1 below the dense network; negative if it is better.
    """

    compressed: CompressedModel
    evaluation: Evaluation
    drop: float


@dataclass(frozen=True, eq=False)
class AccuracySearchResult:
    """The outcome of a search.

    Args:
        best: The smallest file within the drop.
        dense: The quality of the dense network.
        trials: Every file that was evaluated, in order.
    """

    best: AccuracyTrial
    dense: Evaluation
    trials: tuple[AccuracyTrial, ...]

    @property
    def compressed(self) -> CompressedModel:
        """The smallest file within the drop."""
        return self.best.compressed

    def __str__(self) -> str:
        """A table with a row per file, and the best one in a closing line."""
        rows = [
            (f"{trial.compressed.file_bytes:,}", f"{trial.compressed.file_ratio:.2f}", f"{trial.drop:.2f}")
            for trial in self.trials
        ]
        return f"{format_table(('bytes', 'ratio', 'drop'), rows)}\nbest: {self.compressed}"

    def __repr__(self) -> str:
        """The best file, in brackets."""
        return f"<AccuracySearchResult: {self.compressed}, {self.best.drop:.2f} points of top-1 lost>"

    def _repr_html_(self) -> str:
        return html_text(str(self))


def compress_to_accuracy(
    model: nn.Module,
    loader: Loader,
    *,
    max_drop: float = 1.0,
    calibration: Calibration | None = None,
    tolerance: float = TOLERANCE,
    report: Callable[[AccuracyTrial], None] | None = None,
    progress: Progress | bool = False,
    **options: Unpack[CompressionOptions],
) -> AccuracySearchResult:
    """Find the smallest file whose top-1 on `loader` is at most `max_drop` points below that of `model`.

    The search starts at ratio 10, doubles or halves the ratio until one file is within the drop and one beyond it, and then
    bisects the ratio's logarithm. Most searches take seven or eight evaluations. Few images measure a drop only to some points:
    the standard error of a top-1 of p (0..1) on n images is sqrt(p (1 - p) / n).

    Args:
        model: The dense network.
        loader: Labelled inputs, as for `opq.evaluate`. It is iterated once per evaluation.
        max_drop: Percentage points of top-1, >= 0.
        calibration: A calibration of `model`, whose `compress` makes the files; None for `opq.compress`.
        tolerance: The search ends when a file smaller by this share was too lossy, 0 < tolerance < 1.
        report: Called with each file that was evaluated.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.
        options: The fields of a CompressionConfig as keywords, without a target.

    Returns:
        The smallest file within the drop, and all others that were evaluated.

    Raises:
        TargetError: There are no labels, every file loses more, or `options` hold a target.
        ConfigError: A setting is out of range.
        SelectionError: A glob matches no weight.
        WeightError: A weight cannot be compressed.
        TrainingError: The network fails on a batch.
    """
    if not isinstance(max_drop, Real) or not 0.0 <= max_drop < math.inf:
        raise TargetError(f"max_drop must be >= 0 and finite, got {max_drop!r}")
    if not isinstance(tolerance, Real) or not 0.0 < tolerance < 1.0:
        raise TargetError(f"tolerance must lie in (0, 1), got {tolerance!r}")
    settings = without_target(options, "compress_to_accuracy", "max_drop decides the size")
    dense = evaluate(model, loader, progress=progress)
    if dense.top1 is None:
        raise TargetError(
            "the images must have labels, because the search measures top-1; in a folder, use one folder per class"
        )
    dense_top1 = dense.top1
    network = copy.deepcopy(model)
    trials: list[AccuracyTrial] = []
    errors: list[TargetError] = []

    def make(target: Target) -> CompressedModel | None:
        config = CompressionConfig(target=target, **settings)
        try:
            if calibration is not None:
                return calibration.compress(config, progress=progress)
            return compress(model, config, progress=progress)
        except TargetError as error:
            errors.append(error)
            return None

    def drop_at(ratio: float) -> float:
        compressed = make(Ratio(ratio))
        if compressed is None and errors[-1].reach:  # even the finest steps give a smaller file than this
            compressed = make(Size(math.floor(_NEARLY * errors[-1].reach)))
        if compressed is None:
            return math.inf
        network.load_state_dict(save_load.load(compressed.data))
        evaluation = evaluate(network, loader, progress=progress)
        trials.append(AccuracyTrial(compressed, evaluation, dense_top1 - (evaluation.top1 or 0.0)))
        if report is not None:
            report(trials[-1])
        return trials[-1].drop

    find_ratio(drop_at, max_drop, tolerance)
    if not trials:
        raise errors[-1]
    within = [trial for trial in trials if trial.drop <= max_drop]
    if not within:
        best = min(trials, key=lambda trial: trial.drop)
        raise TargetError(
            f"no file loses at most {max_drop:g} points of top-1: at ratio {best.compressed.file_ratio:.3g} it loses "
            f"{best.drop:.2f}; give a larger max_drop, or calibrate"
        )
    return AccuracySearchResult(min(within, key=lambda trial: trial.compressed.file_bytes), dense, tuple(trials))


def find_ratio(drop_at: Callable[[float], float], max_drop: float, tolerance: float) -> float:
    """Search for the highest ratio whose drop is at most `max_drop`.

    Args:
        drop_at: Drop at a ratio, in percentage points; it should rise with the ratio.
        max_drop: Percentage points, >= 0.
        tolerance: Relative distance of ratios at which the bisection ends, > 0.

    Returns:
        The highest ratio within the drop; a ratio at most 1 + `tolerance` times as high was beyond it. 0 if no ratio down to
        1.25 is within, and 10,000 if all ratios up to it are.
    """
    ratio = _FIRST
    within, beyond = 0.0, math.inf
    while not (within and math.isfinite(beyond)):
        if drop_at(ratio) <= max_drop:
            within = ratio
            if ratio >= _HIGHEST:
                return within
            ratio = min(ratio * _FACTOR, _HIGHEST)
        else:
            beyond = ratio
            if ratio <= _LOWEST:
                return within
            ratio = max(ratio / _FACTOR, _LOWEST)
    return geometric_bisection(lambda ratio: drop_at(ratio) > max_drop, within, beyond, tolerance)[0]
