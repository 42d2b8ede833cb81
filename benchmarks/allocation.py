"""Accuracy against the bytes of the whole file, before any finetuning, for every way of compressing at hand.

Claim: at equal file bytes, networks compressed by opq lose fewer points of top-1 than by NNCodec 2.1.3 and than by what torch
users do, with data and without.

    OPQ_PEERS_PYTHON=... python benchmarks/allocation.py [--network NAME] [--method NAME] [--setting X]

A row that benchmarks/results/allocation.json has already is not measured again: the run may be stopped, and go on. Without
--network and --method all are run. The picture is benchmarks/results/allocation.png.

Networks: CIFAR-10 (JPEG) test images for the ResNets, 1,300 ImageNet validation images for MobileNet (benchmarks/README.md);
every accuracy is read from the file written, and stands beside the dense network's on the same images. Files of torch users'
methods are gzip of a safetensors file with int8 (or packed int4) weights, scales, and the rest in float32.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagenet
import images
import numpy as np
import safetensors.numpy
import torch
from harness import RESULTS, Row, checkpoints, load, print_rows, save_result
from networks import mobilenet_v1, resnet_cifar
from numpy.typing import NDArray
from torch import Tensor, nn

import opq

Arrays = dict[str, NDArray[Any]]
Run = Callable[[str, Any], tuple[int, Arrays]]
RATIOS = {
    "resnet20": (10.3, 11.8, 14.5, 17.2, 24.0),
    "resnet56": (12.3, 16.0, 20.9, 26.4),
    "mobilenet": (5.1, 6.1, 7.5, 8.0, 9.8),
}
STEPS = {"resnet20": range(-20, -11, 2), "resnet56": range(-20, -11, 2), "mobilenet": range(-32, -19, 4)}
"""NNCodec's quantization parameters: a step is about 2^(qp / 4)."""
CALIBRATION = {"resnet20": 1000, "resnet56": 256, "mobilenet": 128}
PAPER = ((0.3, 4.0), (0.5, 4.0), (0.6, 3.0))
PRUNED = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Network:
    """A dense network, its test images as it takes them, labels, its logits on them, and images to calibrate with."""

    path: Path
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    logits: Tensor
    unlabelled: Tensor

    @property
    def tensors(self) -> Arrays:
        """The checkpoint's tensors."""
        return load(self.path)


def main() -> int:
    """Measure what is not measured yet; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=list(RATIOS))
    parser.add_argument("--method", choices=list(METHODS))
    parser.add_argument("--setting", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows = _rows_so_far()
    for name in [arguments.network] if arguments.network else list(RATIOS):
        for method in [arguments.method] if arguments.method else list(METHODS):
            data, settings, run = METHODS[method]
            for setting in settings(name):
                if arguments.setting is not None and setting != arguments.setting:
                    continue
                if any((row["network"], row["method"], row["setting"]) == (name, method, _label(setting)) for row in rows):
                    continue
                row = _row(name, method, data, setting, run)
                rows = [*_rows_so_far(), row]  # another run may have added some meanwhile
                rows.sort(key=lambda row: (list(RATIOS).index(row["network"]), row["method"], -row["file_bytes"]))
                print_rows([row])
                save_result("allocation", rows, seed=0, libraries=("torch", "nncodec", "scikit-learn"))
    print_rows(rows)
    if rows:
        _draw(rows)
    return 0


def _row(name: str, method: str, data: str, setting: Any, run: Run) -> Row:
    network = _network(name)
    start = time.perf_counter()
    file_bytes, tensors = run(name, setting)
    seconds = time.perf_counter() - start
    model = _fresh(name)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, strict=False)
    logits = _logits(model.eval(), network.inputs)
    dense_bytes = sum(tensor.nbytes for tensor in network.tensors.values())
    return {
        "network": name,
        "method": method,
        "data": data,
        "setting": _label(setting),
        "file_bytes": file_bytes,
        "file_ratio": dense_bytes / file_bytes,
        "dense_top1": _share(network.logits.argmax(1) == network.labels),
        "top1": _share(logits.argmax(1) == network.labels),
        "agreement": _share(logits.argmax(1) == network.logits.argmax(1)),
        "seconds": seconds,
        "images": len(network.labels),
    }


def _joint(sensitivity: Callable[[str], Mapping[str, float]]) -> Run:
    def run(name: str, ratio: float) -> tuple[int, Arrays]:
        return _read(opq.compress(_network(name).tensors, ratio=ratio, sensitivity=sensitivity(name)))

    return run


def _paper(name: str, setting: tuple[float, float]) -> tuple[int, Arrays]:
    return _read(opq.compress(_network(name).tensors, sparsity=setting[0], bits=setting[1]))


def _equal(name: str) -> Mapping[str, float]:
    return {}


def _relative(name: str) -> Mapping[str, float]:
    """Every layer's error relative to its own energy."""
    weights = {key: value for key, value in _network(name).tensors.items() if value.ndim > 1}
    return {key: 1.0 / float(np.square(value).mean()) for key, value in weights.items()}


