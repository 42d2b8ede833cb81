"""The ways that `zoo.py` compares: each makes a file of a network from its weights alone, and reads it back."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from peering import Peer
from torch import Tensor
from zoo_formats import Arrays, CodedRows, HalfQuadratic, Halves, Integers, Sinkhorn, WeightFormat, read_file, write_file
from zoo_networks import Network

import opq
import opq.torch
from opq.checkpoints import as_state
from opq.compression.equal_weights import equal_weights

FIXED: Mapping[tuple[str, str], WeightFormat] = {
    ("float16, xz", "16 bits"): Halves(),
    **{("integers per row, xz", f"{bits} bits"): Integers(bits) for bits in (8, 6, 4, 3)},
    **{("integers per 32, xz", f"{bits} bits"): Integers(bits, 32) for bits in (8, 6, 4, 3)},
    **{("hqq, xz", f"{bits} bits"): HalfQuadratic(bits) for bits in (4, 3, 2)},
    **{("sinq, xz", f"{bits} bits"): Sinkhorn(bits) for bits in (4, 3, 2)},
}
"""{(method, setting): how it stores weights}, of the ways whose settings determine the size"""

_CLOSE = 1.003
"""A searched file has at most this many times the bytes of the target."""

_FINEST, _COARSEST, _FIRST = -100, 0, -22
"""NNCodec's quantization parameters: a step is about 2^(qp / 4)."""


@dataclass(frozen=True)
class Saved:
    """A file, the state dict that it was read back to, the seconds that it took, and the bytes that were asked for."""

    data: bytes
    state: Mapping[str, Tensor]
    seconds: float
    asked: int | None = None


@dataclass(frozen=True)
class Tensors:
    """The tensors of a network, by what all ways do with them.

    Args:
        source: All of them.
        weights: Those that are quantized: the layers of opq's plan, float32. Equal ones are here once.
        others: All other tensors of floating point, float32.
        repeats: {weight that is equal to one of `weights`: that one}.
        checkpoint: What opq is given.
    """

    source: Mapping[str, Tensor]
    weights: Arrays
    others: Arrays
    repeats: Mapping[str, str]
    checkpoint: Any

    @classmethod
    def of(cls, network: Network) -> Tensors:
        """The tensors of a network."""
        source = network.source()
        checkpoint = network.checkpoint or source
        names = list(opq.plan(checkpoint, ratio=4.0).layers)
        repeats = equal_weights(as_state(source), names)
        weights = {name: source[name].contiguous().numpy() for name in names if name not in repeats}
        floats = {name: tensor for name, tensor in source.items() if tensor.is_floating_point() and name not in names}
        return cls(source, weights, {name: tensor.numpy() for name, tensor in floats.items()}, repeats, checkpoint)

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum(weight.size for weight in self.weights.values())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the source."""
        return sum(tensor.nbytes for name, tensor in self.source.items() if name not in self.repeats)

    def state(self, arrays: Arrays) -> Mapping[str, Tensor]:
        """A state dict with these values; integers are those of the source."""
        found = {name: arrays.get(self.repeats.get(name, name)) for name in self.source}
        return {
            name: self.source[name] if array is None else torch.from_numpy(np.array(array)).reshape(self.source[name].shape)
            for name, array in found.items()
        }


def opq_file(tensors: Tensors, size: int) -> Saved:
    """A file of opq with its default settings."""
    begin = time.process_time()
    data = opq.compress(tensors.checkpoint, size=size).data
    seconds = time.process_time() - begin
    return Saved(data, opq.torch.load(data), seconds, size)


def calibrated_file(calibration: opq.Calibration, size: int) -> Saved:
    """A file of a calibration with opq's default settings. Its seconds are without those of the measurement."""
    begin = time.process_time()
    data = calibration.compress(size=size).data
    seconds = time.process_time() - begin
    return Saved(data, opq.torch.load(data), seconds, size)


def fixed_file(tensors: Tensors, weight_format: WeightFormat) -> Saved:
    """A file of `zoo_formats`."""
    begin = time.process_time()
    data = write_file(tensors.weights, tensors.others, weight_format)
    seconds = time.process_time() - begin
    return Saved(data, tensors.state(read_file(data, tensors.weights, weight_format)), seconds)


