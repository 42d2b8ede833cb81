"""The methods that `allocation.py` compares. Each returns the bytes of a file and the tensors read back from it.

Methods have the names that the recorded results have; benchmarks/readme_tables.py translates them for tables.
"""

from __future__ import annotations

import atexit
import gzip
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from allocation_networks import Arrays, network_of
from numpy.typing import NDArray
from peering import Peer

import opq
import opq.numpy

Run = Callable[[str, Any], tuple[int, Arrays]]
"""(network, setting) -> bytes of the file, and its tensors."""

RATIOS = {
    "resnet20": (10.3, 11.8, 14.5, 17.2, 24.0),
    "resnet56": (12.3, 16.0, 20.9, 26.4),
    "mobilenet": (5.1, 6.1, 7.5, 8.0, 9.8),
}
STEPS = {
    "resnet20": (-20, -19, -18, -17, -16, -14, -12),
    "resnet56": (-20, -18, -16, -14, -12),
    "mobilenet": (-32, -28, -24, -20),
}
"""NNCodec's quantization parameters: a step is about 2^(qp / 4)."""
TWO_STAGE = ((0.3, 4.0), (0.5, 4.0), (0.6, 3.0))
PRUNED = (0.3, 0.5, 0.7)


def _joint(**options: Any) -> Run:
    def run(name: str, ratio: float) -> tuple[int, Arrays]:
        return _read(opq.compress(network_of(name).tensors, ratio=ratio, **options))

    return run


def _fisher(name: str, ratio: float) -> tuple[int, Arrays]:
    sensitivity = calibration_of(name, "unlabelled").sensitivity
    layers = {weight: opq.LayerConfig(sensitivity=value) for weight, value in sensitivity.items()}
    return _read(opq.compress(network_of(name).tensors, ratio=ratio, layers=layers, cost="squared"))


def _two_stage(name: str, setting: tuple[float, float]) -> tuple[int, Arrays]:
    return _read(opq.compress(network_of(name).tensors, sparsity=setting[0], bits=setting[1]))


def _calibrated(data: str) -> Run:
    def run(name: str, ratio: float) -> tuple[int, Arrays]:
        dense = sum(tensor.nbytes for tensor in network_of(name).tensors.values())
        return _read(calibration_of(name, data).compress(size=int(dense / ratio)))

    return run


@cache
def calibration_of(name: str, data: str) -> opq.Calibration:
    """The network calibrated with unlabelled images, or with synthetic ones if `data` is "none"."""
    network = network_of(name)
    if data == "none":
        return opq.calibrate(network.model, shape=tuple(network.inputs.shape[1:]))
    return opq.calibrate(network.model, network.unlabelled)


def _nncodec(dependent: bool) -> Run:
    def run(name: str, step: int) -> tuple[int, Arrays]:
        stream, back, _ = nncodec(name, step, dependent)
        return len(stream), back

    return run


def nncodec(name: str, step: int, dependent: bool, sparsity: float = 0.0) -> tuple[bytes, Arrays, bool]:
    """NNCodec with dependent or uniform quantization, after its own sparsification if `sparsity` is not 0.

    Returns the stream, the tensors read back, and whether the sparsification had an effect.
    """
    peer, folder = _nncodec_of(name)
    sparsified = peer.ask([step, dependent, sparsity])
    with np.load(folder / "decoded.npz") as arrays:
        return (folder / "network.nnc").read_bytes(), {key: arrays[key] for key in arrays.files}, sparsified


@cache
def _nncodec_of(name: str) -> tuple[Peer, Path]:
    """The process of NNCodec with this network, and the folder that it writes to."""
    folder = Path(tempfile.mkdtemp(prefix="opq-peers-"))
    atexit.register(shutil.rmtree, folder)
    return Peer("nncodec_network.py", str(network_of(name).path), str(folder)), folder


