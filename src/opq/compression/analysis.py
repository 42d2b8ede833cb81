"""CheckpointAnalysis: one pass over a checkpoint that measures weights and encodes auxiliary tensors.

Planning, compression, the rate-distortion curve and calibration start with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from opq import dtypes
from opq.checkpoints import State
from opq.checkpoints.folded_state import FoldedBatchNormState
from opq.checkpoints.reparametrized_state import ReparametrizedState
from opq.codec.file_writer import AuxiliaryPack, check_text, fixed_bytes, in_order, pack_auxiliary
from opq.codec.section_choice import LARGEST_COMPARED
from opq.compression.auxiliary_storage import storages
from opq.compression.equal_weights import equal_weights
from opq.compression.packed_layouts import refuse_packed
from opq.compression.role_factors import role_factors
from opq.compression.row_scales import row_power
from opq.compression.tensor_roles import TensorRoles, lossless_roles, tensor_roles
from opq.compression.trellis_weights import refuse_trellis_directions, trellis_weights
from opq.compression.workers import THREADS, Workers
from opq.config import CompressionConfig, LayerConfig, Lossless, Speed
from opq.errors import PlanError, SourceError, TargetError
from opq.progress import Progress, counted, logger, no_progress
from opq.rate_distortion.costs import balanced_costs
from opq.rate_distortion.layers import Layer, LayerStatistics
from opq.rate_distortion.plan import AuxiliaryPlan, Plan

_PREPARED = re.compile(r"(^|\.)parametrizations\.[^.]+\.0\.max_codes$")
"""The name of a parametrization's buffer, as `opq.prepare` makes it, in a state dict."""


@dataclass(frozen=True, eq=False)
class CheckpointAnalysis:
    """A checkpoint with the statistics that planning and encoding need.

    Args:
        state: The checkpoint; pruned and weight-normalized weights are what the network makes of them, and batch norms are
            folded if `auxiliary` requests it.
        statistics: {weight name: its statistics}, in order of names.
        packs: All other tensors, encoded.
        auxiliary: How the other tensors are stored.
        dense_bytes: Bytes of all tensors in their dtypes; weights of equal values count once.
        exact: {name of another tensor: why it is not a weight}.
        repeats: {weight: an earlier weight with the same values}.
    """

    state: State
    statistics: Mapping[str, LayerStatistics]
    packs: list[AuxiliaryPack]
    auxiliary: AuxiliaryPlan
    dense_bytes: int
    exact: Mapping[str, str]
    repeats: Mapping[str, str]

    @cached_property
    def fixed_bytes(self) -> int:
        """Estimated bytes of the file other than codes: header, checksums, auxiliary tensors."""
        weights = ((name, measured.shape, self.state.describe(name)[0]) for name, measured in self.statistics.items())
        return fixed_bytes(weights, self.packs, self.state.metadata)

    @property
    def saved_bytes(self) -> int:
        """Bytes that the tensors that are no weights take less in the file than in the source."""
        return sum(sum(entry.dense_bytes for entry in pack.entries) - len(pack.section) for pack in self.packs)

    def layers(self, config: CompressionConfig) -> list[Layer]:
        """The weights with their settings, for rate-distortion allocation; with scales the statistics are those over scales.

        Args:
            config: Its `layers` are the settings.

        Raises:
            TargetError: There are no weights.
            SelectionError: A glob of `config.layers` matches no weight.
            ConfigError: A setting is out of range.
        """
        names = list(self.statistics)
        configs = config.layer_configs(names)
        if not names:
            reasons = "; ".join(sorted(set(self.exact.values()))) or "there is no tensor"
            raise TargetError(f"there is no weight to compress: {reasons}; change include and exclude, or use lossless")
        repeats = {name: first for name, first in self.repeats.items() if configs[name] == configs[first]}
        for name in sorted(self.repeats.keys() - repeats.keys()):
            message = "weights %r and %r are equal but have different settings, so both are stored"
            logger.warning(message, self.repeats[name], name)
        powers = self._row_powers(config, configs)
        statistics = {name: found.by_rows(powers[name]) if powers[name] else found for name, found in self.statistics.items()}
        costs = self._balanced_costs(statistics) if config.resolved_cost == "balanced" else {}
        free = [name for name in names if config.resolved_rounding == "trellis" and not configs[name].is_fixed]
        trellis = trellis_weights(self.state, self.statistics, free, self.repeats)
        return [Layer(n, statistics[n], configs[n], repeats.get(n), costs.get(n, 1.0), n in trellis) for n in names]

    def _balanced_costs(self, statistics: Mapping[str, LayerStatistics]) -> dict[str, float]:
        costs = balanced_costs({name: found for name, found in statistics.items() if name not in self.repeats})
        shapes = {name: found.shape for name, found in statistics.items()}
        factors = role_factors(shapes, self.repeats, frozenset(self.state))
        return {name: factors.get(name, 1.0) * costs[self.repeats.get(name, name)] for name in statistics}

    def _row_powers(self, config: CompressionConfig, configs: Mapping[str, LayerConfig]) -> dict[str, float]:
        """{weight: the power of its rows' magnitudes that its steps follow}, 0 for one step. Equal weights have the same."""
        automatic: dict[str, float] = {}
        for name, measured in self.statistics.items():
            first = self.repeats.get(name, name)
            automatic[first] = max(automatic.get(first, 0.0), row_power(name, measured.shape))
        found = {}
        for name, own in configs.items():
            if own.scales == "auto":
                is_free = config.resolved_rounding != "deadzone" and not own.is_fixed
                found[name] = automatic[self.repeats.get(name, name)] if is_free else 0.0
            else:
                found[name] = 1.0 if own.scales == "rows" and len(self.statistics[name].shape) > 1 else 0.0
        return found


