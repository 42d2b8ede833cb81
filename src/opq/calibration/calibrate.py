"""Compression with calibration inputs: layers are quantized so that their outputs stay close, at a byte target."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Unpack

from opq.errors import CalibrationError, ConfigError, MissingExtraError, TargetError

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("opq.calibrate", "torch") from None

from opq.calibration.batch_norm_pairs import find_batch_norms, find_layers, find_pairs
from opq.calibration.fisher import fisher_information
from opq.calibration.held_out import output_errors
from opq.calibration.inputs import concatenate, split
from opq.calibration.layer_reconstruction import reconstruct_layer
from opq.calibration.paired_forward import run_paired
from opq.calibration.synthetic_images import recompute_statistics, synthesize_images
from opq.checkpoints import as_state
from opq.compression.analysis import CheckpointAnalysis, analyze, choose_roles
from opq.compression.compress import fit, with_warnings
from opq.compression.compressed_model import CompressedModel, encode_state
from opq.compression.planned_weight import PlannedWeight
from opq.compression.planning import guess_joint, joint_plan
from opq.compression.size_model import SizeModel
from opq.compression.tensor_roles import tensor_roles
from opq.config import CompressionConfig, CompressionOptions, LayerConfig, Lossless, TwoStage, as_config
from opq.progress import Progress, logger, show_progress
from opq.quantization.compressed_tensor import QuantizedWeight
from opq.quantization.quantizer import dequantize
from opq.rate_distortion.layers import Layer as RateLayer
from opq.rate_distortion.rate_control import BudgetSearch

BATCH = 50
"""Inputs per backward pass of the Fisher information."""

SYNTHETIC_IMAGES = 128
"""Images that are generated if no inputs are given."""

_NAMED = 3
"""Weights that are not calibrated and are named in a warning."""

_FIRST_INPUTS = 32
_CLOSE_ENOUGH, _AIM, _MAX_ROUNDS = 0.995, 0.998, 12
_FIRST_CLOSE_ENOUGH = 0.97
# Share of the lambda at which compression without inputs meets the same byte target.
_USUAL_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibration inputs show about a network; `opq.calibrate` makes it.

    Args:
        model: The dense network, a copy in evaluation mode.
        reference: The same network; with synthetic inputs a copy whose batch norms have their statistics.
        inputs: (samples, ...) calibration inputs, floating point, on the CPU.
        held_out: (samples, ...) further inputs, on which calibrated files are compared; `inputs` if there are few.
        sensitivity: {weight: cost of a unit of squared error, mean over its elements, > 0}. Weights that the inputs do not
            reach have the smallest cost of the others. `opq.plan` accepts it as `LayerConfig.sensitivity`.
        output_sensitivity: {layer: float64 (channels,) cost of a unit of squared error of each output channel}.
        batch_norms: {layer: the batch norm that is the only consumer of its output}.
    """

    model: nn.Module
    reference: nn.Module
    inputs: Tensor
    held_out: Tensor
    sensitivity: Mapping[str, float]
    output_sensitivity: Mapping[str, Tensor]
    batch_norms: Mapping[str, str]

    def __repr__(self) -> str:
        """Sizes: the network and its inputs are too much to print."""
        return f"<Calibration: {len(self.output_sensitivity)} layers measured on {len(self.inputs)} inputs>"

    def compress(
        self,
        config: CompressionConfig | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        progress: Progress | bool = False,
        **options: Unpack[CompressionOptions],
    ) -> CompressedModel:
        """Compress the network to a byte target.

        Weights outside of the calibrated layers are quantized as in `opq.compress`, with the same Lagrange multiplier. In the
        file the batch norms behind calibrated layers are folded (mean 0, variance 1) and hold the scales of the channels.

        The file is then compared with that of `opq.compress` under the same settings. If the outputs of the latter are closer
        on the held-out inputs, it is the result, after a warning. Another warning names weights that calibration does not
        cover.

        Args:
            config: The settings, with a Ratio or a Size as target; None to take them from `options`.
            metadata: {text: text} to store in the file.
            progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each layer.
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
        requested = config.layer_configs(choose_roles(state, config).weights)
        measured = {name: _with_sensitivity(fixed, self.sensitivity[name]) for name, fixed in requested.items()}
        given, config = config, replace(config, cost="squared", layers=measured)
        analysis = analyze(state, config, estimated=True)
        budget = config.budget(analysis.dense_bytes) or 0
        size_model = SizeModel.of(analysis, config)
        lmbda = _USUAL_SHARE * (guess_joint(size_model, config.target, budget)[1].lmbda or 1.0)
        with show_progress(progress) as report:
            reconstruction = _Reconstruction(self, analysis, size_model, config, report)
            reconstruction.warn_of_others()
            alone = fit(SizeModel.of(analyze(state, given), given), given, report)
            first: BudgetSearch[CompressedModel] = BudgetSearch(budget, close=_FIRST_CLOSE_ENOUGH, aim=_AIM)
            few = self.inputs[:_FIRST_INPUTS]
            lmbda = first.run(lmbda, lambda at: reconstruction.encode(at, few), max_rounds=_MAX_ROUNDS, also_above=True)
            search: BudgetSearch[CompressedModel] = BudgetSearch(budget, close=_CLOSE_ENOUGH, aim=_AIM, slope=first.slope)
            search.run(lmbda, lambda at: reconstruction.encode(at, self.inputs), max_rounds=_MAX_ROUNDS)
        if search.best is None:
            raise TargetError(f"no file of at most {budget:,} bytes was found; give a larger target")
        return with_warnings(analysis, self._better(search.best, alone))

    def _better(self, calibrated: CompressedModel, alone: CompressedModel) -> CompressedModel:
        """The file whose outputs are closer on the held-out inputs."""
        error, error_alone = output_errors(self.model, [calibrated, alone], self.held_out)
        logger.debug("relative error of the outputs: %.4g calibrated, %.4g from the weights alone", error, error_alone)
        if error <= error_alone:
            return calibrated
        logger.warning(
            "calibration does not help: on %d inputs the relative squared error of the outputs is %.3g, from the weights alone "
            "it is %.3g, so the file is that of the weights alone",
            len(self.held_out),
            error,
            error_alone,
        )
        return alone


@dataclass(frozen=True, eq=False)
class _Reconstruction:
    """A network whose layers are quantized against their outputs, as a function of lambda."""

    calibration: Calibration
    analysis: CheckpointAnalysis
    size_model: SizeModel
    config: CompressionConfig
    report: Progress

    @cached_property
    def free(self) -> Mapping[str, RateLayer]:
        """{weight: its statistics and settings}, without those whose step, bits or sparsity is fixed."""
        return {layer.name: layer for layer in self.size_model.layers if not layer.config.is_fixed}

    @cached_property
    def calibrated(self) -> list[str]:
        """Names of the layers that are quantized against their outputs."""
        layers = find_layers(self.calibration.model)
        return [name for name in layers if f"{name}.weight" in self.free and name in self.calibration.output_sensitivity]

    def warn_of_others(self) -> None:
        """Name the weights that are quantized from their values alone, although nothing fixes them."""
        calibrated = {f"{name}.weight" for name in self.calibrated}
        if others := [name for name in self.free if name not in calibrated]:
            names = ", ".join(map(repr, others[:_NAMED])) + (", ..." if len(others) > _NAMED else "")
            logger.warning(
                "%d of %d weights are quantized without the inputs, because calibration covers only Conv2d and Linear: %s",
                len(others),
                len(self.size_model.layers),
                names,
            )

    def encode(self, lmbda: float, inputs: Tensor) -> tuple[CompressedModel, int]:
        """The file at `lmbda`, calibrated on `inputs`, and its bytes."""
        model, weights = self._reconstruct(lmbda, inputs)
        state = as_state(model, self.analysis.state.metadata)
        made = encode_state(state, weights, self.analysis.auxiliary)
        logger.debug("calibrated at lambda %.4g: %d bytes", lmbda, made.file_bytes)
        return made, made.file_bytes

    def _reconstruct(self, lmbda: float, inputs: Tensor) -> tuple[nn.Module, dict[str, QuantizedWeight]]:
        """The network with the batch norms and biases of the file, and its weights."""
        calibration = self.calibration
        model, quantized = copy.deepcopy(calibration.model), copy.deepcopy(calibration.reference)
        plans = joint_plan(self.size_model, self.config.target, lmbda).layers
        found = find_layers(model)
        layers = {name: found[name] for name in self.calibrated}
        weights: dict[str, QuantizedWeight] = {
            name: PlannedWeight(self.analysis.state, name, plan) for name, plan in plans.items()
        }
        # The other weights are quantized first, so that the layers behind them can compensate.
        with torch.no_grad():
            tensors = quantized.state_dict()  # it shares the memory of parameters and buffers
            for name in plans.keys() - {f"{name}.weight" for name in layers}:
                codes = torch.from_numpy(weights[name].read_codes()(0, plans[name].count)).reshape(plans[name].shape)
                tensors[name].copy_(dequantize(codes, plans[name].steps, tensors[name].dtype))
        finished = 0

        def reconstruct(name: str, dense_input: Tensor, quantized_input: Tensor) -> None:
            nonlocal finished
            norm = calibration.batch_norms.get(name)
            # A user gives sensitivities per weight; the measured ones are per output channel.
            factor = self.free[f"{name}.weight"].sensitivity / calibration.sensitivity[f"{name}.weight"]
            costs = factor * calibration.output_sensitivity[name]
            rows = plans[f"{name}.weight"].rows
            reconstructed = reconstruct_layer(layers[name], norm is not None, dense_input, quantized_input, costs, lmbda, rows)
            for network in (model, quantized):
                reconstructed.apply(find_layers(network)[name], find_batch_norms(network)[norm] if norm else None)
            weights[f"{name}.weight"] = reconstructed.tensor()
            finished += 1
            self.report("calibrating", finished, len(layers))

        run_paired(calibration.reference, quantized, layers, inputs, reconstruct)
        return model, weights


def calibrate(
    model: nn.Module,
    inputs: Tensor | Iterable[Tensor | Sequence[Tensor]] | None = None,
    *,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Calibration:
    """Measure what errors in each layer of `model` cost, on a few unlabelled inputs or on synthetic images.

    Calibration runs on the CPU, on whatever device `model` is. It needs memory for the activations of all inputs at the widest
    layer, twice.

    Args:
        model: The dense network. It is copied.
        inputs: (samples, ...) floating point, or batches of such inputs, with or without labels; 100 to 1,000 samples.
        shape: Instead of `inputs`: (channels, height, width). Images of this shape are generated
            (`opq.calibration.synthetic_images`). The network's batch norms supply the statistics of real ones.
        seed: Of the Fisher information's random vectors and of the synthetic images, >= 0.

    Returns:
        The calibration, whose `compress` makes files.

    Raises:
        CalibrationError: The inputs are unsuitable, or the network does not run on them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"calibrate() takes a torch module, got {type(model).__name__}")
    if (inputs is None) == (shape is None):
        raise CalibrationError("give either inputs, or shape to generate them")
    if shape is not None:
        samples = synthesize_images(SYNTHETIC_IMAGES, shape, seed=seed)
    else:
        samples = (inputs if isinstance(inputs, Tensor) else concatenate(() if inputs is None else inputs)).cpu()
    if not len(samples) or not samples.is_floating_point():
        got = f"{samples.dtype} of shape {tuple(samples.shape)}"
        raise CalibrationError(f"inputs must hold at least one sample of floating-point numbers, got {got}")
    if not bool(samples.isfinite().all()):
        raise CalibrationError("inputs must be finite, got NaN or infinite values; check the preprocessing")
    samples, held_out = split(samples)
    dense = copy.deepcopy(model).cpu().eval()
    reference = dense
    try:
        batch_norms = find_pairs(dense, samples[:2])
        if shape is not None:
            reference = recompute_statistics(copy.deepcopy(dense), samples)
        sensitivity, costs = fisher_information(reference, find_layers(reference), torch.split(samples, BATCH), seed=seed)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CalibrationError(f"the network does not run on inputs of shape {tuple(samples.shape)}: {error}") from error
    weights = tensor_roles(as_state(dense)).weights
    smallest = min((cost for name in weights if (cost := costs.get(name, 0.0)) > 0.0), default=1.0)
    by_weight = {name: costs.get(name, 0.0) or smallest for name in weights}
    return Calibration(dense, reference, samples, held_out, by_weight, sensitivity, batch_norms)


def _with_sensitivity(requested: LayerConfig, sensitivity: float) -> LayerConfig:
    """The requested settings of a weight, with the measured sensitivity if they give none, and without automatic scales."""
    found = LayerConfig(sensitivity=sensitivity).updated(requested)
    return replace(found, scales="none") if found.scales == "auto" else found
