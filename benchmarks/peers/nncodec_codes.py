"""The bytes and seconds of NNCodec's arithmetic coder for tensors of integer codes, each with its round trip checked.

    PEERS/bin/python benchmarks/peers/nncodec_codes.py CODES.npz

benchmarks/codec.py runs this with the Python that OPQ_PEERS_PYTHON names, whose environment has NNCodec 2.1.3; it needs
neither opq nor what the other benchmarks use. For every line of its input, "encode", "decode" or "report", it does that and
answers with a line of JSON: the seconds of each of some runs, or what the codes take.
So the two coders take turns, and a processor's clock that wanders hits both alike.

The codes go to the coder's own interface as they are: no quantization of its own, dependent quantization off, and otherwise
what `nncodec.tensor.encode` takes by default (parameter optimization and row skipping on, 11 unary decisions). One thread: the
coder holds Python's lock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from nncodec import nnc
from nncodec.extensions.deepCABAC import Decoder, Encoder, HdspMode

UNARY = 11
WARM_UP, TURN, LEAST_RUNS = 0.2, 0.5, 3
PROFILE, SCAN, DEPENDENT, PARENT = 1, 0, 0, 0
NO_HISTORY = (HdspMode.AlwaysOff, np.zeros(2, dtype=np.int8))
NO_CODEBOOK = (0, 0)

Codes = Any  # this environment may have a NumPy without types for them


def main() -> int:
    """Answer until the input ends; the exit status."""
    with np.load(Path(sys.argv[1])) as file:
        tensors = {name: file[name] for name in file.files}
    payloads = [encode(codes) for codes in tensors.values()]
    for (name, codes), payload in zip(tensors.items(), payloads, strict=True):
        if not np.array_equal(codes, decode(payload, codes.shape)):
            raise ValueError(f"NNCodec does not give the codes of {name!r} back")
    work = {
        "encode": lambda: [encode(codes) for codes in tensors.values()],
        "decode": lambda: [decode(payload, codes.shape) for payload, codes in zip(payloads, tensors.values(), strict=True)],
    }
    for line in map(str.strip, sys.stdin):
        answer = seconds(work[line]) if line in work else report(tensors, payloads)
        print(json.dumps(answer), flush=True)
    return 0


def seconds(run: Callable[[], object]) -> list[float]:
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


def report(tensors: dict[str, Codes], payloads: list[Codes]) -> dict[str, Any]:
    """What the codes take: in the coder alone, and as the package's whole stream with its headers and the tensors' names."""
    stream = nnc.compress(dict(tensors), bitstream_path=None, use_dq=False, row_skipping=True, return_bitstream=True)
    return {
        "version": metadata.version("nncodec"),
        "payload_bytes": sum(len(payload) for payload in payloads),
        "stream_bytes": len(stream),
    }


def encode(codes: Codes) -> Codes:
    """The payload of a tensor of two or more dimensions."""
    encoder = Encoder()
    encoder.initCtxModels(UNARY, 1)
    skipped = np.array([not row.any() for row in codes], dtype=np.int32)
    encoder.encodeLayer(codes, DEPENDENT, SCAN, PROFILE, PARENT, 1, skipped, *NO_HISTORY, *NO_CODEBOOK)
    return encoder.finish()


def decode(payload: Codes, shape: tuple[int, ...]) -> Codes:
    """The codes of a payload."""
    decoder = Decoder()
    decoder.setStream(payload)
    decoder.initCtxModels(UNARY)
    codes = np.zeros(shape, dtype=np.int32)
    decoder.decodeLayer(codes, DEPENDENT, SCAN, PROFILE, PARENT, *NO_HISTORY, *NO_CODEBOOK)
    decoder.finish()
    return codes


if __name__ == "__main__":
    raise SystemExit(main())
