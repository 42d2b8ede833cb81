"""One list of files for every reader: golden, hostile, kept by the fuzzer, changed at random; and what Python reads from them.

A reader prints a line of JSON for each file (see dump.c): {"error"} if it refuses it, else {"metadata", "tensors"}, with text
and data in hexadecimal, or the CRC-32 of long data. `differences` compares it with what the Python reader gives.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from thoroughness import one_in, some

from opq import dtypes
from opq.codec.file_reader import OpqFile
from opq.errors import FormatError
from opq.quantization.compressed_tensor import CompressedTensor

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
JS = ROOT / "js"
for folder in (TESTS / "codec", TESTS / "attacks", ROOT / "fuzz"):
    sys.path.insert(0, str(folder))

from codec_strategies import inflate, sections_of, wrap  # noqa: E402 - needs the path
from hostile_files import ATTACKS  # noqa: E402
from mutator import Mutator  # noqa: E402
from seeds import SEEDS  # noqa: E402

_REAL = [*dtypes.NUMPY][: dtypes.CODE["float64"] + 1]


COSTLY = re.compile("maximum_size|_thousands|_of_nothing")
"""Hostile files that cost their reader seconds or much memory."""


def costly() -> dict[str, bytes]:
    """{name: bytes} of such files, but for those that take this test minutes, or hundreds of megabytes when printed."""
    return {
        f"hostile {name}": make() for name, make in ATTACKS.items() if COSTLY.search(name) and "fast_section_of" not in name
    }


def vectors(changed: int, corpus: int = 1) -> dict[str, bytes]:
    """{name: bytes} of all others.

    Args:
        corpus: Of the inputs that the fuzzer kept, every so many; in the thorough profile all of them.
        changed: How many files are changed at random, nearly all with correct checksums.
    """
    golden = {f"golden {path.name}": path.read_bytes() for path in sorted((TESTS / "golden").glob("*.opq"))}
    deltas = {f"golden {path.name}": path.read_bytes() for path in sorted((TESTS / "golden").glob("*.opd"))}
    hostile = {f"hostile {name}": make() for name, make in ATTACKS.items() if not COSTLY.search(name)}
    inputs = one_in(corpus, sorted((ROOT / "fuzz" / "corpus" / "reader").iterdir()))
    found = {f"corpus {path.name}": path.read_bytes() for path in inputs}
    seeds = {f"seed {name}": data for name, data in SEEDS.items()}
    return {
        **golden,
        **deltas,
        **hostile,
        **found,
        **seeds,
        **_deflated(golden["golden storages.opq"]),
        **_damaged(golden),
        **_changed([*golden.values(), *SEEDS.values()], changed),
    }


def _deflated(data: bytes) -> dict[str, bytes]:
    """A file with its header deflated in other ways: stored, with the fixed code, without matches, in several blocks."""
    columns, sections = inflate(data), b"".join(sections_of(data))
    files = {}
    for level, strategy in product((0, 1, 9), (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)):
        deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
        half = deflate.compress(columns[: len(columns) // 2]) + deflate.flush(zlib.Z_FULL_FLUSH)
        whole = half + deflate.compress(columns[len(columns) // 2 :]) + deflate.flush()
        for suffix, packed in (("", whole), (" and a byte too many", whole + b"\0"), (" without its end", whole[:-1])):
            files[f"deflated with level {level}, strategy {strategy}{suffix}"] = wrap(packed, sections)
    return files


def _damaged(golden: dict[str, bytes]) -> dict[str, bytes]:
    """Golden files that are cut off, or have another byte, without correct checksums."""
    chance = random.Random(0)  # noqa: S311 - places, not secrets
    damaged = {}
    for name, data in golden.items():
        for at in chance.sample(range(len(data)), some(2, 4)):
            damaged[f"{name}, cut off at {at}"] = data[:at]
            damaged[f"{name}, byte {at}"] = data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]
    return damaged


def _changed(files: Sequence[bytes], count: int) -> dict[str, bytes]:
    chance = random.Random(1)  # noqa: S311 - bytes, not secrets

    def mutate(data: bytes, size: int) -> bytes:
        at = chance.randrange(len(data) + 1)
        middle = chance.randbytes(chance.randrange(3)) if chance.random() < 0.5 else data[at : at + chance.randrange(1, 9)]
        return (data[:at] + middle + data[at + chance.randrange(3) :])[:size]

    mutator = Mutator(mutate)
    changed, data = {}, b""
    for number in range(count):
        data = mutator(data if chance.random() < 0.3 else chance.choice(files), 8000, number)
        changed[f"changed {number}"] = data
    return changed


def run_reader(command: Sequence[str | Path], files: dict[str, bytes], folder: Path) -> list[dict]:
    """What a reader prints for each file; an error if it does not end well, with what it wrote."""
    path = folder / "vectors.bin"
    path.write_bytes(b"".join(len(data).to_bytes(4, "little") + data for data in files.values()))
    done = subprocess.run([*map(str, command), str(path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"after {len(lines)} files ({[*files][len(lines) :][:1]}): {done.stderr[-4000:]}"
    assert len(lines) == len(files)
    return [json.loads(line) for line in lines]


def differences(data: bytes, found: dict) -> list[str]:
    """What a reader gives otherwise than Python does; empty if they agree."""
    try:
        file = OpqFile(data)
    except FormatError as error:
        place = f"not a valid .opq file: {error.where}: "
        message = bytes.fromhex(found.get("error", "")).decode()
        return [] if message.startswith(place) else [f"Python refuses it ({error}), the reader: {message or 'gives tensors'}"]
    with file:
        if "error" in found:
            return [f"Python reads it, the reader: {bytes.fromhex(found['error']).decode()}"]
        metadata = {bytes.fromhex(pair["key"]).decode(): bytes.fromhex(pair["value"]).decode() for pair in found["metadata"]}
        names = [bytes.fromhex(tensor["name"]).decode() for tensor in found["tensors"]]
        if metadata != file.metadata or names != list(file):
            return [f"metadata or names are {metadata}, {names}"]
        return [line for tensor in found["tensors"] for line in _tensor_differences(file, tensor)]


def _tensor_differences(file: OpqFile, found: dict) -> list[str]:
    name = bytes.fromhex(found["name"]).decode()
    entry = file.entry(name)
    told = (found["dtype"], tuple(found["shape"]), float(found["step"]))
    if told != (entry.dtype, entry.shape, float(f"{entry.step or 0.0:.9g}")):
        return [f"{name!r} is {told}"]
    try:
        array = file.array(name)
        content = file[name] if entry.is_weight else None
    except FormatError as error:
        read = [key for key in ("bytes", "float32", "codes") if isinstance(found[key], str) or "crc32" in (found[key] or ())]
        return [f"{name!r}: Python refuses it ({error.problem}), the reader gives {key}" for key in read]
    expected = {"bytes": array, "float32": None, "codes": None}
    if entry.dtype in _REAL:
        with np.errstate(over="ignore", invalid="ignore"):
            expected["float32"] = array.astype(np.float32)
    if isinstance(content, CompressedTensor):
        expected["codes"] = content.codes
    return [
        f"{name!r}: other {key}: {str(found[key])[:200]}"
        for key, value in expected.items()
        if not _equal(value, found[key], exact=key != "float32" and entry.storage == "exact")
    ]


def _equal(expected: np.ndarray | None, found: object, *, exact: bool) -> bool:
    """Whether the data are those of an array; NaNs of converted tensors may have other bits."""
    if isinstance(expected, np.ndarray) and isinstance(found, dict) and "crc32" in found:
        return found["crc32"] == zlib.crc32(expected.tobytes())
    if expected is None or not isinstance(found, str):
        return found is None and expected is None
    data = bytes.fromhex(found)
    if exact or data == expected.tobytes():
        return data == expected.tobytes()
    array = np.frombuffer(data, dtype=expected.dtype).reshape(expected.shape)
    signs = np.signbit(array) == np.signbit(expected)
    return bool((((array == expected) & signs) | (np.isnan(array) & np.isnan(expected))).all())


def all_differences(files: dict[str, bytes], found: Sequence[dict]) -> str:
    """Lines that say which files a reader reads otherwise."""
    return "\n".join(
        f"{name}: {line}" for (name, data), of in zip(files.items(), found, strict=True) for line in differences(data, of)
    )
