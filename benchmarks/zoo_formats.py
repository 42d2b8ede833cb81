"""How weights are stored in the files that `zoo.py` compares with opq's, and how they are read back.

A file is one safetensors file in xz. Whatever is not a weight (biases, norms, statistics of batch norms) is stored as float16
in all of them, or as float32 where float16 would overflow; integers are not counted.
"""

from __future__ import annotations

import importlib
import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from zoo_networks.network import package_file

from opq.codec.code_stream import decode_codes, encode_codes

Arrays = dict[str, NDArray[Any]]
"""{name: array}"""

GROUP = 64
"""Weights of a group of HQQ and SINQ: the packages' default."""

PRESET = 6
"""The preset of xz."""


class WeightFormat(Protocol):
    """A way to store a weight."""

    @property
    def preset(self) -> int:
        """The preset of xz for files of this format."""

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """The arrays of a file that stand for a weight (outputs, ...)."""

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The weight of this shape that they stand for."""


def write_file(weights: Arrays, others: Arrays, weight_format: WeightFormat) -> bytes:
    """The bytes of a file with these weights, and the other tensors as float16."""
    stored = {name: _half_if_it_fits(array) for name, array in others.items()}
    for name, weight in weights.items():
        stored |= {f"{name}:{part}": array for part, array in weight_format.store(weight).items()}
    return lzma.compress(safetensors.numpy.save(stored), preset=weight_format.preset)


def read_file(data: bytes, weights: Arrays, weight_format: WeightFormat) -> Arrays:
    """All tensors of a file of `write_file`. Of `weights` only names and shapes are used."""
    back: Arrays = {}
    parts: dict[str, Arrays] = {name: {} for name in weights}
    for key, array in safetensors.numpy.load(lzma.decompress(data)).items():
        name, _, part = key.rpartition(":")
        if name in parts:
            parts[name][part] = array
        else:
            back[key] = array.astype(np.float32)
    return back | {name: weight_format.read(stored, weights[name].shape) for name, stored in parts.items()}


def _half_if_it_fits(array: NDArray[Any]) -> NDArray[Any]:
    return array if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max else array.astype(np.float16)


@dataclass(frozen=True)
class Halves:
    """Weights as float16."""

    preset: int = PRESET

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """As `WeightFormat`."""
        return {"values": weight.astype(np.float16)}

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """As `WeightFormat`."""
        return stored["values"].astype(np.float32)


@dataclass(frozen=True)
class Integers:
    """Symmetric integers, packed in bits, with a scale in float16 per row, or per group of weights of a row.

    Args:
        bits: Bits of an integer.
        group: Weights of a group; the last one of a row may be shorter. None for one per row.
    """

    bits: int
    group: int | None = None
    preset: int = PRESET

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """As `WeightFormat`."""
        rows, largest = weight.reshape(len(weight), -1), 2 ** (self.bits - 1) - 1
        starts = range(0, rows.shape[1], self.group or rows.shape[1])
        scales = (np.maximum.reduceat(np.abs(rows), starts, axis=1) / largest).astype(np.float16)
        codes = np.rint(rows / _divisors(self._spread(scales, rows.shape[1]))).clip(-largest, largest)
        return {"codes": pack(codes + largest, self.bits), "scales": scales}

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """As `WeightFormat`."""
        codes = unpack(stored["codes"], self.bits, math.prod(shape)).reshape(shape[0], -1) - (2 ** (self.bits - 1) - 1)
        weight: NDArray[np.float32] = (codes * self._spread(stored["scales"], codes.shape[1])).reshape(shape)
        return weight

    def _spread(self, scales: NDArray[np.float16], width: int) -> NDArray[np.float32]:
        """The scale of each weight."""
        spread: NDArray[np.float32] = scales.astype(np.float32).repeat(self.group or width, axis=1)[:, :width]
        return spread


@dataclass(frozen=True)
class CodedRows:
    """Rounding to the nearest multiple of a step per row, entropy coded with opq's coder (`opq.codec.code_stream`).

    EntQuant stores rounded weights with a scale per row in entropy coded form too. opq's coder is adaptive with contexts, and
    so gives fewer bytes than the coders that come with other tools.

    Args:
        factor: Steps in the largest magnitude of a row, which is stored in float16.
    """

    factor: float
    preset: int = 0  # xz gains nothing on coded bytes, and would take long

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """As `WeightFormat`."""
        rows = weight.reshape(len(weight), -1)
        scales = np.abs(rows).max(axis=1, keepdims=True).astype(np.float16)
        codes = np.rint(rows / _divisors(self._steps(scales))).astype(np.int32)
        return {"codes": np.frombuffer(encode_codes(codes.reshape(weight.shape)), np.uint8), "scales": scales}

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """As `WeightFormat`."""
        codes = decode_codes(stored["codes"].tobytes(), shape).reshape(shape[0], -1)
        return (codes * self._steps(stored["scales"])).reshape(shape).astype(np.float32)

    def _steps(self, scales: NDArray[np.float16]) -> NDArray[np.float32]:
        return scales.astype(np.float32) / np.float32(self.factor)


@dataclass(frozen=True)
class HalfQuadratic:
    """HQQ (H. Badri and A. Shaji, 2023) by its package: groups with scale and zero in float16, and its default optimization.

    Groups have 64 weights of the flattened weight, or the largest power of two that divides its size.

    Args:
        bits: Bits of an integer.
    """

    bits: int
    preset: int = PRESET

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """As `WeightFormat`."""
        package_file("hqq/core/quantize.py")
        quantizer = importlib.import_module("hqq.core.quantize").Quantizer
        rows = torch.from_numpy(weight).flatten(1)
        settings = {"nbits": self.bits, "group_size": math.gcd(weight.size, GROUP), "axis": 1}
        codes, meta = quantizer.quantize(rows, **settings, bitpack=False, device="cpu")
        return {"codes": pack(codes.numpy(), self.bits), "scales": _half(meta["scale"]), "zeros": _half(meta["zero"])}

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """As `WeightFormat`."""
        return _from_groups(stored, self.bits, shape).reshape(shape)


@dataclass(frozen=True)
class Sinkhorn:
    """SINQ (L. K. Mueller et al., 2025) by its package: scales of rows and of columns, and integers in groups of a row.

    Groups have 64 weights, or the largest power of two of at least 16 that divides a row; otherwise a whole row.

    Args:
        bits: Bits of an integer.
    """

    bits: int
    preset: int = PRESET

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """As `WeightFormat`."""
        package_file("sinq/dual_shift.py")
        package = importlib.import_module("sinq.dual_shift")
        rows, limits = torch.from_numpy(weight).flatten(1), [0, 2**self.bits - 1]
        group = math.gcd(rows.shape[1], GROUP)
        if group < 16:
            codes, scales, columns, zeros = package.quantize_dual_scale_shift(rows, limits, method="sinq")
        else:
            codes, scales, columns, zeros = package.tiled_quant_rectangle(rows, limits, group, method="sinq")
        parts = {"scales": _half(scales), "zeros": _half(zeros), "columns": _half(columns)}
        return {"codes": pack(codes.numpy(), self.bits), **parts}

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """As `WeightFormat`."""
        rows = _from_groups(stored, self.bits, shape).reshape(shape[0], -1)
        return (rows * stored["columns"].reshape(1, -1).astype(np.float32)).reshape(shape)


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers from 0 to 2^bits - 1, one after the other with `bits` bits each."""
    column = codes.astype(np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(column, axis=1, count=bits, bitorder="little"))


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.float32]:
    """Inverse of `pack`, as float32 (count,)."""
    columns = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.packbits(columns, axis=1, bitorder="little").ravel().astype(np.float32)


def _from_groups(stored: Mapping[str, NDArray[Any]], bits: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of codes in groups with scales and zeros, (groups, weights of a group)."""
    codes = unpack(stored["codes"], bits, math.prod(shape)).reshape(len(stored["scales"]), -1)
    return (codes - stored["zeros"].astype(np.float32)) * stored["scales"].astype(np.float32)


def _divisors(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The steps, with infinity for a step of 0: rows of zeros have codes of 0."""
    return np.where(steps > 0.0, steps, np.float32(np.inf))


def _half(tensor: Tensor) -> NDArray[np.float16]:
    return tensor.numpy().astype(np.float16)
