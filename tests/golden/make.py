"""Make the golden files beside this script and the manifest of what they hold: `python tests/golden/make.py`.

A golden file never changes, and neither does what is read from it. Do not run this again for an existing file: it documents
how the files were made. All numbers come from hashes, so that they do not depend on the random numbers of a library.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.opq_state import OpqState
from opq.checkpoints.state import TensorState
from opq.codec.code_stream import Geometry
from opq.codec.delta_file import DeltaFile
from opq.codec.delta_writer import write_delta
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import pack_auxiliary, write
from opq.config import Speed
from opq.quantization.codebook import LevelTable, UniformCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor

HERE = Path(__file__).parent


def hashed(seed: str, count: int, kind: str = "uint16") -> NDArray[np.generic]:
    """`count` numbers of a dtype with arbitrary bits, the same for the same seed everywhere."""
    dtype = np.dtype(kind).newbyteorder("<")
    return np.frombuffer(hashlib.shake_256(seed.encode()).digest(count * dtype.itemsize), dtype).astype(kind)


def codes(seed: str, *shape: int, dense: int = 1) -> NDArray[np.int32]:
    """Codes whose magnitudes are about exponentially distributed: `dense` times the position of the first 1 in random bits."""
    bits = hashed(seed, int(np.prod(shape, dtype=int))).astype(np.int32)
    halvings = 16 - np.floor(np.log2(np.maximum(bits, 1))).astype(np.int32)  # 1 with probability 1/2, 2 with 1/4, ...
    magnitudes = np.maximum(0, dense * halvings + bits % dense - dense - 1)
    return np.where(bits // 64 % 2 == 1, -magnitudes, magnitudes).reshape(shape).astype(np.int32)


def uniform(seed: str, count: int, low: float, high: float) -> NDArray[np.float32]:
    """float32 numbers from `low` to `high`."""
    return (low + (high - low) * hashed(seed, count).astype(np.float64) / 2**16).astype(np.float32)


def storages() -> bytes:
    """Every dtype, every storage, and every odd shape and name."""
    wide = np.array([0, 1, -1, 15, -16, 17, 100, -1000, 2**16, -(2**20) - 1, 2**23, 2**24 - 1, 1 - 2**24], dtype=np.int32)
    weights = {
        "w.bfloat16": _stepped(codes("bfloat16", 6, 5, dense=3), 0.0123, "bfloat16"),
        "w.float16": _stepped(codes("float16", 6, 5, dense=3), 0.0123, "float16"),
        "w.float32": _stepped(codes("float32", 4, 3, 3, 3, dense=8), 0.0123, "float32"),
        "w.float64": _stepped(codes("float64", 60, dense=20), 0.0123, "float64"),
        "w.wide": _stepped(wide, 1e-7, "float32"),
        "w.wide.float64": _stepped(wide[::-1], 1e-40, "float64"),
        "w.scalar": _stepped(np.array(-3, dtype=np.int32), 0.1, "float32"),
        "w.zeros": _stepped(np.zeros((9, 9), dtype=np.int32), 1.0, "float32"),
        "w.tied": _stepped(codes("float32", 4, 3, 3, 3, dense=8), 0.5, "bfloat16"),
        "w.subnormal": _stepped(np.arange(-9, 10, dtype=np.int32), 5e-8, "float16"),
    }
    auxiliary = {}
    for name in list(dtypes.NUMPY)[:16]:  # the others are in dtypes.opq
        kind = dtypes.NUMPY[name]
        raw = hashed(name, 40 * kind.itemsize, "uint8")
        auxiliary[f"x.{name}"] = (raw % 2 if name == "bool" else raw).view(kind).reshape(5, 8)
    auxiliary["x.scalar"] = np.array(1234567890123, dtype=np.int64)
    auxiliary["x.empty"] = np.zeros((3, 0, 2), dtype=np.float32)
    auxiliary["x.ramp"] = np.arange(300, dtype=np.int32)
    auxiliary[""] = np.array([True, False])
    auxiliary["\u00fc.\u6f22.\U0001f600"] = uniform("unicode", 70, 0.5, 2.0)
    auxiliary["y.float32"] = uniform("half", 50, 0.5, 1.5)
    auxiliary["y.float64"] = uniform("half64", 30, -1.5, -0.5).astype(np.float64)
    auxiliary["y.zeros"] = np.array([0.0, -0.0, 65504.0, -(2.0**-14)], dtype=np.float32)
    auxiliary["y.tiny"] = np.array([1e-20, 1.0], dtype=np.float32)
    return _file(weights, auxiliary, "float16", {"format": "pt", "": "\u00e9", "long": "ab" * 200})


def network() -> bytes:
    """A state dict like a small convolutional network's."""
    weights, auxiliary = {}, {}
    for number, (channels, inputs, groups) in enumerate([(8, 3, 1), (16, 8, 1), (16, 16, 16), (24, 16, 1)]):
        shape = (channels, inputs // groups, *((1, 1) if number == 3 else (3, 3)))
        weights[f"features.{number}.conv.weight"] = _stepped(codes(f"conv{number}", *shape, dense=3), 0.02, "float32")
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.3, 0.3), ("running_mean", -1, 1), ("running_var", 0.2, 2)):
            auxiliary[f"features.{number}.norm.{part}"] = uniform(f"{part}{number}", channels, low, high)
        auxiliary[f"features.{number}.norm.num_batches_tracked"] = np.array(50_000, dtype=np.int64)
    weights["classifier.weight"] = _stepped(codes("classifier", 10, 96, dense=2), 0.03125, "float32")
    auxiliary["classifier.bias"] = uniform("classifier", 10, -0.1, 0.1)
    return _file(weights, auxiliary, "exact", {"format": "pt"})


