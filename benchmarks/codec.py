"""The codec against NNCodec's on the same integer codes: bytes and seconds.

Claim: opq's coder takes fewer bytes than NNCodec's CABAC for the codes of every network here, and less time to encode and to
decode them.

    OPQ_PEERS_PYTHON=PEERS/bin/python python benchmarks/codec.py

PEERS is an environment of its own, made by

    python -m venv PEERS
    PEERS/bin/pip install torch nncodec==2.1.3

Without OPQ_PEERS_PYTHON the columns of NNCodec are null. The codes are sign(w) floor(|w| / step + 1/2) of all tensors of two
or more dimensions. "80%" zeroes the smallest 80 in a hundred of the network's weights first. "laplace" is one tensor of 5000 x
5000 weights drawn from a Laplace density of scale 1, its smallest 90 or 97 in a hundred zeroed, the rest quantized with step 1.
Every round trip is checked, with both coders.

opq_bytes      the sections of all tensors, and 9 bytes a tensor for its share of the file's header and its checksum
nncodec_bytes  the package's stream of these tensors, as it writes them; dependent quantization off
nncodec_payload_bytes  of that, what its coder made, without headers and names
nncodec_anchor  the stream's bytes in an earlier measurement, with other names of the tensors
entropy_bytes  zero-order entropy of each tensor's codes
*_seconds      medians of the runs in 5 turns (laplace: 1) of half a second, at least 3 runs; opq on all threads,
               NNCodec, which has none, on one
threads        that opq has; a tensor of more than 4,194,304 weights is shared between them
opq_over_nncodec, encode_speedup, decode_speedup  bytes of opq over those of NNCodec; seconds of NNCodec over those of opq
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, checkpoints, load, print_rows, save_result
from numpy.typing import NDArray

from opq.codec.entropy import decode_batch, encode_codes
from opq.parallel import in_parallel

SEED = 0
WARM_UP, TURN, LEAST_RUNS = 0.2, 0.5, 3
"""Seconds, and runs: a processor that was idle takes its time, and so do threads until each has one of its own."""
HEADER_BYTES = 9
LAPLACE_SHAPE, LAPLACE_STEP = (5000, 5000), 1.0
PEER = Path(__file__).resolve().parent / "peers" / "nncodec_codes.py"

STEPS = {"resnet20": (5, 4, 3), "resnet56": (5, 4, 3), "mobilenet": (6, 5, 4)}
"""{network: k for each step 2^-k}"""

ANCHORS = {
    "resnet20 2^-5": 112_828,
    "resnet20 2^-4": 81_037,
    "resnet20 2^-3": 51_954,
    "resnet56 2^-5": 277_197,
    "resnet56 2^-4": 182_383,
    "resnet56 2^-3": 97_616,
    "resnet56 80% 2^-4": 117_259,
    "mobilenet 2^-6": 1_288_054,
    "mobilenet 2^-5": 971_596,
    "mobilenet 2^-4": 667_224,
}

Codes = NDArray[np.int32]
Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Input:
    """A case: its codes, and in how many turns they are coded."""

    name: str
    codes: dict[str, Codes]
    turns: int = 5


def main() -> int:
    """Code every case with both coders; the exit status."""
    peer = os.environ.get("OPQ_PEERS_PYTHON")
    if not peer:
        print("OPQ_PEERS_PYTHON is not set: no figures of NNCodec. To have them:\n", file=sys.stderr)
        print("    python -m venv PEERS", file=sys.stderr)
        print("    PEERS/bin/pip install torch nncodec==2.1.3", file=sys.stderr)
        print("    OPQ_PEERS_PYTHON=PEERS/bin/python python benchmarks/codec.py\n", file=sys.stderr)
    rows = [measure(case, peer) for case in inputs() if not sys.argv[1:] or any(part in case.name for part in sys.argv[1:])]
    print_rows(rows)
    save_result("codec", rows, seed=SEED)
    return 0


def inputs() -> Iterator[Input]:
    """The cases, one at a time: the large ones need not be in memory together."""
    for network, path in checkpoints().items():
        weights = {name: tensor for name, tensor in load(path).items() if tensor.ndim >= 2}
        for exponent in STEPS[network]:
            yield Input(f"{network} 2^-{exponent}", quantize(weights, 2.0**-exponent))
        if network == "resnet56":
            yield Input("resnet56 80% 2^-4", quantize(prune(weights, 0.8), 2.0**-4))
    for zeros in (0.9, 0.97):
        drawn = np.random.default_rng(SEED).laplace(size=LAPLACE_SHAPE).astype(np.float32)
        yield Input(f"laplace {zeros:.0%}", quantize(prune({"weight": drawn}, zeros), LAPLACE_STEP), turns=1)


def quantize(weights: Weights, step: float) -> dict[str, Codes]:
    """The codes of each tensor."""
    return {
        name: (np.sign(tensor) * np.floor(np.abs(tensor.astype(np.float64)) / step + 0.5)).astype(np.int32)
        for name, tensor in weights.items()
    }


def prune(weights: Weights, zeros: float) -> Weights:
    """The weights with the smallest share `zeros` of all of them at zero."""
    magnitudes = np.abs(np.concatenate([tensor.reshape(-1) for tensor in weights.values()]))
    count = round(zeros * magnitudes.size)
    threshold = np.partition(magnitudes, count)[count]
    return {name: np.where(np.abs(tensor) < threshold, np.zeros_like(tensor), tensor) for name, tensor in weights.items()}


def measure(case: Input, python: str | None) -> Row:
    """Bytes of both coders, and seconds of rounds in which they take turns."""
    codes = list(case.codes.values())
    sections = list(in_parallel(encode_codes, codes))
    for name, tensor, decoded in zip(case.codes, codes, _decode(sections, codes), strict=True):
        if not np.array_equal(tensor, decoded):
            raise ValueError(f"opq does not give the codes of {name!r} back")
    cases = {
        "opq_encode": lambda: _seconds(lambda: list(in_parallel(encode_codes, codes))),
        "opq_decode": lambda: _seconds(lambda: _decode(sections, codes)),
    }
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, case, Path(folder)) if python else None
        if peer:
            cases["nncodec_encode"] = lambda: peer.ask("encode")
            cases["nncodec_decode"] = lambda: peer.ask("decode")
        turns = [{name: run() for name, run in cases.items()} for _ in range(case.turns)]
        report = peer.ask("report") if peer else None
        if peer:
            peer.close()
    seconds = {name: statistics.median(seconds for turn in turns for seconds in turn[name]) for name in cases}
    return _row(case, sum(len(section) for section in sections), seconds, report)


class Peer:
    """The peer's script on the codes of a case, at work when it is asked."""

    def __init__(self, python: str, case: Input, folder: Path) -> None:
        np.savez(folder / "codes.npz", allow_pickle=False, **case.codes)
        command = [python, str(PEER), str(folder / "codes.npz")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> Any:
        """Its answer."""
        if not self._process.stdin or not self._process.stdout:
            raise RuntimeError("the peer has no pipes")
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"NNCodec's script ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def _seconds(run: Callable[[], object]) -> list[float]:
    """Seconds of each run within a TURN, after WARM_UP seconds of runs that are not counted."""
    measured: list[float] = []
    begin = time.perf_counter()
    while len(measured) < LEAST_RUNS or time.perf_counter() < begin + WARM_UP + TURN:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        if start > begin + WARM_UP:
            measured.append(end - start)
    return measured


def _decode(sections: Sequence[bytes], codes: Sequence[Codes]) -> list[Codes]:
    return decode_batch((section, tensor.shape) for section, tensor in zip(sections, codes, strict=True))


def _entropy_bytes(codes: Codes) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum()) / 8.0


def _row(case: Input, sections: int, seconds: Mapping[str, float], peer: Mapping[str, Any] | None) -> Row:
    size = sections + HEADER_BYTES * len(case.codes)
    peer_size = peer["stream_bytes"] if peer else None
    return {
        "case": case.name,
        "weights": sum(codes.size for codes in case.codes.values()),
        "opq_bytes": size,
        "nncodec_bytes": peer_size,
        "entropy_bytes": round(sum(_entropy_bytes(codes) for codes in case.codes.values())),
        **{f"{name}_seconds": seconds.get(name) for name in ("opq_encode", "opq_decode", "nncodec_encode", "nncodec_decode")},
        "opq_over_nncodec": size / peer_size if peer_size else None,
        "encode_speedup": seconds["nncodec_encode"] / seconds["opq_encode"] if peer else None,
        "decode_speedup": seconds["nncodec_decode"] / seconds["opq_decode"] if peer else None,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "nncodec_version": peer["version"] if peer else None,
        "nncodec_payload_bytes": peer["payload_bytes"] if peer else None,
        "nncodec_anchor": ANCHORS.get(case.name),
    }


if __name__ == "__main__":
    raise SystemExit(main())
