"""What each choice of the method contributes, at equal file bytes and with everything else equal.

It compares:

* thresholds and steps from measured magnitudes with those from the Laplace density;
* a step per channel with a step per layer;
* the largest code chosen per channel (the paper's unified channel-wise quantization) with one per layer (layer-wise);
* pruning masks computed once, in rounds, and recomputed during two thirds of the epochs;
* distillation from the dense network, without labels, with training on labels.

    python benchmarks/ablations.py

The first three are without training, on ResNet-20 and CIFAR-10 (JPEG), with dead-zone rounding; the third has a two-stage
target of SPARSITY and as many bits as fill the file. The others are on LeNet-300-100 and MNIST: EPOCHS epochs after one dense
training, without distorted images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from handwriting import Handwriting, TestImages
from harness import NETWORKS, Row, data_file, print_rows, save_result
from images import Whole, cifar10
from networks.lenet import lenet_300_100
from networks.resnet_cifar import preprocess, resnet20
from safetensors.torch import load_file
from torch import Tensor, nn

import opq
import opq.torch
from opq.codec.code_length import contextless_bits
from opq.codec.code_stream import encode_codes
from opq.rate_distortion import deadzone, two_stage
from opq.rate_distortion.layers import Layer
from opq.training.trainer import Trainer

RATIOS = (8, 10, 12, 15)
SPARSITY = 0.4
TRAINED_RATIOS = (20, 35, 60)
DENSE_EPOCHS, EPOCHS = 8, 6
SEED = 0
ADAM = opq.TrainingConfig(
    epochs=EPOCHS, seed=SEED, learning_rate=1e-3, weight_decay=0.0, temperature=2.0, optimizer=torch.optim.Adam
)

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """A state dict as read from a file, and the bytes of the file."""

    state: State
    file_bytes: int


def main() -> int:
    """Print and save a row per variant; the exit status."""
    rows = [*_allocations(), *_trainings()]
    print_rows(rows)
    save_result("ablations", rows, seed=SEED, libraries=["torch"])
    return 0


def _allocations() -> list[Row]:
    """Rows without training, on ResNet-20."""
    model, test = resnet20(), Whole(*cifar10("test"), preprocess)
    state = load_file(data_file(NETWORKS["resnet20"]))
    dense_bytes = sum(tensor.nbytes for tensor in state.values())

    def top1(values: State) -> float | None:
        model.load_state_dict(dict(values))
        return opq.evaluate(model, test).top1

    def figures(outcome: Outcome) -> tuple[int, float | None]:
        return outcome.file_bytes, top1(outcome.state)

    dense_top1 = top1(state)
    rows: list[Row] = []
    for ratio in RATIOS:
        budget = dense_bytes // ratio
        plain = figures(_read(opq.compress(state, size=budget, rounding="deadzone")))
        variants = {
            ("density", "laplace"): plain,
            ("density", "measured"): figures(by_measured_magnitudes(state, budget)),
            ("steps", "one a layer"): plain,
            ("steps", "one a channel"): figures(by_channel_steps(state, budget)),
            ("codebook", "layer-wise"): figures(by_two_stage(state, budget, channel_wise=False)),
            ("codebook", "unified channel-wise"): figures(by_two_stage(state, budget, channel_wise=True)),
        }
        for (ablation, variant), (size, accuracy) in variants.items():
            rows.append(_row(ablation, variant, "resnet20", size, dense_bytes, dense_top1, accuracy, 0))
    return rows


def by_measured_magnitudes(state: State, budget: int) -> Outcome:
    """Each layer's threshold and step minimize squared error + lambda * bits over its own magnitudes, not over a density."""
    plan = opq.plan(state, size=budget, rounding="deadzone")
    steps = np.geomspace(0.05, 8.0, 64)
    borders = np.arange(0.5, 0.86, 0.05)
    tables = {}
    for name in plan.layers:
        measured = opq.functional.measure(state[name], name)
        points = [(border * step, step) for step in steps * measured.laplace_scale for border in borders]
        costs = [(_squared_error(measured, *point), _bits(measured, *point)) for point in points]
        tables[name] = points, np.array(costs)

    def made(lmbda: float) -> opq.CompressedModel:
        layers = {}
        for name, (points, costs) in tables.items():
            threshold, step = points[int((costs @ [1.0, lmbda]).argmin())]
            step = float(np.float32(step))
            offset = 1.0 - min(threshold / step, 1.0)
            layers[name] = replace(plan.layers[name], threshold=threshold, step=step, rounding_offset=offset)
        return opq.compress(state, replace(plan, layers=layers))

    return _read(made(_lowest_within(lambda lmbda: made(lmbda).file_bytes, budget)))


def by_channel_steps(state: State, budget: int) -> Outcome:
    """Each channel has its own point on the Laplace curve, at one lambda for all; its step counts four bytes."""
    plan = opq.plan(state, size=budget, rounding="deadzone")
    whole = opq.compress(state, plan)
    inspection = opq.inspect(whole.data)
    fixed = whole.file_bytes - sum(tensor.bytes for tensor in inspection.tensors if tensor.kind == "weight")

    def made(lmbda: float) -> Outcome:
        total, values = fixed, dict(state)
        for name in plan.layers:
            weight = state[name]
            scales = opq.functional.measure(weight, name).channel_scales
            unit_points = deadzone.thresholds_and_steps(lmbda / np.maximum(scales, 1e-30) ** 2)
            thresholds, steps = (unit * scales for unit in unit_points)
            parts = [
                opq.LayerPlan((1, *weight.shape[1:]), float(np.float32(step)), float(t), float(1.0 - t / step), 0.0, 0.0)
                for t, step in zip(thresholds, steps, strict=True)
            ]
            channels = list(zip(weight.split(1), parts, strict=True))
            codes = torch.cat([opq.functional.quantize(channel, part) for channel, part in channels])
            values[name] = torch.cat([opq.functional.fake_quantize(channel, part) for channel, part in channels])
            total += len(encode_codes(codes.numpy())) + 4 * (len(parts) - 1)
        return Outcome(values, total)

    return made(_lowest_within(lambda lmbda: made(lmbda).file_bytes, budget))