def tables() -> bytes:
    """Weights with tables of levels, and auxiliary tensors in 8 bits."""
    weights = {}
    for kind in ("float16", "bfloat16", "float32", "float64"):
        levels = np.unique(uniform(f"levels {kind}", 40, -0.8, 0.6)).astype(dtypes.NUMPY[kind])
        weights[f"w.{kind}"] = _with_levels(codes(kind, 9, 4, 3, 3, dense=3), np.unique(levels))
    pair = np.array([-0.75, 0.5], dtype=np.float32)
    weights["w.ternary"] = _with_levels(codes("ternary", 30, 40), pair)
    weights["w.tied"] = _with_levels(codes("ternary", 30, 40), pair)
    weights["w.odd"] = _with_levels(codes("odd", 6, 7), np.array([-3.0e38, -1e-45, -0.0, 1e-45, 3.0e38], dtype=np.float32))
    weights["w.dense"] = _with_levels(np.maximum(codes("dense", 12, 5, 1, 1), 1), np.arange(1, 9).astype(np.float64) ** 3)
    weights["w.zeros"] = _with_levels(np.zeros((5, 5), dtype=np.int32), pair)
    auxiliary = {
        "x.linear": uniform("linear", 50, -0.5, 1.5),
        "x.linear64": uniform("linear64", 50, -1e5, 1.5).astype(np.float64),
        "x.relative": uniform("relative", 64, 0.01, 2.0),
        "x.relative64": uniform("relative64", 20, 1e3, 1e4).astype(np.float64) * (hashed("zeros", 20) % 4 > 0),
        "x.wide": np.ldexp(
            uniform("wide", 40, 1.0, 2.0).astype(np.float64), hashed("exponents", 40).astype(np.int64) % 200 - 100
        ),
        "x.few": uniform("few", 10, 0.5, 1.5),
        "x.equal": np.full(32, 0.99999, dtype=np.float32),
        "x.counter": np.arange(40),
    }
    return _file(weights, auxiliary, "uint8", {})


def _stepped(codes: NDArray[np.int32], step: float, dtype: str) -> CompressedTensor:
    """A weight with these codes and the float32 number nearest to `step`."""
    return CompressedTensor(codes, UniformCodebook(float(np.float32(step))), dtype)


def _with_levels(wanted: NDArray[np.int32], levels: NDArray) -> CompressedTensor:
    """A weight with these levels and these codes, clipped to the levels that there are."""
    negatives = int(np.signbit(levels).sum())
    return CompressedTensor(np.clip(wanted, -negatives, len(levels) - negatives), LevelTable(levels), levels.dtype.name)


def later_dtypes() -> bytes:
    """The dtypes with codes 16 to 18."""
    names = ("float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz")
    return _file(
        {}, {f"x.{name}": hashed(name, 40, "uint8").view(dtypes.NUMPY[name]).reshape(5, 8) for name in names}, "exact", {}
    )


def packed_dtypes() -> bytes:
    """The dtypes with codes 19 to 22."""
    tensors = {}
    for name in ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"):
        tensors[f"x.{name}"] = (hashed(name, 40, "uint8") % 2 ** dtypes.BITS[name]).view(dtypes.NUMPY[name]).reshape(5, 8)
    tensors["x.complex128"] = hashed("complex128", 6 * 16, "uint8").view(np.complex128).reshape(2, 3)
    tensors["x.float64"] = uniform("float64", 7, -1.5, -0.5).astype(np.float64)
    return _file({}, tensors, "exact", {})


