"""The bytes and seconds of NNCodec's arithmetic coder for tensors of integer codes, each with its round trip checked.

    PEERS/bin/python benchmarks/peers/nncodec_codes.py CODES.npz

benchmarks/codec.py runs this script (peering.py). A line is "encode", "decode" or "report"; the answer is the seconds of
several runs, or the bytes of the codes. So the two coders take turns, and a drift of the processor's clock affects both alike.

The codes go directly to the coder's interface: without its quantization, without dependent quantization, and otherwise
with the defaults of `nncodec.tensor.encode` (parameter optimization and row skipping on, 11 unary decisions). It has one
thread, because the coder holds the GIL.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import before_nncodec  # noqa: F401
import numpy as np
from answering import answer_lines
from nncodec import nnc
from nncodec.extensions.deepCABAC import Decoder, Encoder, HdspMode
from turns import seconds_of_turn

UNARY = 11
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
    return answer_lines(lambda line: seconds_of_turn(work[line]) if line in work else report(tensors, payloads))


def report(tensors: dict[str, Codes], payloads: list[Codes]) -> dict[str, Any]:
    """Bytes of the codes: of the coder's output, and of the package's whole stream with headers and tensor names."""
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
