"""The methods that `peers.py` compares, each with its parameters.

Methods have the names that the recorded results have; benchmarks/readme_tables.py translates them for tables.
"""

from __future__ import annotations

import atexit
import bz2
import copy
import gzip
import json
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy
import torch
from allocation_methods import calibration_of, codebooks, nncodec, pruned_integers
from allocation_networks import LABELLED, Arrays, network_of
from harness import peers_python
from peering import Peer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import opq
import opq.numpy


@dataclass(frozen=True)
class Saved:
    """What a tool wrote, all its files together, and the tensors read back, or the logits if it is not a state dict."""

    data: bytes
    tensors: Arrays = field(default_factory=dict)
    logits: Tensor | None = None


Search = tuple[list[Any], int]
"""Settings from the finest to the coarsest, each a tuple, and the index of the one to try first."""


@dataclass(frozen=True)
class Method:
    """One method of a tool.

    Args:
        package: The tool's package; None if the method is implemented here.
        data: Data that it requires in addition to the weights.
        saved_as: The files that its user saves.
        searches: network -> the settings to search, once for each value of a second parameter.
        run: (network, setting) -> what was saved; None if the setting makes it equal to another method.
    """

    package: str | None
    data: str
    saved_as: str
    searches: Callable[[str], Sequence[Search]]
    run: Callable[[str, Any], Saved | None]

    def tool(self) -> str:
        """The package and its version."""
        if self.package is None:
            return "NumPy"
        return f"opq {opq.__version__}" if self.package == "opq" else f"{self.package} {_peer_versions()[self.package]}"


def packed(data: bytes) -> int:
    """Bytes of `data` as it is or after gzip, bzip2 or xz, whichever is smallest."""
    return min(map(len, (data, gzip.compress(data, 9), bz2.compress(data, 9), lzma.compress(data, preset=9))))


@cache
def _peer_versions() -> dict[str, str]:
    script = "import json; from importlib.metadata import version; print(json.dumps({p: version(p) for p in %r}))"
    command = [peers_python(), "-c", script % (["nncodec", "nncf", "torchao"],)]
    versions: dict[str, str] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return versions


def _one_parameter(settings: Sequence[Any], **first: float) -> Callable[[str], Sequence[Search]]:
    """One search, which starts at the setting that is nearest to a network's number."""
    tuples = [(value,) for value in settings]
    return lambda name: [(tuples, int(np.abs(np.asarray(settings) - first[name]).argmin()))]


def _two_parameters(settings: Sequence[Any], others: Sequence[Any], first: int) -> Callable[[str], Sequence[Search]]:
    """A search of `settings`, which starts at number `first`, for each of `others`."""
    return lambda name: [([(setting, other) for setting in settings], first) for other in others]


def _labelled(searches: Callable[[str], Sequence[Search]]) -> Callable[[str], Sequence[Search]]:
    """The searches, but none for a network whose images have no labels."""
    return lambda name: searches(name) if name in LABELLED else []


RATIOS = [round(4.0 * 1.04**step, 2) for step in range(51)]
STEPS = list(range(-44, -7))
"""NNCodec's quantization parameters: a step is about 2^(qp / 4)."""

SPARSITIES = [round(0.05 * step, 2) for step in range(17)]
BITS = list(range(8, 0, -1))
EPOCHS, BATCH = 15, 64
"""Settings of the methods that train with the labels of the calibration images."""

TRAINING = opq.TrainingConfig(epochs=EPOCHS, label_weight=0.5)


def _weights_alone(name: str, setting: tuple[float]) -> Saved:
    return _read_back(opq.compress(network_of(name).tensors, ratio=setting[0]))


def _calibrated(data: str) -> Callable[[str, Any], Saved]:
    def run(name: str, setting: tuple[float]) -> Saved:
        dense_bytes = sum(tensor.nbytes for tensor in network_of(name).tensors.values())
        return _read_back(calibration_of(name, data).compress(size=int(dense_bytes / setting[0])))

    return run


def _finetuned(name: str, setting: tuple[float]) -> Saved:
    network = network_of(name)
    images = TensorDataset(network.unlabelled, cast(Tensor, network.known))
    finetuned = opq.finetune(
        copy.deepcopy(network.model),
        DataLoader(images, batch_size=BATCH, shuffle=True),
        opq.CompressionConfig(target=opq.Ratio(setting[0])),
        TRAINING,
        teacher="dense",
        calibration=calibration_of(name, "unlabelled"),
        progress=False,
    )
    return _read_back(finetuned.compressed)


def _read_back(compressed: opq.CompressedModel) -> Saved:
    return Saved(compressed.data, opq.numpy.load(compressed.data))


