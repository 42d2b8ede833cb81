"""The SqueezeNet of Deep Compression, stored without loss, compared with its published file.

Claim: opq's lossless file of the published network takes at most 78% of the bytes of the published file.

    python benchmarks/squeezenet.py

The tensors are those of the published file, decoded: pruned weights with up to 255 levels per layer, and biases, float32. All
bits are read back and compared. Seconds are medians of 3 rounds.

published_bytes  the published file: relative indices and codebooks, not entropy coded
opq_bytes        the whole .opq file
entropy_bytes    zero-order entropy of each layer's code indices, its levels with 4 bytes each, and the biases
codes_bytes, levels_bytes, biases_bytes, header_bytes  the bytes of the .opq file by kind, checksums with the header
opq_share, entropy_share  as a share of the published bytes
encode_seconds, decode_seconds  `opq.numpy.save` and `opq.numpy.load`
"""

from __future__ import annotations

import numpy as np
from harness import Case, Row, data_file, entropy_bytes, measure_seconds, print_rows, save_result
from numpy.typing import NDArray

import opq
import opq.numpy

PUBLISHED = "weights/squeezenet_v1.0_deep_compression.net"
DECODED = "weights/squeezenet_v1.0_deep_compression_decoded.npz"
REPEATS = 3

State = dict[str, NDArray[np.float32]]


def main() -> int:
    """Compress without loss, read back, compare; the exit status."""
    published = data_file(PUBLISHED).stat().st_size
    with np.load(data_file(DECODED)) as archive:
        state = dict(archive)
    data = opq.numpy.save(state, lossless=True)
    _check(state, opq.numpy.load(data))
    row = _row(state, data, published)
    print_rows([row])
    save_result("squeezenet", [row], seed=None)
    return 0


def _check(state: State, found: State) -> None:
    for name, array in state.items():
        if found[name].tobytes() != array.tobytes() or found[name].shape != array.shape:
            raise ValueError(f"opq does not give {name!r} back")


def _row(state: State, data: bytes, published: int) -> Row:
    seconds = measure_seconds(
        {
            "encode": Case(lambda: opq.numpy.save(state, lossless=True)),
            "decode": Case(lambda: opq.numpy.load(data)),
        },
        REPEATS,
    )
    sizes = opq.inspect(data).bytes_by_kind
    entropy = sum(_coded_bytes(array) if array.ndim > 1 else array.nbytes for array in state.values())
    return {
        "case": "SqueezeNet 1.0",
        "weights": sum(array.size for array in state.values() if array.ndim > 1),
        "published_bytes": published,
        "opq_bytes": len(data),
        "entropy_bytes": round(entropy),
        "codes_bytes": sizes["codes"],
        "levels_bytes": sizes["levels"],
        "biases_bytes": sizes["biases"],
        "header_bytes": sizes["header"] + sizes["checksums"],
        "opq_share": len(data) / published,
        "entropy_share": entropy / published,
        "encode_seconds": seconds["encode"].median,
        "decode_seconds": seconds["decode"].median,
    }


def _coded_bytes(weight: NDArray[np.float32]) -> float:
    """Entropy of the indices of its levels, and the levels except zero."""
    return entropy_bytes(weight) + 4.0 * np.count_nonzero(np.unique(weight))


if __name__ == "__main__":
    raise SystemExit(main())
