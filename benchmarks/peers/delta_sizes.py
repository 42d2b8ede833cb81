"""The bytes of other tools for a checkpoint given an earlier one, with the round trip checked.

    PEERS/bin/python benchmarks/peers/delta_sizes.py

benchmarks/deltas.py runs this script (peering.py). A line is [tool, old, new]:

z4ai      the smaller one of `z4ai.compress_delta` of the two files and `z4ai.model_delta` of their tensors
zstd      the program `zstd -19 --patch-from`, of the system
nncodec   OLD.npz and NEW.npz are integer codes. The smallest one of three streams: of the new ones with temporal context
          adaptation (`tca`), after the old ones were encoded in the same state; of these without it; and of the differences

The answer is [bytes, seconds of encoding, seconds of decoding].
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import before_nncodec  # noqa: F401
import numpy as np
import z4ai
from answering import answer_lines
from nncodec import nnc
from z4ai import model_delta


def main() -> int:
    """Answer until the input ends; the exit status."""
    tools = {"z4ai": with_z4ai, "zstd": with_zstd, "nncodec": with_nncodec}
    return answer_lines(lambda question: tools[question[0]](*question[1:]))


def with_z4ai(old: str, new: str) -> list[float]:
    """The smaller delta of both kinds."""
    before, after = Path(old).read_bytes(), Path(new).read_bytes()
    kind = "bf16" if ".bf16" in new else "fp32"
    found = []
    for encode, decode in (
        (lambda: z4ai.compress_delta(after, before, dtype=kind), z4ai.decompress_delta),
        (lambda: model_delta.compress(after, before), model_delta.decompress),
    ):
        found.append(_timed(encode, lambda data, decode=decode: decode(data, before), after))
    return min(found)


def with_zstd(old: str, new: str) -> list[float]:
    """The patch of the program zstd."""
    with tempfile.TemporaryDirectory() as folder:
        patch, back = Path(folder) / "patch", Path(folder) / "back"
        start = time.perf_counter()
        subprocess.run(["zstd", "-q", "-19", f"--patch-from={old}", new, "-o", patch], check=True)
        middle = time.perf_counter()
        subprocess.run(["zstd", "-q", "-d", "--long=31", f"--patch-from={old}", patch, "-o", back], check=True)
        end = time.perf_counter()
        if back.read_bytes() != Path(new).read_bytes():
            raise ValueError("the round trip gives other bytes")
        return [patch.stat().st_size, middle - start, end - middle]


def with_nncodec(old: str, new: str) -> list[float]:
    """The stream of new codes after that of old ones."""
    before, after = ({name: file[name] for name in file.files} for file in (np.load(old), np.load(new)))
    found = []
    for temporal in (False, True):
        bases: list[dict[str, Any]] = [
            {"parameters": {}, "put_node_depth": {}, "device_id": 0, "parameter_id": {}} for _ in "ed"
        ]
        first = _nncodec(before, bases[0], temporal)
        nnc.decompress(first, approx_param_base=bases[1], update_base_param=True)
        start = time.perf_counter()
        data = _nncodec(after, bases[0], temporal)
        middle = time.perf_counter()
        back = nnc.decompress(data, approx_param_base=bases[1], update_base_param=True)
        found.append([len(data), middle - start, time.perf_counter() - middle])
        _check(back, after)
    start = time.perf_counter()
    data = _nncodec({name: after[name] - before[name] for name in after}, None, False)
    middle = time.perf_counter()
    back = {name: before[name] + part for name, part in nnc.decompress(data).items()}
    found.append([len(data), middle - start, time.perf_counter() - middle])
    _check(back, after)
    return min(found)


def _nncodec(tensors: dict[str, Any], base: dict[str, Any] | None, temporal: bool) -> Any:
    settings = {"use_dq": False, "row_skipping": True, "tca": temporal, "return_bitstream": True, "bitstream_path": None}
    return nnc.compress(dict(tensors), approx_param_base=base, update_base_param=base is not None, **settings)


def _check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    if any(not np.array_equal(found[name], codes) for name, codes in expected.items()):
        raise ValueError("NNCodec does not give the codes back")


def _timed(encode: Any, decode: Any, expected: bytes) -> list[float]:
    start = time.perf_counter()
    data = encode()
    middle = time.perf_counter()
    if bytes(decode(data)) != expected:
        raise ValueError("the round trip gives other bytes")
    return [len(data), middle - start, time.perf_counter() - middle]


if __name__ == "__main__":
    raise SystemExit(main())