def _nncodec(dependent: bool) -> Callable[[str, Any], Saved]:
    return lambda name, setting: Saved(*nncodec(name, setting[0], dependent)[:2])


def _sparsified(name: str, setting: tuple[int, float]) -> Saved | None:
    stream, back, sparsified = nncodec(name, setting[0], False, setting[1])
    return Saved(stream, back) if sparsified else None


def _stored(make: Callable[[str, float, int], tuple[Arrays, Arrays]]) -> Callable[[str, Any], Saved]:
    def run(name: str, setting: tuple[float, int]) -> Saved:
        stored, back = make(name, *setting)
        return Saved(safetensors.numpy.save(stored), back)

    return run


def _module(script: str) -> Callable[[str, Any], Saved]:
    def run(name: str, setting: Any) -> Saved:
        answer = _peer(script, name).ask(setting)
        data = b"".join(Path(file).read_bytes() for file in answer["files"])
        return Saved(data, logits=torch.from_numpy(np.load(answer["logits"])))

    return run


@cache
def _peer(script: str, name: str) -> Peer:
    network, folder = network_of(name), Path(tempfile.mkdtemp(prefix="opq-peers-"))
    atexit.register(shutil.rmtree, folder)
    np.save(folder / "inputs.npy", network.inputs.contiguous().numpy())
    np.save(folder / "calibration.npy", network.unlabelled.contiguous().numpy())
    if network.known is not None:
        np.save(folder / "labels.npy", network.known.numpy())
    return Peer(script, name, str(network.path), str(folder))


def _sparsified_searches(name: str) -> Sequence[Search]:
    """Shares of zeros from that of the package's lowest threshold on; even that is too much for MobileNet."""
    steps = STEPS[::4]
    shares = (0.3, 0.4) if name == "resnet20" else (0.3,)
    return [([(step, share) for step in steps], steps.index(-20)) for share in shares]


def _tuned(name: str) -> Sequence[Search]:
    """Two parameters, and the same epochs for all."""
    return [([(step, sparsity, EPOCHS) for step in STEPS], STEPS.index(-14)) for sparsity in (0.0, 0.35)]


def _dense(name: str, setting: tuple[str]) -> Saved:
    return Saved(network_of(name).path.read_bytes(), network_of(name).tensors)


METHODS: dict[str, Method] = {
    "dense": Method(None, "none", "safetensors, float32", lambda name: [([("float32",)], 0)], _dense),
    "opq": Method("opq", "none", ".opq", _one_parameter(RATIOS, resnet20=16.0, mobilenet=5.0), _weights_alone),
    "opq, drawn inputs": Method(
        "opq", "none", ".opq", _one_parameter(RATIOS, resnet20=14.5, mobilenet=7.0), _calibrated("none")
    ),
    "opq, calibrated": Method(
        "opq", "unlabelled", ".opq", _one_parameter(RATIOS, resnet20=18.0, mobilenet=7.8), _calibrated("unlabelled")
    ),
    "opq, finetuned": Method(
        "opq", "labelled", ".opq", _labelled(_one_parameter(RATIOS, resnet20=25.0, mobilenet=8.0)), _finetuned
    ),
    "nncodec, uniform": Method(
        "nncodec", "none", ".nnc", _one_parameter(STEPS, resnet20=-18, mobilenet=-34), _nncodec(dependent=False)
    ),
    "nncodec, dependent": Method(
        "nncodec", "none", ".nnc", _one_parameter(STEPS, resnet20=-22, mobilenet=-36), _nncodec(dependent=True)
    ),
    "nncodec, sparsified": Method("nncodec", "none", ".nnc", _sparsified_searches, _sparsified),
    "nncodec, tuned": Method("nncodec", "labelled", ".nnc", _labelled(_tuned), _module("nncodec_tuned.py")),
    "NNCF, pruned, 8 bits": Method(
        "nncf",
        "unlabelled",
        "OpenVINO's .xml and .bin",
        _two_parameters(SPARSITIES, (False, True), 3),
        _module("nncf_network.py"),
    ),
    "torchao, integers": Method(
        "torchao", "none", "torch.save", _one_parameter(BITS, resnet20=6, mobilenet=7), _module("torchao_network.py")
    ),
    "k-means, pruned": Method(
        None, "none", "safetensors, uint8", _two_parameters(SPARSITIES, (31, 127, 255), 2), _stored(codebooks)
    ),
    "integers, pruned": Method(
        None, "none", "safetensors, int8", _two_parameters(SPARSITIES, (5, 6, 8), 3), _stored(pruned_integers)
    ),
}
