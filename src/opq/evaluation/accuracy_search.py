"""The smallest file of a network that loses at most some points of top-1, found by evaluating files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

from torch import nn

from opq import torch as save_load
from opq.calibration.calibrate import Calibration
from opq.compression.compress import compress
from opq.compression.compressed_model import CompressedModel
from opq.config import CompressionConfig, CompressionOptions, Ratio, Size, Target, without_target
from opq.errors import TargetError
from opq.evaluation.evaluate import Evaluation, evaluate
from opq.rate_distortion.rate_control import geometric_bisection
from opq.text_table import format_table, html_text
from opq.training.batches import Loader

TOLERANCE = 0.03

_FIRST, _FACTOR = 10.0, 2.0
_LOWEST, _HIGHEST = 1.25, 1e4
# Of the largest file there can be, as predicted.
_NEARLY = 0.98


@dataclass(frozen=True, eq=False)
class AccuracyTrial:
    """A file that was evaluated.

    Args:
        compressed: The file.
        evaluation: What the network in it does.
        drop: How many points of top-1 it loses against the dense network.
    """

    compressed: CompressedModel
    evaluation: Evaluation
    drop: float


@dataclass(frozen=True, eq=False)
class AccuracySearchResult:
    """The outcome of a search.

    Args:
        best: The smallest file within the drop.
        dense: What the dense network does.
        trials: Every file that was evaluated, in order.
    """

    best: AccuracyTrial
    dense: Evaluation
    trials: tuple[AccuracyTrial, ...]

    @property
    def compressed(self) -> CompressedModel:
        """The file."""
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
    **options: Unpack[CompressionOptions],
) -> AccuracySearchResult:
    """Find the smallest file whose top-1 on `loader` falls at most `max_drop` points below that of `model`.

    The logarithm of the ratio is bisected, from ratio 10 doubled or halved until it is between: seven or eight evaluations in
    most cases. On few images a drop is known only to some points; the network's standard error is sqrt(p (1 - p) / n).

    Args:
        model: The dense network.
        loader: Labelled inputs, as for `opq.evaluate`, which can be iterated again and again.
        max_drop: Percentage points, >= 0.
        calibration: Of `model`: files are made by `Calibration.compress`; None: by `opq.compress`.
        tolerance: The search ends when a file smaller by this share was too lossy, 0 < tolerance < 1.
        report: Called with each file that was evaluated.
        options: The fields of a CompressionConfig as keywords, without a target.

    Raises:
        TargetError: There are no labels, even the largest files lose more, or a target is given.
        ConfigError, SelectionError, WeightError: See `opq.compress`.
    """
    if not 0.0 <= max_drop < math.inf or not 0.0 < tolerance < 1.0:
        raise TargetError(f"max_drop must be >= 0 and tolerance lie in (0, 1), got {max_drop} and {tolerance}")
    settings = without_target(options, "compress_to_accuracy", "max_drop decides the size")
    dense = evaluate(model, loader)
    if dense.top1 is None:
        raise TargetError("a drop of top-1 needs labels, and loader gives none")
    dense_top1 = dense.top1
    network = copy.deepcopy(model)
    trials: list[AccuracyTrial] = []
    refused: list[TargetError] = []

    def make(target: Target) -> CompressedModel | None:
        config = CompressionConfig(target=target, **settings)
        try:
            return calibration.compress(config) if calibration is not None else compress(model, config)
        except TargetError as error:
            refused.append(error)
            return None

    def drop_at(ratio: float) -> float:
        made = make(Ratio(ratio))
        if made is None and refused[-1].reach:  # even the finest steps give smaller files than this ratio asks for
            made = make(Size(math.floor(_NEARLY * refused[-1].reach)))
        if made is None:
            return math.inf
        network.load_state_dict(save_load.load(made.data))
        found = evaluate(network, loader)
        trials.append(AccuracyTrial(made, found, dense_top1 - (found.top1 or 0.0)))
        if report is not None:
            report(trials[-1])
        return trials[-1].drop

    find_ratio(drop_at, max_drop, tolerance)
    if not trials:
        raise refused[-1]
    within = [trial for trial in trials if trial.drop <= max_drop]
    if not within:
        least = min(trials, key=lambda trial: trial.drop)
        raise TargetError(
            f"no file loses at most {max_drop:g} points of top-1: at ratio {least.compressed.file_ratio:.3g} it loses "
            f"{least.drop:.2f}; allow more, or calibrate"
        )
    return AccuracySearchResult(min(within, key=lambda trial: trial.compressed.file_bytes), dense, tuple(trials))


def find_ratio(drop_at: Callable[[float], float], max_drop: float, tolerance: float) -> float:
    """The highest ratio found whose drop is at most `max_drop`; a ratio 1 + `tolerance` times as high was seen to drop more.

    0 if none down to _LOWEST is within, and _HIGHEST if all up to it are.
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
