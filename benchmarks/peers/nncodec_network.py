"""A whole network through NNCodec: the bytes of its stream, and the weights that come back.

    PEERS/bin/python benchmarks/peers/nncodec_network.py CHECKPOINT.safetensors QP DEPENDENT RESULT.npz

benchmarks/allocation.py runs this with the Python that OPQ_PEERS_PYTHON names. DEPENDENT is 1 for dependent (trellis) and 0 for
uniform quantization; all else is the package's default, which codes the tensors that are no weights at a fine step.
Prints the number of bytes and the seconds that compression took.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from nncodec import nnc
from safetensors.numpy import load_file


def main() -> int:
    """Compress and decompress; the exit status."""
    checkpoint, step, dependent, result = sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])), sys.argv[4]
    tensors = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in load_file(checkpoint).items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        stream = nnc.compress(dict(tensors), bitstream_path=None, qp=step, use_dq=dependent, return_bitstream=True)
        seconds = time.perf_counter() - start
        file = Path(folder) / "network.nnc"
        file.write_bytes(stream)
        decoded = nnc.decompress(str(file))
    np.savez(result, **decoded)
    print(len(stream), seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