def by_two_stage(state: State, budget: int, *, channel_wise: bool) -> Outcome:
    """A two-stage target of SPARSITY, and as many bits as fill the budget."""

    def made(inverse_bits: float) -> opq.CompressedModel:
        return opq.compress(state, two_stage_plan(state, 1.0 / inverse_bits, channel_wise=channel_wise))

    return _read(made(_lowest_within(lambda inverse_bits: made(inverse_bits).file_bytes, budget, 1.0 / 16.0, 1.0 / 1.01)))


def two_stage_plan(state: State, bits: float, *, channel_wise: bool) -> opq.Plan:
    """A two-stage plan with one step per layer; each channel's largest code follows its own scale, or its layer's."""
    plan = opq.plan(state, sparsity=SPARSITY, bits=bits)
    if channel_wise:
        return plan
    alike = []
    for name in plan.layers:
        measured = opq.functional.measure(state[name], name)
        scales = np.full_like(measured.channel_scales, measured.laplace_scale)
        alike.append(Layer(name, replace(measured, channel_scales=scales)))
    layers = {
        layer.name: replace(plan.layers[layer.name], step=float(np.float32(point.step)), max_codes=point.max_codes)
        for layer, point in zip(alike, two_stage.allocate(alike, SPARSITY, bits), strict=True)
    }
    return replace(plan, layers=layers)


def _lowest_within(size: Callable[[float], int], budget: int, lowest: float = 1e-8, highest: float = 10.0) -> float:
    """The smallest argument, found by bisection, at which the decreasing function `size` is within the budget."""
    low, high = math.log(lowest), math.log(highest)
    for _ in range(18):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if size(math.exp(middle)) > budget else (low, middle)
    return math.exp(high)


def _squared_error(measured: opq.LayerStatistics, threshold: float, step: float) -> float:
    magnitudes = measured.magnitudes.astype(np.float64)
    levels = np.maximum(np.floor(magnitudes / step + 1.0 - threshold / step), 1.0) * (magnitudes > threshold)
    return float(((magnitudes - levels * step) ** 2).mean()) * measured.count


def _bits(measured: opq.LayerStatistics, threshold: float, step: float) -> float:
    return contextless_bits(measured, threshold, step, 1.0 - threshold / step)


def _read(compressed: opq.CompressedModel) -> Outcome:
    return Outcome(opq.torch.load(compressed.data), compressed.file_bytes)


def _trainings() -> list[Row]:
    """Rows of LeNet-300-100, all from one dense network."""
    loader, test = Handwriting(distorted=0.0), TestImages()
    torch.manual_seed(SEED)
    dense = lenet_300_100()
    Trainer(dense, loader, replace(ADAM, epochs=DENSE_EPOCHS)).run()
    dense_top1 = opq.evaluate(dense, test).top1
    dense_bytes = sum(tensor.nbytes for tensor in dense.state_dict().values())

    def finetuned(ratios: tuple[int, ...], update_epochs: int | None, teacher: nn.Module | None) -> tuple[int, float | None]:
        model = copy.deepcopy(dense)
        training = replace(ADAM, epochs=EPOCHS // len(ratios), mask_update_epochs=update_epochs)
        for ratio in ratios:
            config = opq.CompressionConfig(target=opq.Ratio(ratio))
            result = opq.finetune(model, loader, config, training, teacher=teacher)
        return result.compressed.file_bytes, opq.evaluate(model, test).top1

    last = TRAINED_RATIOS[-1:]
    variants: dict[tuple[str, str], tuple[tuple[int, ...], int | None, nn.Module | None]] = {
        ("masks", "one-shot"): (last, 0, dense),
        ("masks", f"in {len(TRAINED_RATIOS)} rounds"): (TRAINED_RATIOS, 0, dense),
        ("masks", "open for two thirds of the epochs"): (last, None, dense),
        ("teacher", "dense network, no labels"): (last, None, dense),
        ("teacher", "labels"): (last, None, None),
    }
    rows: list[Row] = []
    done: dict[tuple[tuple[int, ...], int | None, bool], tuple[int, float | None]] = {}
    for (ablation, variant), (ratios, update_epochs, teacher) in variants.items():
        key = ratios, update_epochs, teacher is not None
        if key not in done:
            done[key] = finetuned(ratios, update_epochs, teacher)
        size, top1 = done[key]
        rows.append(_row(ablation, variant, "lenet-300-100", size, dense_bytes, dense_top1, top1, EPOCHS))
    return rows


def _row(
    ablation: str,
    variant: str,
    network: str,
    size: int,
    dense_bytes: int,
    dense_top1: float | None,
    top1: float | None,
    epochs: int,
) -> Row:
    return {
        "ablation": ablation,
        "variant": variant,
        "network": network,
        "file_bytes": size,
        "file_ratio": dense_bytes / size,
        "dense_top1": dense_top1,
        "top1": top1,
        "epochs": epochs,
    }


if __name__ == "__main__":
    raise SystemExit(main())
