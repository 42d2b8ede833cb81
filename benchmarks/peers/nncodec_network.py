"""A whole network through NNCodec: the bytes of its stream, and the weights that come back.

    PEERS/bin/python benchmarks/peers/nncodec_network.py CHECKPOINT.safetensors FOLDER

benchmarks/allocation.py and benchmarks/peers.py run this (peering.py). A line says [QP, dependent, sparsity]: dependent
(trellis) or uniform quantization; all else is the package's default, which codes tensors that are no weights at a fine step.
With a sparsity other than 0 the package's own sparsification goes first: thresholds by each tensor's deviation until that
share of all parameters is zero (`nncodec.nn.encode`, whose structured sparsification, meant for networks that train on, is
off). The answer is null; the stream is FOLDER/network.nnc, what comes back FOLDER/decoded.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import before_nncodec  # noqa: F401
import numpy as np
from answering import answer_lines
from nncodec import nn, nnc
from safetensors.numpy import load_file


def main() -> int:
    """Compress and decompress as asked; the exit status."""
    checkpoint, folder = sys.argv[1:]
    dense = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in load_file(checkpoint).items()}
    file = Path(folder) / "network.nnc"

    def answer(question: tuple[int, bool, float]) -> None:
        file.write_bytes(compress({name: tensor.copy() for name, tensor in dense.items()}, *question, folder))
        np.savez(Path(folder) / "decoded.npz", **nnc.decompress(str(file)))

    return answer_lines(answer)


def compress(tensors: dict[str, Any], step: int, dependent: bool, sparsity: float, folder: str) -> Any:
    """The stream of a network."""
    if sparsity:
        settings = {"qp": step, "use_dq": dependent, "sparsity": sparsity, "struct_spars_factor": 0.0, "results": folder}
        return nn.encode(tensors, settings, epoch=1)
    return nnc.compress(tensors, bitstream_path=None, qp=step, use_dq=dependent, return_bitstream=True)


if __name__ == "__main__":
    raise SystemExit(main())