def coded_rows(tensors: Tensors, target: int) -> Saved:
    """`CodedRows`, with a factor that gives the target's bytes or slightly more; the best of some tries."""
    begin = time.process_time()
    low, high, factor = 0.0, math.inf, 4.0
    tries: list[tuple[bool, int, float, bytes]] = []
    for _ in range(12):
        data = write_file(tensors.weights, tensors.others, CodedRows(factor))
        excess = len(data) - target
        tries.append((excess < 0, abs(excess), factor, data))
        if 0 <= excess <= (_CLOSE - 1.0) * target:
            break
        low, high = (low, factor) if excess > 0 else (factor, high)
        factor *= 2.0 ** (-8.0 * (excess - 0.0015 * target) / tensors.count)
        if not low < factor < high:
            factor = math.sqrt(low * high) if low and high < math.inf else (2.0 * low or 0.5 * high)
    seconds = time.process_time() - begin
    *_, factor, data = min(tries)
    return Saved(data, tensors.state(read_file(data, tensors.weights, CodedRows(factor))), seconds, target)


class NNCodec:
    """NNCodec in its own environment, with the package's defaults for all that is not a weight.

    Its seconds are those of a clock, and include reading the file back.

    Args:
        tensors: The network.
        folder: For its files.
    """

    def __init__(self, tensors: Tensors, folder: Path) -> None:
        self._tensors, self._folder = tensors, folder
        # In one dimension, they are not quantized as coarsely as weights.
        others = {name: array.reshape(-1) for name, array in tensors.others.items()}
        safetensors.numpy.save_file({**tensors.weights, **others}, folder / "dense.safetensors")
        self._peer = Peer("nncodec_network.py", str(folder / "dense.safetensors"), str(folder))
        self._sizes: dict[tuple[bool, int], int] = {}
        self._last: tuple[bool, int] | None = None
        self._seconds = 0.0

    def close(self) -> None:
        """End its process."""
        self._peer.close()

    def nearest(self, dependent: bool, target: int) -> Saved:
        """The file of the quantization parameter that comes nearest to a size, with dependent or uniform quantization."""
        finest, coarsest, step = _FINEST, _COARSEST, _FIRST
        while coarsest - finest > 1:
            excess = self._size(dependent, step) - target
            finest, coarsest = (step, coarsest) if excess > 0 else (finest, step)
            # A parameter less is a step smaller by 2^(-1/4), about a quarter of a bit per weight.
            step = min(max(step + round(4 * 8.0 * excess / self._tensors.count), finest + 1), coarsest - 1)
        step = min((finest, coarsest), key=lambda end: abs(self._size(dependent, end) - target))
        if self._last != (dependent, step):
            self._encode(dependent, step)
        with np.load(self._folder / "decoded.npz") as arrays:
            state = self._tensors.state({name: arrays[name] for name in arrays.files})
        return Saved((self._folder / "network.nnc").read_bytes(), state, self._seconds, target)

    def _size(self, dependent: bool, step: int) -> int:
        if (dependent, step) not in self._sizes:
            self._encode(dependent, step)
        return self._sizes[dependent, step]

    def _encode(self, dependent: bool, step: int) -> None:
        begin = time.perf_counter()
        self._peer.ask([step, dependent, 0.0])
        self._seconds, self._last = time.perf_counter() - begin, (dependent, step)
        self._sizes[self._last] = (self._folder / "network.nnc").stat().st_size


SEARCHED = ("rows, entropy coded", "nncodec, uniform", "nncodec, dependent")
"""The ways whose size is searched."""


@contextmanager
def searched_ways(tensors: Callable[[], Tensors]) -> Iterator[Callable[[str, int], Saved]]:
    """A function that makes a file: (one of SEARCHED, bytes). NNCodec starts when it is first used, with `tensors()`."""
    nncodec: NNCodec | None = None
    with tempfile.TemporaryDirectory(prefix="opq-zoo-") as folder:

        def run(way: str, target: int) -> Saved:
            nonlocal nncodec
            if way == "rows, entropy coded":
                return coded_rows(tensors(), target)
            nncodec = nncodec or NNCodec(tensors(), Path(folder))
            return nncodec.nearest(way == "nncodec, dependent", target)

        yield run
        if nncodec is not None:
            nncodec.close()
