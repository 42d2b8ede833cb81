"""A network and a few inputs to a file: rounded layer by layer so that its outputs stay close, at a byte target."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from opq.errors import CalibrationError, MissingExtraError, TargetError

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("opq.calibrate", "torch") from None

from opq.calibration.batch_norm_pairs import find_batch_norms, find_layers, find_pairs
from opq.calibration.fisher import fisher_information
from opq.calibration.layer_reconstruction import ReconstructedLayer, reconstruct_layer
from opq.calibration.paired_forward import walk
from opq.calibration.synthetic_images import settle, synthesize_images
from opq.checkpoints import as_state
from opq.checkpoints.open import epsilons_of
from opq.checkpoints.state import TensorState
from opq.compression.analysis import analyze, auxiliary_of, choose_weights, dense_bytes
from opq.compression.compress import CompressedModel, compress
from opq.compression.planning import joint_plan, plan, read_layers
from opq.compression.size_model import SizeModel
from opq.config import CompressionOptions, is_shaped, read_target, select
from opq.quantization.quantizer import fake_quantize
from opq.rate_distortion.plan import LayerPlan, Plan
from opq.rate_distortion.rate_control import USUAL_SLOPE, next_lambda

BATCH = 50

SYNTHETIC_IMAGES = 128
"""Images drawn where none are given."""

_SCOUTS = 32
_CLOSE_ENOUGH, _AIM, _MOST_ROUNDS = 0.995, 0.998, 12
# Of the price at which weights rounded alone take as many bytes.
_USUAL_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a few inputs say about a network.

    model        the dense network, a copy in evaluation mode
    stand_in     the same, or with the batch-norm statistics that drawn inputs have
    inputs       (samples, ...) the inputs
    sensitivity  {weight: what a unit of squared error costs there}, for `opq.plan(..., sensitivity=...)`; of weights that the
                 inputs do not reach, the least that others cost
    importance   {layer: (channels,) what a unit of squared error of its output costs}
    norms        {layer: the batch-norm that alone takes its output}
    """

    model: nn.Module
    reference: nn.Module
    inputs: Tensor
    sensitivity: Mapping[str, float]
    output_sensitivity: Mapping[str, Tensor]
    norms: Mapping[str, str]

    def compress(self, **options: Unpack[CompressionOptions]) -> CompressedModel:
        """Compress the network to a byte target, each layer rounded against its outputs; options as in `opq.plan`.

        Weights that no calibrated layer holds are quantized as `opq.compress` does, at the same price of a bit. The network in
        the file computes what the dense one does, but its batch-norms are in canonical form (mean 0, variance 1), with the
        scales of the channels in them.
        Raises what `opq.compress` raises; a target of sparsity and bits is a TargetError.
        """
        state = as_state(self.model)
        budget = read_target(options).budget(dense_bytes(state, choose_weights(state, options)))
        if budget is None:
            raise TargetError("calibrated compression takes a ratio or a size")
        lmbda = _USUAL_SHARE * (plan(self.model, **self._informed(options)).lmbda or 1.0)
        lmbda, slope = self._search(budget, lmbda, USUAL_SLOPE, self.inputs[:_SCOUTS], 0.97, options)[1:]
        best = self._search(budget, lmbda, slope, self.inputs, _CLOSE_ENOUGH, options)[0]
        if best is None:
            raise TargetError(f"no file of at most {budget:,} bytes was found; ask for a larger one")
        return best

    def rounded(self, lmbda: float, inputs: Tensor, options: CompressionOptions) -> tuple[dict[str, Tensor], Plan]:
        """The state dict on its grids where a bit is worth `price`, and the plan that finds the same codes in it."""
        model, walked = copy.deepcopy(self.model), copy.deepcopy(self.reference)
        state = as_state(self.model)
        informed = self._informed(options)
        auxiliary = auxiliary_of(state, options)
        analysis = analyze(state, informed, auxiliary)
        target = read_target(options)
        size_model = SizeModel(analysis, read_layers(analysis, target, informed), is_shaped(options))
        rest = joint_plan(size_model, target, auxiliary, lmbda)
        free = {layer.name: layer.override for layer in size_model.layers if not layer.override.fixed}
        layers = {
            name: layer
            for name, layer in find_layers(model).items()
            if f"{name}.weight" in free and name in self.output_sensitivity
        }
        plans = dict(rest.layers)
        # What is not rounded against its outputs is rounded first, so that the layers behind can make up for it.
        with torch.no_grad():
            own = walked.state_dict()  # parameters and buffers alike, in the network's own memory
            for name in plans.keys() - {f"{name}.weight" for name in layers}:
                own[name].copy_(fake_quantize(own[name], plans[name]))

        def round_one(name: str, dense: Tensor, own: Tensor) -> None:
            norm = self.norms.get(name)
            # A sensitivity that the user gives is told by the weight; what was measured, by the output channel.
            asked = free[f"{name}.weight"].sensitivity / self.sensitivity[f"{name}.weight"]
            found = reconstruct_layer(layers[name], norm is not None, dense, own, asked * self.output_sensitivity[name], lmbda)
            for network in (model, walked):
                found.place(find_layers(network)[name], find_batch_norms(network)[norm] if norm else None)
            plans[f"{name}.weight"] = _on_grid(plans[f"{name}.weight"], found)

        walk(self.reference, walked, layers, inputs, round_one)
        return model.state_dict(), replace(rest, layers=plans)

    def _informed(self, options: CompressionOptions) -> CompressionOptions:
        weights = [name for name, tensor in self.model.state_dict().items() if tensor.ndim > 1 and tensor.is_floating_point()]
        measured = {name: self.sensitivity[name] for name in select(weights, options)}
        return CompressionOptions(**{**options, "sensitivity": {**measured, **options.get("sensitivity", {})}})

    def _search(
        self, budget: int, lmbda: float, slope: float, inputs: Tensor, close: float, options: CompressionOptions
    ) -> tuple[CompressedModel | None, float, float]:
        """The largest file within the budget, at least `close` of it, and the price and slope that the search ended with."""
        best: CompressedModel | None = None
        tried: list[tuple[float, float]] = []
        for _ in range(_MOST_ROUNDS):
            state, made = self.rounded(lmbda, inputs, options)
            found = compress(TensorState(state, epsilons=epsilons_of(self.model)), plan=made)
            tried.append((lmbda, found.file_bytes))
            if found.file_bytes <= budget and (best is None or found.file_bytes > best.file_bytes):
                best = replace(found, plan=replace(made, predicted_bytes=found.file_bytes))
            lmbda, slope = next_lambda(tried, budget, _AIM * budget, slope)
            if close * budget <= found.file_bytes <= budget or (
                close < _CLOSE_ENOUGH and budget < found.file_bytes <= budget / close
            ):
                break
        return best, lmbda, slope