def analyze(
    state: State,
    config: CompressionConfig,
    *,
    estimated: bool = False,
    report: Progress = no_progress,
    workers: Workers = THREADS,
) -> CheckpointAnalysis:
    """Analyze a checkpoint under a config.

    Args:
        state: The checkpoint.
        config: Selects the weights and the storage of auxiliary tensors.
        estimated: If True, auxiliary tensors are not encoded, and only their size is estimated. That is enough for a plan.
        report: Called after each weight.
        workers: They measure the weights.

    Raises:
        SourceError: The checkpoint cannot be read, has no tensors, or is the state dict of a network prepared for training.
        SelectionError: A glob matches no weight.
        WeightError: A weight cannot be compressed.
    """
    roles = choose_roles(state, config)
    return _analyze(state, roles.weights, auxiliary_plan(state, config), estimated, roles.exact, report, workers)


def analyze_planned(state: State, plan: Plan, report: Progress = no_progress, workers: Workers = THREADS) -> CheckpointAnalysis:
    """As `analyze`, for the weights of a plan.

    Args:
        state: The checkpoint.
        plan: Its layers are the weights. It also specifies how auxiliary tensors are stored.
        report: Called after each weight.
        workers: They measure the weights.

    Raises:
        SourceError, WeightError: As `analyze`.
        PlanError: The plan was made for other names, dtypes or shapes.
    """
    check_state(state)
    for name, layer in plan.layers.items():
        if name not in state:
            raise PlanError(f"it has a layer {name!r}, which the checkpoint does not have; make a plan for this checkpoint")
        kind, shape = state.describe(name)
        if kind not in dtypes.COMPRESSIBLE:
            kinds = ", ".join(sorted(dtypes.COMPRESSIBLE))
            raise PlanError(f"layer {name!r}: the checkpoint's dtype must be one of {kinds}, got {kind}")
        if shape != layer.shape:
            raise PlanError(
                f"layer {name!r}: the plan has shape {layer.shape}, but the checkpoint has {shape}; make a plan for this one"
            )
    analysis = _analyze(state, plan.layers, plan.auxiliary, False, plan.exact, report, workers)
    refuse_trellis_directions(analysis.state, plan.layers)
    return analysis


def auxiliary_plan(state: State, config: CompressionConfig) -> AuxiliaryPlan:
    """How auxiliary tensors are stored.

    Args:
        state: If the config folds batch norms, their eps are read from here, so the plan also works for a bare state dict.
        config: The settings.
    """
    form = config.batch_norm
    if form == "auto":
        is_safe = state.in_evaluation and bool(state.epsilons) and shared_eps(state.epsilons) is not None
        form = "folded" if is_safe else "keep"
    eps = shared_eps(state.epsilons, config.batch_norm_eps) if form == "folded" else config.batch_norm_eps
    return AuxiliaryPlan(config.resolved_auxiliary, form, eps)


