"""The time until a network's weights are in memory in a browser, beside other ways to send them.

    python benchmarks/browser.py

The network is MobileNet-V1 0.75 (2.6 million parameters), compressed from its weights alone to about README.md's size. Each
file is decoded to float32 from its bytes in memory, on one thread: by the C reader as machine code (cc -O3), by the same as
WebAssembly in Node and in headless Chromium. There are five rounds, in each of which every way decodes every file once; results
are medians.

way       opq, SPEED: a .opq file with this setting of `speed`; float16: two bytes per parameter; int8: a byte per weight, a
          float32 scale per row, and float32 for all else, as int8 ONNX files store them (without their graph); int8, brotli:
          the same, compressed with brotli at quality 11
decode    seconds in Chromium for .opq; of brotli in Node, whose decoder is Chromium's; 0 for others, which are used as they are
over_c    seconds in Chromium and in Node over those of machine code
at N      seconds of download and decoding at N Mbit/s: 8 * bytes / rate + decode. This is arithmetic: nothing was downloaded
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from harness import ROOT, Case, Row, checkpoints, load, measure_seconds, print_rows, save_result
from numpy.typing import NDArray

import opq
from opq.config import Speed

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "c")]

from amalgamate import amalgamate  # noqa: E402 - needs the path
from headless import serving, visit  # noqa: E402

RATIO, REPEATS = 6.2, 5
SPEEDS: tuple[Speed, ...] = ("small", "balanced", "fast")
RATES = (10, 50, 300)


class Tensor(ctypes.Structure):
    """opq_tensor of include/opq.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("name_length", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("storage", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.POINTER(ctypes.c_uint32)),
        ("count", ctypes.c_uint32),
        ("step", ctypes.c_float),
        ("section", ctypes.c_uint32),
    )


def main() -> int:
    """Measure sizes and times; the exit status."""
    state = load(checkpoints()["mobilenet"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {f"opq, {speed}": opq.compress(state, ratio=RATIO, speed=speed).data for speed in SPEEDS}
        for way, data in files.items():
            (folder / f"{way}.opq").write_bytes(data)
        plain = int8_bytes(state)
        (folder / "int8").write_bytes(plain)
        brotli(folder / "int8", folder / "int8, brotli.br")
        seconds = times(files, folder)
        sizes = {way: len(data) for way, data in files.items()} | {
            "float16": sum(2 * array.size for array in state.values()),
            "int8": len(plain),
            "int8, brotli": (folder / "int8, brotli.br").stat().st_size,
        }
    rows = [row(way, size, seconds) for way, size in sizes.items()]
    print_rows(rows)
    save_result("browser", rows, seed=None)
    return 0


def row(way: str, size: int, seconds: dict[tuple[str, str], float]) -> Row:
    """The row of a way."""
    native = seconds.get(("c", way))
    decode = seconds.get(("chromium", way), seconds.get(("node", way), 0.0))
    return {
        "way": way,
        "bytes": size,
        "decode_seconds": decode,
        **{f"{where}_over_c": seconds[where, way] / native if native else None for where in ("chromium", "node")},
        **{f"seconds_at_{rate}_mbit": 8e-6 * size / rate + decode for rate in RATES},
    }


def int8_bytes(state: dict[str, NDArray[np.generic]]) -> bytes:
    """Weights as int8 with a scale for each row; all else as float32."""
    parts = []
    for array in state.values():
        values = array.astype(np.float32)
        if array.ndim > 1:
            scales = np.maximum(np.abs(values).reshape(len(values), -1).max(axis=1), 1e-12) / np.float32(127)
            parts += [np.rint(values.reshape(len(values), -1) / scales[:, None]).astype(np.int8).tobytes(), scales.tobytes()]
        else:
            parts.append(values.tobytes())
    return b"".join(parts)


def brotli(source: Path, target: Path) -> None:
    """Compress a file with Node's brotli, whose default quality is the highest, 11."""
    script = (
        'const files = require("fs"), [source, target] = process.argv.slice(1); '
        'files.writeFileSync(target, require("zlib").brotliCompressSync(files.readFileSync(source)))'
    )
    subprocess.run(["node", "-e", script, source, target], check=True)


def times(files: dict[str, bytes], folder: Path) -> dict[tuple[str, str], float]:
    """{(where, way): median seconds}"""
    reader = compiled(folder)
    rounds: list[dict[tuple[str, str], float]] = []
    for number in range(REPEATS):
        native = measure_seconds({way: Case(lambda data=data: decode(reader, data)) for way, data in files.items()}, 1)
        done = subprocess.run(
            [
                "node",
                ROOT / "js" / "test" / "time_node.js",
                *(folder / f"{way}.opq" for way in files),
                folder / "int8, brotli.br",
            ],
            capture_output=True,
            check=True,
            text=True,
        )
        with serving(ROOT / "js", {f"/{way}".replace(" ", "%20"): data for way, data in files.items()}) as server:
            query = urlencode([("file", f"/{way}") for way in files])
            result = visit(server, f"test/time.html?{query}", folder / f"profile{number}")
        rounds.append(
            {("c", way): timing.median for way, timing in native.items()}
            | {("node", Path(path).stem): seconds for path, seconds in json.loads(done.stdout).items()}
            | {("chromium", path[1:]): seconds for path, seconds in json.loads(result).items()}
        )
    return {key: statistics.median(times[key] for times in rounds) for key in rounds[0]}


def compiled(folder: Path) -> ctypes.CDLL:
    """The C reader as a library."""
    (folder / "opq.c").write_text(amalgamate())
    library = folder / "opq.so"
    source = [f"-I{ROOT / 'include'}", folder / "opq.c", "-lz"]
    subprocess.run(["cc", "-O3", "-fno-tree-slp-vectorize", "-shared", "-fPIC", "-o", library, *source], check=True)
    reader = ctypes.CDLL(str(library))
    reader.opq_open.restype = ctypes.c_void_p
    reader.opq_open.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p)
    reader.opq_close.argtypes = (ctypes.c_void_p,)
    reader.opq_count.restype = ctypes.c_size_t
    reader.opq_count.argtypes = (ctypes.c_void_p,)
    reader.opq_tensor_at.restype = ctypes.POINTER(Tensor)
    reader.opq_tensor_at.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    reader.opq_read_float32.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return reader


def decode(reader: ctypes.CDLL, data: bytes) -> None:
    """Decode all tensors of a file to float32."""
    file = reader.opq_open(data, len(data), 0, None)
    for number in range(reader.opq_count(file)):
        count = reader.opq_tensor_at(file, number).contents.count
        values = np.empty(count, dtype=np.float32)
        if reader.opq_read_float32(file, number, values.ctypes.data, count, None):
            raise SystemExit("the C reader refuses the file")
    reader.opq_close(file)


if __name__ == "__main__":
    sys.exit(main())
