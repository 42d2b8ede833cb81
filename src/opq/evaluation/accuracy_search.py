"""The smallest file of a network that loses no more than some points of top-1, found by evaluating."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

from torch import nn

from opq import torch as face
from opq.calibration.calibrate import Calibration
from opq.compression.compress import CompressedModel, compress
from opq.config import CompressionOptions
from opq.errors import TargetError
from opq.evaluation.evaluate import Evaluation, evaluate
from opq.training.batches import Loader

TOLERANCE = 0.03

_FIRST, _FACTOR = 10.0, 2.0
_LOWEST, _HIGHEST = 1.25, 1e4
# Of the largest file there can be, as predicted.
_NEARLY = 0.98


@dataclass(frozen=True, eq=False)
class AccuracyTrial:
    """A file that was evaluated: its ratio, what the network in it does, and how many points of top-1 that is under dense."""

    compressed: CompressedModel
    evaluation: Evaluation
    drop: float


@dataclass(frozen=True, eq=False)
class AccuracySearchResult:
    """The smallest file found, what the dense network does, and every file that was evaluated, in order."""

    best: AccuracyTrial
    dense: Evaluation
    trials: tuple[AccuracyTrial, ...]

    @property
    def compressed(self) -> CompressedModel:
        """The file."""
        return self.best.compressed


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

    loader       labelled inputs, as for `opq.evaluate`, which can be gone through again and again
    max_drop     percentage points, >= 0
    calibration  of `model`: files are made by `Calibration.compress`, else by `opq.compress`
    tolerance    a file smaller by this share was too lossy, where the drop grows as files shrink
    report       called with each file that was evaluated
    options      as in `opq.plan`, without a target
    Bisection of the ratio's logarithm, from ratio 10 doubled or halved until it is between: seven or eight evaluations in most
    cases. On few images a drop is known to some points only; the network's standard error is sqrt(p (1 - p) / n).
    Raises TargetError where there are no labels, where even the largest files lose more, and for options that name a target.
    """
    if not 0.0 <= max_drop < math.inf or not 0.0 < tolerance < 1.0:
        raise TargetError(f"max_drop must be >= 0 and tolerance lie in (0, 1), got {max_drop} and {tolerance}")
    if given := [
        key
        for key in ("ratio", "size", "sparsity", "bits", "lossless")
        if options.get(key) is not None and options.get(key) is not False
    ]:
        raise TargetError(f"the drop decides the size: leave {given[0]} out")
    dense = evaluate(model, loader)
    if dense.top1 is None:
        raise TargetError("a drop of top-1 is measured on labelled images, and these have no labels")
    dense_top1 = dense.top1
    network = copy.deepcopy(model)
    trials: list[AccuracyTrial] = []
    refused: list[TargetError] = []

    def make(target: CompressionOptions) -> CompressedModel | None:
        wanted = CompressionOptions(**{**options, **target})
        try:
            return calibration.compress(**wanted) if calibration is not None else compress(model, **wanted)
        except TargetError as error:
            refused.append(error)
            return None

    def drop_at(ratio: float) -> float:
        made = make(CompressionOptions(ratio=ratio))
        if made is None and refused[-1].reach:  # the weights' finest steps give smaller files than this ratio's
            made = make(CompressionOptions(size=math.floor(_NEARLY * refused[-1].reach)))
        if made is None:
            return math.inf
        network.load_state_dict(face.load(made.data))
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

    0 where none down to _LOWEST is within, and _HIGHEST where all up to it are.
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
    while beyond / within > 1.0 + tolerance:
        ratio = math.sqrt(within * beyond)
        if drop_at(ratio) <= max_drop:
            within = ratio
        else:
            beyond = ratio
    return within