def shared_eps(epsilons: Mapping[str, float], default: float = 1e-5) -> float | None:
    """The common eps of all batch norms.

    Args:
        epsilons: {batch norm: its eps}.
        default: The result if `epsilons` is empty.

    Returns:
        The eps; None if batch norms differ.
    """
    known = set(epsilons.values())
    if not known:
        return default
    return known.pop() if len(known) == 1 else None


def fold_if_requested(state: State, auxiliary: AuxiliaryPlan) -> State:
    """The state, with folded batch norms if `auxiliary` requests it."""
    return FoldedBatchNormState(state, auxiliary.eps) if auxiliary.batch_norm == "folded" else state


def choose_roles(state: State, config: CompressionConfig) -> TensorRoles:
    """The weights that a config selects, and why other tensors are exact.

    Args:
        state: The checkpoint.
        config: Its `include` and `exclude` select.

    Raises:
        SourceError: See `check_state`.
        WeightError: A weight is packed by another quantizer, and neither `include` nor a lossless target says what to do.
        SelectionError: A glob matches no weight.
    """
    check_state(state)
    if isinstance(config.target, Lossless):
        return lossless_roles(state).selected(config)
    if not config.include:
        refuse_packed(state)
    return tensor_roles(state).selected(config)


def check_state(state: State) -> None:
    """Check that a checkpoint can be compressed.

    Raises:
        SourceError: It has no tensors, is the state dict of a prepared network, or has a name or metadata that is not text.
    """
    if not len(state):
        raise SourceError("the source", "it holds no tensors")
    if any(_PREPARED.search(name) for name in state):
        raise SourceError("the state dict", "its network is prepared for training; call convert() on the result of opq.prepare")
    if not isinstance(state.metadata, Mapping):
        raise SourceError("metadata", f"expected {{text: text}}, got {type(state.metadata).__name__}")
    for text in [*state, *state.metadata, *state.metadata.values()]:
        check_text(text)


def dense_bytes(state: State, weights: Collection[str]) -> int:
    """Bytes of all tensors in their dtypes.

    Args:
        state: The checkpoint.
        weights: Names of its weights; those of equal values count once, because they are stored once.
    """
    return _bytes_without(state, equal_weights(ReparametrizedState(state, weights), weights))


def _bytes_without(state: State, repeats: Collection[str]) -> int:
    shapes = (state.describe(name) for name in state if name not in repeats)
    return sum(dtypes.dense_bytes(kind, math.prod(shape)) for kind, shape in shapes if kind in dtypes.NUMPY)


def _analyze(
    state: State,
    weights: Collection[str],
    auxiliary: AuxiliaryPlan,
    estimated: bool,
    exact: Mapping[str, str],
    report: Progress,
    workers: Workers,
) -> CheckpointAnalysis:
    chosen = set(weights)
    reparametrized = ReparametrizedState(state, chosen)
    repeats = equal_weights(reparametrized, chosen)
    dense = _bytes_without(state, repeats)
    state = fold_if_requested(reparametrized, auxiliary)
    names = in_order(chosen)
    statistics = dict(zip(names, counted(workers.measure(state, names), report, "measuring", len(names)), strict=True))
    packs = pack_rest(state, chosen, auxiliary, estimated=estimated)
    return CheckpointAnalysis(state, statistics, packs, auxiliary, dense, exact, repeats)


def pack_rest(
    state: State, weights: Collection[str], auxiliary: AuxiliaryPlan, *, estimated: bool = False, speed: Speed = "small"
) -> list[AuxiliaryPack]:
    """Encode the tensors that are not weights.

    Args:
        state: The checkpoint, with folded batch norms if they are to be folded.
        weights: Names of its weights.
        auxiliary: How the others are stored.
        estimated: As in `opq.codec.file_writer.pack_auxiliary`.
        speed: As in CompressionConfig.
    """
    rest = [name for name in in_order(state) if name not in weights]
    tensors = ((name, state[name]) for name in rest)
    compared = sum(dtypes.dense_bytes(kind, math.prod(shape)) for kind, shape in map(state.describe, rest)) <= LARGEST_COMPARED
    return pack_auxiliary(tensors, storages(state, rest, auxiliary), estimated=estimated, speed=speed, compared=compared)