def calibrate(
    model: nn.Module,
    inputs: Tensor | Iterable[Tensor | Sequence[Tensor]] | None = None,
    *,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Calibration:
    """Learn what errors in each layer of `model` cost, from a few inputs without labels, or from none at all.

    inputs  (samples, ...) or batches of them, as the network takes them, labels beside them or not; 100 to 1,000 serve
    shape   in place of `inputs`: (channels, height, width) of an image; the images are then drawn (`opq.calibration.synthetic_images`),
            and the network's batch-norms say what the statistics of real ones are
    It runs on the processor, wherever `model` is. Memory: the activations of all inputs at the network's widest place, twice.
    Raises CalibrationError when the network cannot run on them.
    """
    if (inputs is None) == (shape is None):
        raise CalibrationError("give either inputs, or the shape of one to draw them")
    if shape is not None:
        taken = synthesize_images(SYNTHETIC_IMAGES, shape, seed=seed)
    else:
        taken = (inputs if isinstance(inputs, Tensor) else _joined(inputs or ())).cpu()
    if not len(taken) or not taken.is_floating_point():
        raise CalibrationError("inputs must hold at least one sample of floating-point numbers")
    dense = copy.deepcopy(model).cpu().eval()
    reference = dense
    try:
        norms = find_pairs(dense, taken[:2])
        if shape is not None:
            reference = settle(copy.deepcopy(dense), taken)
        output_sensitivity, costs = fisher_information(reference, find_layers(reference), torch.split(taken, BATCH), seed=seed)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CalibrationError(f"the network does not run on inputs of shape {tuple(taken.shape)}: {error}") from error
    weights = [name for name, tensor in dense.state_dict().items() if tensor.ndim > 1 and tensor.is_floating_point()]
    least = min((cost for name in weights if (cost := costs.get(name, 0.0)) > 0.0), default=1.0)
    sensitivity = {name: costs.get(name, 0.0) or least for name in weights}
    return Calibration(dense, reference, taken, sensitivity, output_sensitivity, norms)


def _joined(batches: Iterable[Tensor | Sequence[Tensor]]) -> Tensor:
    """All inputs of some batches, which may hold labels behind them."""
    try:
        inputs = [batch if isinstance(batch, Tensor) else batch[0] for batch in batches]
        return torch.cat(inputs) if inputs else torch.zeros(0)
    except (RuntimeError, TypeError, LookupError) as error:
        raise CalibrationError(f"batches must hold inputs of one shape: {error}") from None


def _on_grid(before: LayerPlan, grid: ReconstructedLayer) -> LayerPlan:
    zeros = float((grid.codes == 0).double().mean())
    return replace(before, step=grid.step, threshold=0.5 * grid.step, rounding_offset=0.5, sparsity=zeros, shaped=False)