def scaled() -> bytes:
    """Weights whose rows, columns or both have scales: every dtype, odd shapes, tied weights, the largest scales."""
    weights = {}
    for kind in ("bfloat16", "float16", "float32", "float64"):
        weights[f"r.{kind}"] = _scaled(codes(kind, 6, 5, dense=3), 0.0123, kind, _scales(f"rows {kind}", 6))
        weights[f"b.{kind}"] = _scaled(
            codes(kind, 4, 3, 3, 3, dense=8), 0.0123, kind, _scales(f"rows {kind}", 4), _scales(f"columns {kind}", 27)
        )
    weights["c"] = _scaled(codes("columns", 5, 40), 0.7, "float32", None, _scales("columns", 40))
    weights["c.tied"] = _scaled(codes("columns", 5, 40), 0.01, "bfloat16", None, _scales("columns", 40))
    weights["c.turned"] = _scaled(codes("columns", 5, 40).reshape(5, 4, 10), 0.7, "float32", None, _scales("columns", 40))
    weights["plain"] = _stepped(codes("columns", 5, 40), 0.7, "float32")
    weights["line"] = _scaled(codes("line", 300, dense=2), 1.0, "float32", _scales("line", 300))
    weights["large"] = _scaled(codes("large", 3, 2, 12, 12), 1e-3, "float64", np.array([-127, 0, 127]), _scales("large", 288))
    weights["ends"] = _scaled(codes("ends", 2, 3), 1.0, "float64", np.array([-127, 127]), np.array([-127, 0, 127]))
    weights["zeros"] = _scaled(np.zeros((7, 7), dtype=np.int32), 1.0, "float32", _scales("zeros", 7))
    return _file(weights, {"x": uniform("x", 5, -1.0, 1.0)}, "exact", {})


def trellis() -> bytes:
    """Weights whose codes follow a trellis: every dtype, shapes without kernels, scales, tied weights, raw bits, wide codes."""
    wide = np.array([[0, 1, -1, 15, -16, 17, 100, -1000, 2**16, -(2**20) - 1, 2**22, 2**23 - 1, 1 - 2**23]], dtype=np.int32)
    weights = {
        "w.bfloat16": _following(codes("bfloat16", 6, 5, dense=3), 0.0123, "bfloat16"),
        "w.float16": _following(codes("float16", 6, 5, dense=3), 0.0123, "float16"),
        "w.float32": _following(codes("float32", 21, 33, dense=2), 0.0123, "float32"),
        "w.tied": _following(codes("float32", 21, 33, dense=2), 0.5, "bfloat16"),
        "w.float64": _following(codes("float64", 7, 30, dense=20), 0.0123, "float64"),
        "w.raw": _following(codes("raw", 9, 20, dense=900), 1e-4, "float32"),
        "w.wide": _following(wide, 1e-7, "float64"),
        "w.line": _following(codes("line", 50, dense=2), 0.25, "float32"),
        "w.ones": _following(codes("ones", 5, 9, 1, 1, dense=2), 0.25, "float32"),
        "w.large": _following(codes("large kernel", 2, 3, 12, 11, dense=1), 0.25, "float32"),
        "w.scaled": _following(codes("scaled", 6, 40, dense=4), 0.7, "float32", _scales("rows trellis", 6)),
        "w.zeros": _following(np.zeros((9, 9), dtype=np.int32), 1.0, "float32"),
    }
    return _file(weights, {"x": uniform("x", 5, -1.0, 1.0)}, "exact", {})


def _following(indices: NDArray[np.int32], step: float, dtype: str, rows: NDArray | None = None) -> CompressedTensor:
    """A weight whose codes follow from these k (docs/format.md, "Trellis"), and the float32 number nearest to `step`."""
    lines = indices.reshape(Geometry.of(indices.shape).outputs, -1)
    found = np.zeros_like(lines)
    for line, values in zip(lines.tolist(), found, strict=True):
        state = [0, 0, 0]
        for place, k in enumerate(line):
            values[place] = (2 * abs(k) - state[2]) * np.sign(k)
            state = [state[1], state[2], (abs(k) + state[1] + state[0]) % 2]
    return CompressedTensor(found.reshape(indices.shape), codebook_of(float(np.float32(step)), rows, None), dtype, trellis=True)


