"""A whole network through NNCodec: the bytes of its stream, and the weights that come back.

    PEERS/bin/python benchmarks/peers/nncodec_network.py CHECKPOINT.safetensors FOLDER

benchmarks/allocation.py and benchmarks/peers.py run this script (peering.py). A line is [QP, dependent, sparsity]: dependent
(trellis) or uniform quantization. Everything else has the package's defaults, which code tensors that are not weights at a fine
step. With a sparsity other than 0 the package's own sparsification runs first (`nncodec.nn.encode`, without its structured
sparsification, which is meant for training afterwards). It has no effect if quantization alone gives that share of zeros among
all parameters. Otherwise it raises a threshold, which starts at 0.26 standard deviations of each tensor, a quarter of its
weights, until the share is reached. The answer includes whether it had an effect. The stream is FOLDER/network.nnc, the decoded
tensors are in FOLDER/decoded.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import before_nncodec  # noqa: F401
import numpy as np
from answering import answer_lines
from nncodec import nn, nnc
from nncodec.framework.applications.utils.sparsification import apply_unstruct_spars_v2, get_sparsity
from safetensors.numpy import load_file


def main() -> int:
    """Answer requests to compress and decompress; the exit status."""
    checkpoint, folder = sys.argv[1:]
    dense = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in load_file(checkpoint).items()}
    file = Path(folder) / "network.nnc"

    def answer(question: tuple[int, bool, float]) -> bool:
        step, dependent, sparsity = question
        own = {name: tensor.copy() for name, tensor in dense.items()}
        alone = get_sparsity(apply_unstruct_spars_v2(step, own, 0.0, np.int32(nn.nncargs["qp_density"])))
        file.write_bytes(compress(own, step, dependent, sparsity, folder))
        np.savez(Path(folder) / "decoded.npz", **nnc.decompress(str(file)))
        return bool(alone < sparsity)

    return answer_lines(answer)


def compress(tensors: dict[str, Any], step: int, dependent: bool, sparsity: float, folder: str) -> Any:
    """The stream of a network."""
    if sparsity:
        settings = {"qp": step, "use_dq": dependent, "sparsity": sparsity, "struct_spars_factor": 0.0, "results": folder}
        return nn.encode(tensors, settings, epoch=1)
    return nnc.compress(tensors, bitstream_path=None, qp=step, use_dq=dependent, return_bitstream=True)


if __name__ == "__main__":
    raise SystemExit(main())
