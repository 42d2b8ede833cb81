"""All weights of a network, rounded by their curvature at one multiplier, as a file."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from opq.calibration.batch_norm_statistics import Statistics, apply, batch_norms_of, correct
from opq.calibration.compensation import Factor, round_columns
from opq.calibration.curvature import WIDEST, Curvature, matrix_of, total
from opq.calibration.curvature_steps import Pattern, balanced_levels, pattern_of, relative_level
from opq.calibration.inputs import Batch
from opq.checkpoints import as_state
from opq.compression.analysis import CheckpointAnalysis
from opq.compression.compressed_model import CompressedModel, encode_state
from opq.compression.planned_weight import PlannedWeight
from opq.compression.planning import joint_plan
from opq.compression.row_scales import row_power
from opq.compression.size_model import SizeModel
from opq.config import CompressionConfig, LayerConfig
from opq.progress import Progress, logger
from opq.quantization.codebook import codebook_of
from opq.quantization.compressed_tensor import CompressedTensor, QuantizedWeight
from opq.quantization.nonzero import keep_nonzero
from opq.rate_distortion.scales import measured_rows, steps

_NAMED = 3
"""Weights that are not calibrated and are named in a warning."""

# Of a normal distribution, log2(4.13 rms / step) bits are its entropy in steps.
_GAUSSIAN = 4.13
# A step is the root of this many lambda over the sensitivity.
_HIGH_RATE = 6.0 / math.log(2.0)
_SMALLEST_STEP, _LARGEST_STEP = 2.0**-80, 2.0**80
# Compensation can make codes larger; a file holds codes below 2^24.
_LARGEST_CODE = 2.0**20


@dataclass(frozen=True, eq=False)
class Corrections:
    """What batch norms need to be corrected.

    Args:
        reference: The network in float32 on which curvature was measured, in evaluation mode.
        batch: Inputs.
        wanted: What `input_statistics` found in `reference`; empty if nothing is to be corrected.
    """

    reference: nn.Module
    batch: Batch
    wanted: Mapping[str, Statistics]


@dataclass(frozen=True, eq=False)
class NetworkRounding:
    """A network whose files depend on one multiplier.

    Args:
        model: The dense network.
        curvatures: {parameter: its curvature}.
        factors: {parameter: the factor of each block of its columns}; filled when they are needed.
        corrections: Of batch norms.
        analysis: Of the network, under `config`.
        config: The settings.
        report: Called after each weight.
    """

    model: nn.Module
    curvatures: Mapping[str, Curvature]
    factors: dict[str, list[Factor]]
    corrections: Corrections
    analysis: CheckpointAnalysis
    config: CompressionConfig
    report: Progress

    @cached_property
    def settings(self) -> dict[str, LayerConfig]:
        """{weight: its settings}."""
        return self.config.layer_configs(list(self.analysis.statistics))

    @cached_property
    def _same(self) -> dict[str, list[str]]:
        """{weight: all weights that have its codes}; equal weights with other settings have codes of their own."""
        groups: dict[str, list[str]] = {}
        for name in self.analysis.statistics:
            first = self.analysis.repeats.get(name, name)
            first = first if self.settings[first] == self.settings[name] else name
            groups.setdefault(first, []).append(name)
        return groups

    @cached_property
    def curved(self) -> dict[str, Curvature]:
        """{weight: its curvature} of the weights whose steps follow it."""
        found = {}
        for name, same in self._same.items():
            curvature = total(self.curvatures, same)
            if (
                curvature is not None
                and not self.settings[name].is_fixed
                and self.analysis.statistics[name].laplace_scale > 0.0
            ):
                found[name] = curvature
        return found

    @property
    def calibrated(self) -> list[str]:
        """Names of the weights whose steps follow their curvature."""
        return [name for first in self.curved for name in self._same[first]]

    def warn_of_others(self) -> None:
        """Name the weights that are quantized from their values alone, although nothing fixes them."""
        free = [name for name in self.analysis.statistics if not self.settings[name].is_fixed]
        calibrated = set(self.calibrated)
        logger.info("%d of %d weights are calibrated", len(calibrated), len(self.analysis.statistics))
        others = [name for name in free if name not in calibrated and self.analysis.statistics[name].laplace_scale > 0.0]
        if others:
            names = ", ".join(map(repr, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
            logger.warning(
                "%d of %d weights are quantized without the inputs, because the outputs do not depend on them: %s",
                len(others),
                len(self.analysis.statistics),
                names,
            )

    def matrix(self, name: str) -> Tensor:
        """A weight as the matrix of its curvature, float32."""
        values = torch.from_numpy(np.asarray(self.analysis.state[name]).astype(np.float32))
        return matrix_of(values, self.curved[name].transposed)

    @cached_property
    def patterns(self) -> dict[str, Pattern]:
        """{weight: its steps up to a common factor}."""
        patterns, matrices = {}, {}
        for number, (name, curvature) in enumerate(self.curved.items(), 1):
            matrix = matrices[name] = self.matrix(name)
            by_magnitude = any(row_power(other, tuple(matrix.shape)) == 1.0 for other in self._same[name])
            scaled = self.settings[name].scales == "auto"
            pattern = pattern_of(matrix, curvature, self._factors(name), scaled=scaled, by_magnitude=by_magnitude)
            if self.settings[name].scales == "rows":
                rows = measured_rows(matrix.abs().double().mean(1).numpy())
                pattern = replace(pattern, rows=rows if rows.any() else None)
            patterns[name] = pattern
            self.report("factoring", number, len(self.curved))
        levels = balanced_levels(patterns, matrices)
        shifted = {name: levels[name] + self._requested(name) for name in patterns}
        return {name: replace(pattern, level=shifted[name]) for name, pattern in patterns.items()}

    def _requested(self, name: str) -> float:
        """The change of a level that a sensitivity of the user's asks for."""
        sensitivity = self.settings[name].sensitivity
        return 0.0 if sensitivity is None else -0.5 * math.log2(sensitivity / self.curved[name].mean)

    def _factors(self, name: str) -> list[Factor]:
        if name not in self.factors:
            self.factors[name] = [Factor.of(block) for block in self.curved[name].moments]
        return self.factors[name]

    def rough_lambda(self, code_bytes: float) -> float:
        """The lambda at which codes take about so many bytes, if rows are normally distributed."""
        gaps = []
        for name, pattern in self.patterns.items():
            magnitudes = self.matrix(name).double().square().mean(1).sqrt().clamp(min=1e-30)
            scales = 0.0 if pattern.rows is None else torch.from_numpy(pattern.rows).double() / 8.0
            gaps.append((torch.log2(_GAUSSIAN * magnitudes) - pattern.level - scales, self.matrix(name).shape[1]))
        for name, cost in self._other_costs.items():
            statistics = self.analysis.statistics[name]
            if (fixed := self.settings[name]).is_fixed or not statistics.laplace_scale:
                continue
            cost = fixed.sensitivity or cost
            magnitude = torch.tensor([math.sqrt(2.0) * statistics.laplace_scale], dtype=torch.float64)
            gaps.append((torch.log2(_GAUSSIAN * magnitude) - 0.5 * math.log2(_HIGH_RATE / cost), statistics.count))
        low, high = -200.0, 200.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            bits = sum(float((gap - middle).clamp(min=0.0).sum()) * columns for gap, columns in gaps)
            low, high = (middle, high) if bits > 8.0 * code_bytes else (low, middle)
        return float(4.0**low)

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The lambdas at which the largest code of all is _LARGEST_CODE, and at which every code is 0."""
        largest = []
        for name, pattern in self.patterns.items():
            factors = torch.from_numpy(steps(1.0, pattern.rows, pattern.columns))
            largest.append(float((self.matrix(name).abs() / factors).max()) / 2.0**pattern.level)
        return (max(largest, default=1.0) / _LARGEST_CODE) ** 2, (4.0 * max(largest, default=1.0)) ** 2

    def encode(self, lmbda: float, *, corrected: bool) -> CompressedModel:
        """The file at a multiplier.

        Args:
            lmbda: The square of D (`opq.calibration.curvature_steps`), > 0.
            corrected: Whether to correct the statistics of batch norms, which takes a forward pass.
        """
        weights: dict[str, QuantizedWeight] = {}
        for number, name in enumerate(self.patterns, 1):
            rounded = self._round(name, math.sqrt(lmbda))
            for other in self._same[name]:
                shape = self.analysis.statistics[other].shape
                kind = self.analysis.state.describe(other)[0]
                weights[other] = replace(rounded, codes=rounded.codes.reshape(shape), dtype=kind)
            self.report("rounding", number, len(self.patterns))
        plans = joint_plan(self._others, self.config.target, lmbda).layers if self._others is not None else {}
        weights |= {name: PlannedWeight(self.analysis.state, name, plan) for name, plan in plans.items() if name not in weights}
        state = self.analysis.state
        if corrected and self.corrections.wanted:
            state = as_state(self._corrected(weights), state.metadata)
        made = encode_state(state, weights, self.analysis.auxiliary, speed=self.config.speed, report=self.report)
        logger.debug("calibrated at lambda %.4g: %d bytes", lmbda, made.file_bytes)
        return made

    def _round(self, name: str, multiplier: float) -> CompressedTensor:
        pattern, matrix, transposed = self.patterns[name], self.matrix(name), self.curved[name].transposed
        step = float(np.float32(min(max(multiplier * 2.0**pattern.level, _SMALLEST_STEP), _LARGEST_STEP)))
        row_steps = torch.from_numpy(steps(step, pattern.rows, None)[:, 0]).expand(len(matrix))
        column_steps = torch.from_numpy(steps(1.0, None, pattern.columns)[0]).expand(matrix.shape[1])
        blocks = zip(torch.split(matrix, WIDEST, 1), torch.split(column_steps, WIDEST), self._factors(name), strict=True)
        codes = torch.cat([round_columns(block, row_steps, columns, factor) for block, columns, factor in blocks], 1)
        rows, columns = (pattern.columns, pattern.rows) if transposed else (pattern.rows, pattern.columns)
        whole = (codes.T if transposed else codes).reshape(self.analysis.statistics[name].shape).contiguous().numpy()
        if (axes := self.analysis.state.nonzero_over(name)) is not None:
            whole = keep_nonzero(whole, self.analysis.state[name], axes)
        return CompressedTensor(whole, codebook_of(step, rows, columns), self.analysis.state.describe(name)[0])

    @cached_property
    def _other_costs(self) -> dict[str, float]:
        """{weight that is not calibrated: the sensitivity at which its relative error counts as those of the others do}."""
        matrices = {name: self.matrix(name) for name in self.patterns}
        count = sum(matrix.numel() for matrix in matrices.values())
        excess = [
            matrix.numel() * (self.patterns[name].level - relative_level(matrix.double().square().sum()))
            for name, matrix in matrices.items()
        ]
        shift = sum(excess) / max(count, 1)
        others = self.analysis.statistics.keys() - set(self.calibrated)
        levels = {
            name: relative_level(2.0 * self.analysis.statistics[name].laplace_scale ** 2 * self.analysis.statistics[name].count)
            for name in others
        }
        return {name: _HIGH_RATE * 4.0 ** -(level + shift) for name, level in levels.items()}

    @cached_property
    def _others(self) -> SizeModel | None:
        """The weights that are not calibrated, which follow a plan."""
        costs = self._other_costs
        if not costs:
            return None
        layers = {
            name: LayerConfig(sensitivity=costs.get(name, 1.0)).updated(self.settings[name])
            for name in self.analysis.statistics
        }
        return SizeModel.of(self.analysis, replace(self.config, layers=layers, cost="squared"))

    @torch.no_grad()
    def _corrected(self, weights: Mapping[str, QuantizedWeight]) -> nn.Module:
        """A copy of the network whose batch norms make up for the rounding of these weights."""
        quantized, network = copy.deepcopy(self.corrections.reference), copy.deepcopy(self.model)
        tensors = quantized.state_dict()  # it shares the memory of parameters and buffers
        for name, weight in weights.items():
            codes = weight.read_codes()(0, math.prod(weight.shape)).reshape(weight.shape)
            tensors[name].copy_(torch.from_numpy(weight.codebook.values(codes, "float32")))
        norms = batch_norms_of(network)
        for name, correction in correct(quantized, self.corrections.batch, self.corrections.wanted).items():
            apply(norms[name], correction)
        return network