def pruned_integers(name: str, sparsity: float, bits: int) -> tuple[Arrays, Arrays]:
    """Global magnitude pruning, then symmetric integers with a scale per channel: the stored tensors, and the weights."""
    dense = network_of(name).tensors
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
        stored[key] = (flat[::2] & 15) | (flat[1::2] << 4) if bits == 4 else integers
        stored[f"{key}.scale"] = scales
        back[key] = (integers * scales).reshape(value.shape).astype(np.float32)
    return stored, back


def codebooks(name: str, sparsity: float, values: int) -> tuple[Arrays, Arrays]:
    """Deep Compression (S. Han et al., 2016): pruning, then k-means with `values` values per layer.

    Returns the stored tensors, and the weights that they represent.
    """
    dense = network_of(name).tensors
    threshold = _threshold(dense, sparsity)
    stored: Arrays = {}
    back: Arrays = {}
    for key, value in dense.items():
        if value.ndim < 2:
            stored[key] = back[key] = value
            continue
        flat = np.where(np.abs(value) > threshold, value, 0).ravel()
        kept = flat[flat != 0].astype(np.float64)
        centres = np.linspace(kept.min(), kept.max(), values) if kept.size else np.zeros(values)
        for _ in range(30):
            near = _nearest(centres, kept)
            counts = np.bincount(near, minlength=values)
            centres = np.where(counts, np.bincount(near, kept, values) / np.maximum(counts, 1), centres)
        table = np.append(0.0, centres).astype(np.float32)
        codes = np.where(flat == 0, 0, 1 + _nearest(centres, flat)).astype(np.uint8)
        stored[key], stored[f"{key}.values"] = codes, table
        back[key] = table[codes].reshape(value.shape)
    return stored, back


def _nearest(centres: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.intp]:
    """Index of the ascending centres that is nearest to each value; of two equally near, the lower one."""
    return np.searchsorted(0.5 * (centres[1:] + centres[:-1]), values)


def _gzipped(make: Callable[..., tuple[Arrays, Arrays]], *options: int) -> Run:
    """The tensors that `make` stores, as gzip of a safetensors file."""

    def run(name: str, sparsity: float) -> tuple[int, Arrays]:
        stored, back = make(name, sparsity, *options)
        return len(gzip.compress(safetensors.numpy.save(stored), 9)), back

    return run


def _threshold(tensors: Arrays, sparsity: float) -> float:
    return float(np.quantile(np.concatenate([np.abs(value).ravel() for value in tensors.values() if value.ndim > 1]), sparsity))


def _read(compressed: opq.CompressedModel) -> tuple[int, Arrays]:
    return compressed.file_bytes, opq.numpy.load(compressed.data)


_ratios: Callable[[str], Any] = RATIOS.__getitem__
_steps: Callable[[str], Any] = STEPS.__getitem__
METHODS: dict[str, tuple[str, Callable[[str], Any], Run]] = {
    "nncodec-uniform": ("none", _steps, _nncodec(dependent=False)),
    "nncodec-dependent": ("none", _steps, _nncodec(dependent=True)),
    "opq-paper": ("none", lambda name: TWO_STAGE, _two_stage),
    "opq-joint": ("none", _ratios, _joint()),
    "opq-joint-squared": ("none", _ratios, _joint(cost="squared")),
    "opq-joint-plain": ("none", _ratios, _joint(rounding="deadzone")),
    "opq-joint-fisher": ("unlabelled", _ratios, _fisher),
    "opq-drawn": ("none", _ratios, _calibrated("none")),
    "opq-calibrated": ("unlabelled", _ratios, _calibrated("unlabelled")),
    "prune-int8-gzip": ("none", lambda name: PRUNED, _gzipped(pruned_integers, 8)),
    "prune-int4-gzip": ("none", lambda name: PRUNED, _gzipped(pruned_integers, 4)),
    "prune-kmeans-gzip": ("none", lambda name: PRUNED, _gzipped(codebooks, 15)),
}
"""{method: (data that it needs, its settings for a network, the function that runs it)}"""
