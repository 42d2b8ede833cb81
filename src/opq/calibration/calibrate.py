"""Compression with calibration inputs: steps follow what errors in each weight cost on them, at a byte target."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Unpack

from opq.errors import CalibrationError, ConfigError, MissingExtraError, TargetError

try:
    import torch
    from torch import nn
except ImportError:
    raise MissingExtraError("opq.calibrate", "torch") from None

from opq.calibration.batch_norm_statistics import input_statistics
from opq.calibration.compensation import Factor
from opq.calibration.curvature import Curvature, measure_curvature, total
from opq.calibration.held_out import output_errors
from opq.calibration.inputs import Batch, batches_of, describe, groups_of, joined, portions, size_of, split
from opq.calibration.network_rounding import Corrections, NetworkRounding
from opq.calibration.synthetic import synthesize
from opq.calibration.synthetic_images import recompute_statistics
from opq.checkpoints import as_state
from opq.checkpoints.reparametrized_state import ReparametrizedState
from opq.compression.analysis import analyze
from opq.compression.compress import fit, with_warnings
from opq.compression.compressed_model import CompressedModel
from opq.compression.equal_weights import equal_weights
from opq.compression.size_model import SizeModel
from opq.compression.tensor_roles import tensor_roles
from opq.config import CompressionConfig, CompressionOptions, Lossless, TwoStage, as_config
from opq.progress import Progress, logger, show_progress
from opq.rate_distortion.rate_control import BudgetSearch

GRADIENTS = 48
"""The largest number of gradients that are measured; each is that of several inputs, if there are more."""

_CORRECTED_ON = 64
_HELD_OUT_BATCH = 16
_CLOSE, _CLOSE_ENOUGH, _AIM = 0.97, 0.995, 0.998
_MAX_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibration inputs show about a network; `opq.calibrate` makes it.

    Args:
        model: The dense network, a copy in evaluation mode.
        reference: The same network in float32, on which curvature was measured; with synthetic images its batch norms have
            their statistics.
        inputs: Batches of the network's arguments.
        held_out: Further ones, on which calibrated files are compared; `inputs` if there are few samples.
        curvatures: {parameter: the curvature of the outputs' error}. Parameters that the outputs do not depend on are absent.
    """

    model: nn.Module
    reference: nn.Module
    inputs: Sequence[Batch]
    held_out: Sequence[Batch]
    curvatures: Mapping[str, Curvature]
    _factors: dict[str, list[Factor]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """Sizes: the network and its inputs are too much to print."""
        return f"<Calibration: {len(self.curvatures)} weights measured on {sum(map(size_of, self.inputs))} inputs>"

    @cached_property
    def sensitivity(self) -> Mapping[str, float]:
        """{weight: cost of a unit of squared error, mean over its elements, > 0}, as `LayerConfig.sensitivity` takes it.

        Weights that the inputs do not reach have the smallest cost of the others.
        """
        state = as_state(self.model)
        names = tensor_roles(state).weights
        repeats = equal_weights(state, names)
        found = {}
        for name in names:
            first = repeats.get(name, name)
            curvature = total(self.curvatures, [other for other in names if repeats.get(other, other) == first])
            found[name] = 0.0 if curvature is None else curvature.mean
        smallest = min((cost for cost in found.values() if cost > 0.0), default=1.0)
        return {name: cost or smallest for name, cost in found.items()}

    def compress(
        self,
        config: CompressionConfig | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        progress: Progress | bool = False,
        **options: Unpack[CompressionOptions],
    ) -> CompressedModel:
        """Compress the network to a byte target.

        Steps of weights, rows and columns follow the curvature (`opq.calibration.curvature_steps`); each weight is rounded so
        that its columns make up for each other's errors; the statistics of batch norms make up for what has changed before
        them. Weights that the outputs do not depend on are quantized as in `opq.compress`.

        The file is then compared with that of `opq.compress` under the same settings. If the outputs of the latter are closer
        on the held-out inputs, it is the result, after a warning. Another warning names weights that are not calibrated.

        Args:
            config: The settings, with a Ratio or a Size as target; None to take them from `options`.
            metadata: {text: text} to store in the file.
            progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.
            options: The fields of a CompressionConfig as keywords.

        Returns:
            The file, which is at most as large as the target allows.

        Raises:
            TargetError: The target is neither a Ratio nor a Size, or cannot be reached.
            ConfigError: A setting is out of range, or `cost` is "balanced".
            SelectionError: A glob matches no weight.
            WeightError: A weight cannot be compressed.
        """
        config = as_config(config, options, "compress")
        if isinstance(config.target, TwoStage | Lossless):
            raise TargetError("target must be in bytes, because calibration searches for a file size; give a ratio or a size")
        if config.cost == "balanced":
            raise ConfigError(
                f"cost (={config.cost!r}) must be 'squared', because calibration measures what errors cost; remove cost"
            )
        state = as_state(self.model, metadata)
        with show_progress(progress) as report:
            analysis = analyze(state, config, report=report)
            alone = fit(SizeModel.of(analysis, config), config, report)
            if not self.curvatures:
                return with_warnings(analysis, alone)
            rounding_of_others = "compensated" if config.resolved_rounding == "trellis" else config.rounding
            config = replace(config, cost="squared", rounding=rounding_of_others)
            analysis = analyze(state, config, estimated=True, report=report)
            rounding = NetworkRounding(self.model, self.curvatures, self._factors, self._corrections, analysis, config, report)
            rounding.warn_of_others()
            if not rounding.curved:
                return with_warnings(analysis, alone)
            budget = config.budget(analysis.dense_bytes) or 0
            first: BudgetSearch[CompressedModel] = BudgetSearch(budget, close=_CLOSE, aim=_AIM, bounds=rounding.bounds)
            rough = rounding.rough_lambda(budget - analysis.fixed_bytes)

            def encode(lmbda: float, corrected: bool) -> tuple[CompressedModel, int]:
                made = rounding.encode(lmbda, corrected=corrected)
                return made, made.file_bytes

            search = first
            lmbda = first.run(rough, lambda at: encode(at, False), max_rounds=_MAX_ROUNDS, also_above=True)
            search = BudgetSearch(budget, close=_CLOSE_ENOUGH, aim=_AIM, bounds=rounding.bounds, slope=first.slope)
            search.run(lmbda, lambda at: encode(at, True), max_rounds=_MAX_ROUNDS)
            if search.best is None:
                raise TargetError(f"no file of at most {budget:,} bytes was found; give a larger target")
            return with_warnings(analysis, self._better(search.best, alone, report))

    @cached_property
    def _corrections(self) -> Corrections:
        batch = joined(self.inputs, _CORRECTED_ON)
        return Corrections(self.reference, batch, input_statistics(self.reference, batch))

    def _better(self, calibrated: CompressedModel, alone: CompressedModel, report: Progress) -> CompressedModel:
        """The file whose outputs are closer on the held-out inputs."""
        batches = portions(self.held_out, _HELD_OUT_BATCH)
        error, error_alone = output_errors(self.reference, [calibrated, alone], batches, report)
        logger.debug("error of the outputs: %.4g calibrated, %.4g from the weights alone", error, error_alone)
        if error <= error_alone:
            return calibrated
        logger.warning(
            "calibration does not help: on %d inputs the error of the outputs is %.3g, from the weights alone it is %.3g, so "
            "the file is that of the weights alone",
            sum(map(size_of, self.held_out)),
            error,
            error_alone,
        )
        return alone


def calibrate(
    model: nn.Module,
    inputs: Any = None,
    *,
    shape: Sequence[int] | None = None,
    tokenizer: Callable[..., Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | bool = False,
) -> Calibration:
    """Measure what errors in each weight of `model` cost, on a few unlabelled inputs or on synthetic ones.

    Any network that is differentiable and runs on the inputs can be calibrated: weights are measured by their gradients.

    Args:
        model: The dense network. It is copied.
        inputs: 100 to 1,000 samples (samples, ...) of what the network takes: a tensor or array, floating point or token ids;
            a mapping of keyword arguments; a tuple of positional ones; or batches of these, with or without labels; or texts,
            with a tokenizer. None for synthetic inputs: texts that a causal language model draws itself, random tokens for
            other networks of tokens, and images for those that take images.
        shape: Instead of `inputs`: the shape of one input, floating point. Images are generated for (channels, height, width),
            with 1 or 3 channels; the network's batch norms supply the statistics of real ones. For other shapes nothing is
            measured: after a warning, files are those of the weights alone.
        tokenizer: Of the texts, as those of transformers.
        seed: Of the random directions and of synthetic inputs, >= 0.
        device: Where to run the network.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Returns:
        The calibration, whose `compress` makes files.

    Raises:
        CalibrationError: The inputs are unsuitable, the network does not run on them, or it is unknown what it takes.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"calibrate() takes a torch module, got {type(model).__name__}")
    if inputs is not None and shape is not None:
        raise CalibrationError("give either inputs, or shape to generate them, not both")
    dense = _copy_of(model).cpu().eval()
    reference = _reference(dense).to(device)
    with show_progress(progress) as report:
        if inputs is None:
            batches = synthesize(reference, shape, seed=seed, report=report)
            if not batches:
                return Calibration(dense, reference, [], [], {})
            logger.info("calibrating on synthetic inputs: %d of %s", sum(map(size_of, batches)), describe(batches[0]))
        else:
            batches = batches_of(model, inputs, tokenizer)
        used, held_out = split(batches)
        try:
            if inputs is None:
                recompute_statistics(reference, joined(used, 2 * _CORRECTED_ON))
            curvatures = measure_curvature(reference, groups_of(used, GRADIENTS), seed=seed, report=report)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, CalibrationError):
                raise
            reason = str(error).partition("\n")[0]
            raise CalibrationError(f"the network does not run on inputs of {describe(batches[0])}: {reason}") from error
    if not curvatures:
        raise CalibrationError("the outputs depend on no weight of the network; does it run without gradients?")
    return Calibration(dense, reference, used, held_out, curvatures)


def _copy_of(model: nn.Module) -> nn.Module:
    """A copy, also of a network whose pruned or normalized weights still belong to the graph of a forward pass."""
    attributes = (value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in attributes if not value.is_leaf})


@torch.no_grad()
def _reference(dense: nn.Module) -> nn.Module:
    """A copy in float32, with the directions of weight norms and the pruned weights as a file stores them."""
    reference = _copy_of(dense).float()
    state = as_state(dense)
    stored = ReparametrizedState(state, tensor_roles(state).weights)
    tensors = reference.state_dict()  # it shares the memory of parameters and buffers
    for name in stored.changed:
        tensors[name].copy_(torch.from_numpy(stored[name].astype("float32")))
    return reference