def _fisher(name: str) -> Mapping[str, float]:
    return _calibration(name, "unlabelled").sensitivity


def _calibrated(data: str) -> Run:
    def run(name: str, ratio: float) -> tuple[int, Arrays]:
        dense = sum(tensor.nbytes for tensor in _network(name).tensors.values())
        return _read(_calibration(name, data).compress(size=int(dense / ratio)))

    return run


@cache
def _calibration(name: str, data: str) -> opq.Calibration:
    network = _network(name)
    if data == "none":
        return opq.calibrate(network.model, shape=tuple(network.inputs.shape[1:]))
    return opq.calibrate(network.model, network.unlabelled)


def _nncodec(dependent: int) -> Run:
    def run(name: str, step: int) -> tuple[int, Arrays]:
        python = os.environ.get("OPQ_PEERS_PYTHON")
        if not python:
            print("allocation.py: OPQ_PEERS_PYTHON must name a Python with nncodec 2.1.3", file=sys.stderr)
            raise SystemExit(1)
        script = Path(__file__).parent / "peers" / "nncodec_network.py"
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "decoded.npz"
            command = [python, str(script), str(_network(name).path), str(step), str(dependent), str(result)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            with np.load(result) as arrays:
                return int(printed.split()[0]), {key: arrays[key] for key in arrays.files}

    return run


def _pruned_integers(bits: int) -> Run:
    """Global magnitude pruning, then symmetric integers with a scale a channel, as torch users do it; gzip of safetensors."""

    def run(name: str, sparsity: float) -> tuple[int, Arrays]:
        dense = _network(name).tensors
        threshold = _threshold(dense, sparsity)
        stored: Arrays = {}
        back: Arrays = {}
        largest = 2 ** (bits - 1) - 1
        for key, value in dense.items():
            if value.ndim < 2:
                stored[key] = back[key] = value
                continue
            rows = np.where(np.abs(value) > threshold, value, 0).reshape(len(value), -1)
            scales = np.maximum(np.abs(rows).max(1, keepdims=True) / largest, 1e-12).astype(np.float32)
            integers = np.clip(np.rint(rows / scales), -largest, largest).astype(np.int8)
            flat = np.append(integers.ravel(), np.zeros(integers.size % 2, np.int8)).view(np.uint8)
            stored[key] = integers if bits == 8 else (flat[::2] & 15) | (flat[1::2] << 4)
            stored[f"{key}.scale"] = scales
            back[key] = (integers * scales).reshape(value.shape).astype(np.float32)
        return len(gzip.compress(safetensors.numpy.save(stored), 9)), back

    return run


def _codebooks(name: str, sparsity: float) -> tuple[int, Arrays]:
    """Deep Compression (S. Han et al., 2016): pruning, then 15 shared values a layer by k-means; gzip of safetensors."""
    dense = _network(name).tensors
    threshold = _threshold(dense, sparsity)
    stored: Arrays = {}
    back: Arrays = {}
    for key, value in dense.items():
        if value.ndim < 2:
            stored[key] = back[key] = value
            continue
        flat = np.where(np.abs(value) > threshold, value, 0).ravel()
        kept = flat[flat != 0].astype(np.float64)
        centres = np.linspace(kept.min(), kept.max(), 15) if kept.size else np.zeros(15)
        for _ in range(30):
            near = np.abs(kept[:, None] - centres).argmin(1)
            counts = np.bincount(near, minlength=15)
            centres = np.where(counts, np.bincount(near, kept, 15) / np.maximum(counts, 1), centres)
        table = np.append(0.0, centres).astype(np.float32)
        codes = np.where(flat == 0, 0, 1 + np.abs(flat[:, None] - centres).argmin(1)).astype(np.uint8)
        stored[key], stored[f"{key}.values"] = codes, table
        back[key] = table[codes].reshape(value.shape)
    return len(gzip.compress(safetensors.numpy.save(stored), 9)), back


def _threshold(tensors: Arrays, sparsity: float) -> float:
    return float(np.quantile(np.concatenate([np.abs(value).ravel() for value in tensors.values() if value.ndim > 1]), sparsity))


_ratios: Callable[[str], Any] = RATIOS.__getitem__
_steps: Callable[[str], Any] = STEPS.__getitem__
METHODS: dict[str, tuple[str, Callable[[str], Any], Run]] = {
    "nncodec-uniform": ("none", _steps, _nncodec(0)),
    "nncodec-dependent": ("none", _steps, _nncodec(1)),
    "opq-paper": ("none", lambda name: PAPER, _paper),
    "opq-joint": ("none", _ratios, _joint(_equal)),
    "opq-joint-relative": ("none", _ratios, _joint(_relative)),
    "opq-joint-fisher": ("unlabelled", _ratios, _joint(_fisher)),
    "opq-drawn": ("none", _ratios, _calibrated("none")),
    "opq-calibrated": ("unlabelled", _ratios, _calibrated("unlabelled")),
    "prune-int8-gzip": ("none", lambda name: PRUNED, _pruned_integers(8)),
    "prune-int4-gzip": ("none", lambda name: PRUNED, _pruned_integers(4)),
    "prune-kmeans-gzip": ("none", lambda name: PRUNED, _codebooks),
}
"""{method: (data it needs, settings for a network, how to run it)}"""


def _read(compressed: opq.Compressed) -> tuple[int, Arrays]:
    import opq.numpy

    return compressed.file_bytes, opq.numpy.load(compressed.data)


@cache
def _network(name: str) -> Network:
    path = checkpoints()[name]
    model = _fresh(name)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in load(path).items()}, strict=False)
    if name == "mobilenet":
        pixels, labels = imagenet.evaluation()
        preprocess, unlabelled = mobilenet_v1.preprocess, imagenet.calibration()
    else:
        pixels, labels = images.cifar10("test")
        train = images.cifar10("train")[0]
        unlabelled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:1000]]
        preprocess = resnet_cifar.preprocess
    model = model.eval()
    inputs = preprocess(pixels)
    return Network(path, model, inputs, labels, _logits(model, inputs), preprocess(unlabelled[: CALIBRATION[name]]))