def fast() -> bytes:
    """Weights of fast sections: every dtype, with and without a trellis, kernels, levels, scales, patches, several streams."""
    rows = np.repeat(np.array([0, 1, 3], dtype=np.int32), [500, 40, 20])
    ragged = codes("ragged", 560, 60) * rows[:, None]
    far = _thin("far", 70, 64)
    far.reshape(-1)[[0, 137, 4479]] = 1000, -(2**24) + 1, 128
    weights = {
        "w.bfloat16": _stepped(_thin("bfloat16", 64, 70), 0.0123, "bfloat16"),
        "w.contexts": _stepped(ragged, 0.0123, "float32"),
        "w.far": _stepped(far, 0.0123, "float64"),
        "w.few": _stepped(_thin("few", 2, 2100), 0.0123, "float16"),
        "w.kernels": _stepped(_thin("kernels", 40, 12, 3, 3), 0.0123, "float32"),
        "w.levels": _with_levels(_thin("levels", 65, 70), np.array([-3, -1.5, -1, 0.25, 2, 7], dtype=np.float32)),
        "w.line": _stepped(_thin("line", 4099), 0.0123, "float32"),
        "w.scaled": _scaled(_thin("scaled", 64, 70), 0.7, "float32", _scales("fast rows", 64)),
        "w.streams": _stepped(_thin("streams", 70, 8192, share=4096), 0.0123, "float32"),
        "w.trellis": _following(ragged, 0.0123, "float32"),
        "w.trellis far": _following(far // 4, 0.0123, "float64"),
        "w.zeros": _stepped(np.zeros((64, 70), dtype=np.int32), 0.0123, "float32"),
    }
    return _file(weights, {}, "exact", {}, speed="fast")


def planes() -> bytes:
    """Auxiliary tensors with fast planes: floats and integers of each size, blocks of each form, one and several tables."""
    few = hashed("few planes", 4200) % 300 == 0
    blocks = np.full(2**18 + 5000, 7, dtype=np.uint8)
    blocks[2**18 :: 50] = hashed("spikes", 100, "uint8") % 4 + 5
    groups = np.repeat(np.array([3, 9, 3, 10, 15, 3, 3, 9, 21, 3, 3, 4] * 2, dtype=np.uint8), 256)[:-11]
    stored = np.full(2**18 - len(groups) - 5000 + 40, 7, dtype=np.uint8)
    stored[-40:] = hashed("stored", 40, "uint8")
    tensors: dict[str, NDArray] = {
        "blocks": blocks,
        "groups": groups + (hashed("groups", len(groups)) % 50 == 0),
        "ints": np.where(few, 70000, 1).astype(np.int32),
        "stored": stored,
        "x.bfloat16": np.where(few, -1.5, 0.25).astype(dtypes.NUMPY["bfloat16"]),
        "x.complex128": np.where(few[:2100].reshape(42, 50), 1.0 + 0.5j, -0.125j),
        "x.float16": np.where(few, 0.5, -1.0).astype(np.float16),
        "x.float32": np.where(few, 3.0, -0.5).astype(np.float32),
        "x.float64": np.where(few[:100], 1e9, 0.0),
    }
    packs = pack_auxiliary(tensors.items(), "exact", speed="fast")
    return b"".join(write({}, packs=packs).pieces())


def _thin(seed: str, *shape: int, dense: int = 1, share: int = 32) -> NDArray[np.int32]:
    """Codes of which about one in `share` is not 0."""
    kept = hashed(f"kept {seed}", int(np.prod(shape))).reshape(shape) % share == 0
    return np.where(kept, codes(f"thin {seed}", *shape, dense=dense) + dense, 0).astype(np.int32)


def _scales(seed: str, count: int) -> NDArray[np.int64]:
    """Scales that differ by up to three octaves."""
    return hashed(seed, count).astype(np.int64) % 24 - 12


def _scaled(
    codes: NDArray[np.int32], step: float, dtype: str, rows: NDArray | None, columns: NDArray | None = None
) -> CompressedTensor:
    """A weight with these codes and scales, and the float32 number nearest to `step`."""
    return CompressedTensor(codes, codebook_of(float(np.float32(step)), rows, columns), dtype)


FILES = {
    "dtypes.opq": later_dtypes,
    "fast.opq": fast,
    "network.opq": network,
    "packed.opq": packed_dtypes,
    "planes.opq": planes,
    "scaled.opq": scaled,
    "storages.opq": storages,
    "tables.opq": tables,
    "trellis.opq": trellis,
}
"""{name: function that gives the bytes}"""


def delta_of_tensors() -> bytes:
    """A delta of a dict: a matrix of each kind of float, small tensors of every dtype, the same, changed, new and removed."""
    base, new = base_of_tensors(), dict(base_of_tensors())
    for name in ("float16", "bfloat16", "float32", "float64"):
        words = new[f"w.{name}"].view(f"u{new[f'w.{name}'].itemsize}").copy()
        words.reshape(-1)[::7] += (hashed(name, len(words.reshape(-1)[::7])) % 1000 // 30).astype(words.dtype)
        new[f"w.{name}"] = words.view(new[f"w.{name}"].dtype)
    for name in ("float16", "int64", "uint8", "float8_e5m2"):
        new[f"x.{name}"] = new[f"x.{name}"].copy()
        new[f"x.{name}"].view(np.uint8)[::5] ^= 1
    new["y"] = hashed("y", 5)
    del new["x.bool"]
    return b"".join(write_delta(TensorState(new), TensorState(base), metadata={"step": "2"}).pieces())


def base_of_tensors() -> dict[str, NDArray[np.generic]]:
    """The base of that delta."""
    base: dict[str, NDArray[np.generic]] = {}
    for kind in ("float16", "bfloat16", "float32", "float64"):
        numbers = uniform(kind, 180 * 96, -0.5, 0.5)
        base[f"w.{kind}"] = (numbers * numbers * numbers).astype(dtypes.NUMPY[kind]).reshape(180, 96)
    for name, kind in dtypes.NUMPY.items():
        bits = hashed(name, 40 * kind.itemsize, "uint8")
        mask = 1 if name == "bool" else 2 ** min(dtypes.BITS[name], 8) - 1
        base[f"x.{name}"] = (bits & np.uint8(mask)).view(kind)
    return base


def delta_of_codes() -> bytes:
    """A delta of a file against fast.opq: other codes of some weights, with and without a trellis."""
    with OpqFile(fast()) as file, OpqFile(changed_codes()) as new:
        return b"".join(write_delta(new, OpqState(file), metadata=new.metadata).pieces())


def changed_codes() -> bytes:
    """The file that this delta gives: fast.opq with some codes one further from 0."""
    with OpqFile(fast()) as file:
        tensors: dict[str, Any] = dict(file.items())
        for name, weight in file.weights():
            if weight.codes.size > 4000 and not weight.trellis:
                moved = weight.codes.copy()
                moved.reshape(-1)[::97] += np.sign(moved.reshape(-1)[::97])
                tensors[name] = CompressedTensor(moved, weight.codebook, weight.dtype)
        return b"".join(write(tensors, metadata=file.metadata, speed="fast").pieces())


DELTAS = {"codes.opd": delta_of_codes, "tensors.opd": delta_of_tensors}
"""{name: function that gives the bytes} of golden deltas."""


def base_of(name: str) -> Any:
    """The base of a golden delta, as a State."""
    return OpqState(OpqFile((HERE / "fast.opq").read_bytes())) if name == "codes.opd" else TensorState(base_of_tensors())


def describe_delta(name: str, data: bytes) -> dict[str, object]:
    """As `describe`, for a golden delta; and the digest of its base."""
    with DeltaFile(data, base_of(name)) as file:
        tensors = {
            key: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
            for key, array in ((key, file.array(key)) for key in file)
        }
        return {"base": file.base_digest.hex(), "metadata": file.metadata, "tensors": tensors}


def describe(data: bytes) -> dict[str, object]:
    """The manifest's entry for a file: its metadata; dtype, shape and SHA-256 of the little-endian bytes of each tensor."""
    with OpqFile(data) as file:
        return {
            "metadata": file.metadata,
            "tensors": {
                name: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
                for name, array in ((name, file.array(name)) for name in file)
            },
        }


def _file(
    weights: dict[str, CompressedTensor],
    auxiliary: dict[str, NDArray],
    storage: str,
    metadata: dict[str, str],
    speed: Speed = "small",
) -> bytes:
    return b"".join(write({**weights, **auxiliary}, storage=storage, metadata=metadata, speed=speed).pieces())


if __name__ == "__main__":
    contents = {name: make() for name, make in FILES.items()}
    for name, data in contents.items():
        (HERE / name).write_bytes(data)
    deltas = {name: make() for name, make in DELTAS.items()}
    for name, data in deltas.items():
        (HERE / name).write_bytes(data)
    described = {name: describe_delta(name, data) for name, data in deltas.items()}
    (HERE / "deltas.json").write_text(json.dumps(described, indent=1, ensure_ascii=True, sort_keys=True) + "\n")
    manifest = {name: describe(data) for name, data in contents.items()}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=True, sort_keys=True) + "\n")
