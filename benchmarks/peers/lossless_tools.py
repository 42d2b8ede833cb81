"""Lossless compressors for weights, on the bytes of one tensor: see benchmarks/lossless.py.

    python lossless_tools.py FILE DTYPE

FILE holds the tensor's bytes; DTYPE is bfloat16, float16 or float32. The first question, "tools", gives {tool: version}. Then a
question is the name of a tool, and the answer {"bytes", "encode_seconds", "decode_seconds"}: processor time of this process.
Every round trip is checked. lmzip compresses files only, here a safetensors file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import lmz
import numpy as np
import openzl.ext as zl
import z4ai
import zstandard
from answering import answer_lines
from safetensors.torch import save_file
from torch import bfloat16, float16, float32, frombuffer
from zipnn import ZipNN

DATA, DTYPE = Path(sys.argv[1]).read_bytes(), sys.argv[2]
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[DTYPE]
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}[DTYPE]

Coder = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def zipnn() -> Coder:
    """ZipNN as its README calls it, one thread."""
    tool = ZipNN(input_format="byte", bytearray_dtype=DTYPE, threads=1)
    return lambda data: tool.compress(bytearray(data)), tool.decompress


def z4ai_with(effort: str | None) -> Coder:
    """z4ai, one thread."""
    return lambda data: z4ai.compress(data, dtype=SHORT, threads=1, effort=effort), z4ai.decompress


def openzl() -> Coder:
    """OpenZL's graph for floats: exponents to its entropy coder, the rest stored."""
    nodes = {
        "bfloat16": zl.nodes.BFloat16Deconstruct,
        "float16": zl.nodes.Float16Deconstruct,
        "float32": zl.nodes.Float32Deconstruct,
    }
    compressor = zl.Compressor()
    compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
    rest, exponents = zl.graphs.Compress()(compressor), zl.graphs.Entropy()(compressor)
    compressor.select_starting_graph(nodes[DTYPE]()(compressor, rest, exponents))

    def compress(data: bytes) -> bytes:
        context = zl.CCtx()
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        return context.compress([zl.Input(zl.Type.Numeric, np.frombuffer(data, f"u{WIDTH}"))])

    return compress, lambda packed: zl.DCtx().decompress(packed)[0].content.as_nparray()


def zstd() -> Coder:
    """The bytes as they are, at level 3."""
    return zstandard.ZstdCompressor(level=3).compress, zstandard.ZstdDecompressor().decompress


TOOLS = {
    "zipnn": zipnn,
    "z4ai": lambda: z4ai_with(None),
    "openzl": openzl,
    "zstd": zstd,
}
PACKAGES = {"zstd": "zstandard", "lmzip": "lmzip"}


def measure(tool: str) -> dict[str, float]:
    """Bytes and seconds of a tool."""
    if tool == "lmzip":
        return measure_files()
    encode, decode = TOOLS[tool]()
    start = time.process_time()
    packed = encode(DATA)
    middle = time.process_time()
    found = decode(packed)
    end = time.process_time()
    if bytes(found) != DATA:
        raise ValueError(f"{tool} does not give the bytes back")
    return {"bytes": len(packed), "encode_seconds": middle - start, "decode_seconds": end - middle}


def measure_files() -> dict[str, float]:
    """The same of lmzip, one worker."""
    kinds = {"bfloat16": bfloat16, "float16": float16, "float32": float32}
    with tempfile.TemporaryDirectory() as folder:
        source, packed, found = (Path(folder) / name for name in ("model.safetensors", "model.lmz", "found.safetensors"))
        save_file({"weight": frombuffer(bytearray(DATA), dtype=kinds[DTYPE])}, source)
        start = time.process_time()
        lmz.compress(str(source), str(packed), workers=1)
        middle = time.process_time()
        lmz.decompress(str(packed), str(found), workers=1)
        end = time.process_time()
        if found.read_bytes() != source.read_bytes():
            raise ValueError("lmzip does not give the file back")
        return {"bytes": packed.stat().st_size, "encode_seconds": middle - start, "decode_seconds": end - middle}


def answer(question: str) -> dict[str, object]:
    """The answer to a question."""
    if question == "tools":
        return {tool: metadata.version(PACKAGES.get(tool, tool)) for tool in [*TOOLS, "lmzip"]}
    return dict(measure(question))


if __name__ == "__main__":
    raise SystemExit(answer_lines(answer))
