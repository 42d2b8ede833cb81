"""The entropy coder compared with NNCodec's on the same integer codes: bytes and seconds.

Claim: opq's coder takes fewer bytes than NNCodec's CABAC for the codes of every network here, and less time to encode and to
decode them.

    python benchmarks/codec.py

The codes are sign(w) floor(|w| / step + 1/2) of all tensors of two or more dimensions. "80%" sets the smallest 80% of the
network's weights to zero first. "laplace" is one tensor of 5000 x 5000 random weights from a Laplace density of scale 1: the
smallest 90% or 97% are set to zero, the rest is quantized with step 1. Every round trip is checked, with both coders.
`make peers` installs the environment in which nncodec runs.

opq_bytes      the sections of all tensors, and 9 bytes per tensor for its share of the file's header and its checksum
nncodec_bytes  the package's stream of these tensors, as it writes them, without dependent quantization
nncodec_payload_bytes  the part of it that is the coder's output, without headers and names
entropy_bytes  zero-order entropy of each tensor's codes
*_seconds      medians of the runs in 5 turns (laplace: 1) of half a second, at least 3 runs each; opq on all threads,
               NNCodec, which is single-threaded, on one
threads        number of opq's threads; a tensor of more than 4,194,304 weights is divided between them
opq_over_nncodec, encode_speedup, decode_speedup  bytes of opq over those of NNCodec; seconds of NNCodec over those of opq
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, checkpoints, entropy_bytes, load, print_rows, save_result
from numpy.typing import NDArray
from peering import Peer
from turns import seconds_of_turn

from opq.codec.code_stream import decode_batch, encode_codes
from opq.thread_map import thread_map

SEED = 0
HEADER_BYTES = 9
LAPLACE_SHAPE, LAPLACE_STEP = (5000, 5000), 1.0

STEPS = {"resnet20": (5, 4, 3), "resnet56": (5, 4, 3), "mobilenet": (6, 5, 4)}
"""{network: k for each step 2^-k}"""

Codes = NDArray[np.int32]
Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Input:
    """A case: its codes, and the number of turns in which they are coded."""

    name: str
    codes: dict[str, Codes]
    turns: int = 5


def main() -> int:
    """Code every case with both coders; the exit status."""
    rows = [measure(case) for case in inputs()]
    print_rows(rows)
    save_result("codec", rows, seed=SEED)
    return 0


def inputs() -> Iterator[Input]:
    """The cases, one at a time, so that large ones are not in memory together."""
    for network, path in checkpoints().items():
        weights = {name: tensor for name, tensor in load(path).items() if tensor.ndim >= 2}
        for exponent in STEPS[network]:
            yield Input(f"{network} 2^-{exponent}", quantize(weights, 2.0**-exponent))
        if network == "resnet56":
            yield Input("resnet56 80% 2^-4", quantize(prune(weights, 0.8), 2.0**-4))
    for zeros in (0.9, 0.97):
        weight = np.random.default_rng(SEED).laplace(size=LAPLACE_SHAPE).astype(np.float32)
        yield Input(f"laplace {zeros:.0%}", quantize(prune({"weight": weight}, zeros), LAPLACE_STEP), turns=1)


def quantize(weights: Weights, step: float) -> dict[str, Codes]:
    """The codes of each tensor."""
    return {
        name: (np.sign(tensor) * np.floor(np.abs(tensor.astype(np.float64)) / step + 0.5)).astype(np.int32)
        for name, tensor in weights.items()
    }


def prune(weights: Weights, zeros: float) -> Weights:
    """The weights, of which the smallest, a share `zeros` of all, are set to zero."""
    magnitudes = np.abs(np.concatenate([tensor.reshape(-1) for tensor in weights.values()]))
    count = round(zeros * magnitudes.size)
    threshold = np.partition(magnitudes, count)[count]
    return {name: np.where(np.abs(tensor) < threshold, np.zeros_like(tensor), tensor) for name, tensor in weights.items()}


def measure(case: Input) -> Row:
    """Bytes of both coders, and their seconds, measured in turns."""
    codes = list(case.codes.values())
    sections = list(thread_map(encode_codes, codes))
    for name, tensor, decoded in zip(case.codes, codes, _decode(sections, codes), strict=True):
        if not np.array_equal(tensor, decoded):
            raise ValueError(f"opq does not give the codes of {name!r} back")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npz"
        np.savez(path, allow_pickle=False, **case.codes)
        peer = Peer("nncodec_codes.py", str(path))
        cases = {
            "opq_encode": lambda: seconds_of_turn(lambda: list(thread_map(encode_codes, codes))),
            "opq_decode": lambda: seconds_of_turn(lambda: _decode(sections, codes)),
            "nncodec_encode": lambda: peer.ask("encode"),
            "nncodec_decode": lambda: peer.ask("decode"),
        }
        # First, so that the other process has done its imports and checks before anything is timed.
        report = peer.ask("report")
        turns = [{name: run() for name, run in cases.items()} for _ in range(case.turns)]
        peer.close()
    seconds = {name: statistics.median(seconds for turn in turns for seconds in turn[name]) for name in cases}
    return _row(case, sum(len(section) for section in sections), seconds, report)


def _decode(sections: Sequence[bytes], codes: Sequence[Codes]) -> list[Codes]:
    return decode_batch((section, tensor.shape) for section, tensor in zip(sections, codes, strict=True))


def _row(case: Input, sections: int, seconds: Mapping[str, float], peer: Mapping[str, Any]) -> Row:
    size = sections + HEADER_BYTES * len(case.codes)
    return {
        "case": case.name,
        "weights": sum(codes.size for codes in case.codes.values()),
        "opq_bytes": size,
        "nncodec_bytes": peer["stream_bytes"],
        "entropy_bytes": round(sum(entropy_bytes(codes) for codes in case.codes.values())),
        **{f"{name}_seconds": median for name, median in seconds.items()},
        "opq_over_nncodec": size / peer["stream_bytes"],
        "encode_speedup": seconds["nncodec_encode"] / seconds["opq_encode"],
        "decode_speedup": seconds["nncodec_decode"] / seconds["opq_decode"],
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "nncodec_version": peer["version"],
        "nncodec_payload_bytes": peer["payload_bytes"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