def _fresh(name: str) -> nn.Module:
    makers: Mapping[str, Callable[[], nn.Module]] = {
        "resnet20": resnet_cifar.resnet20,
        "resnet56": resnet_cifar.resnet56,
        "mobilenet": mobilenet_v1.MobileNetV1,
    }
    return makers[name]().to(memory_format=torch.channels_last)


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.cat([model(batch.to(memory_format=torch.channels_last)).float() for batch in inputs.split(100)])


def _share(hits: Tensor) -> float:
    return 100.0 * float(hits.float().mean())


def _label(setting: Any) -> str:
    return "/".join(f"{value:g}" for value in setting) if isinstance(setting, tuple) else f"{setting:g}"


def _rows_so_far() -> list[Row]:
    path = RESULTS / "allocation.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def _draw(rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    networks = [name for name in RATIOS if any(row["network"] == name for row in rows)]
    figure, panels = pyplot.subplots(1, len(networks), figsize=(6 * len(networks), 5), squeeze=False)
    for panel, name in zip(panels[0], networks, strict=True):
        for method in METHODS:
            points = sorted(
                (row["file_bytes"], row["top1"]) for row in rows if (row["network"], row["method"]) == (name, method)
            )
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
        panel.axhline(next(row["dense_top1"] for row in rows if row["network"] == name), color="grey", linewidth=0.8)
        panel.set(title=name, xlabel="file bytes", ylabel="top-1, %", xscale="log")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "allocation.png", dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
