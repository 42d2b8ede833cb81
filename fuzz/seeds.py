"""The seeds of the fuzzers: `python fuzz/seeds.py FOLDER` writes them, in this version of the format."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from codec_strategies import encode_file, leveled_as, scaled_as, small_file, stepped, trellised_as
from delta_laws import SEEDS as DELTAS

from opq.codec.file_writer import pack_auxiliary, write

_CODES = np.array([[1, -2, 0, 9], [0, 3, -300, 1]], dtype=np.int32)
_WEIGHT = stepped(_CODES, 0.5)
_KERNELS = stepped(np.tile(_CODES.reshape(2, 1, 2, 2), (2, 3, 1, 1)), 0.25, "bfloat16")
_WIDE = stepped(np.array([2**24 - 1, -(2**20), 7, 0], dtype=np.int32), 1.0, "float64")
_LEVELS = leveled_as(np.array([[1, -2, 0, 1], [0, 3, -1, 1]], dtype=np.int32), np.array([-2, -0.5, 0.1, 1, 7], "f2"))
_TRELLIS = trellised_as(_CODES, 0.5)
_SCALED = scaled_as(_CODES, 0.5, rows=[8, -3])
_BOTH = scaled_as(_CODES.reshape(2, 1, 2, 2), 0.25, "float64", rows=[-127, 0], columns=[1, 0, 127, -8])
_THIN = np.tile(np.array([0, 0, 0, 0, 0, 0, 0, 1] * 8, dtype=np.int32), (65, 1))
_THIN[40, :5] = 1000, -3, 2, 1, -1
_FAST = stepped(_THIN, 0.5)
_PLANES = {
    "bytes": np.repeat(np.array([3, 40, 3, 41, 200, 3, 0, 90, 9] * 2, dtype=np.uint8), 256)[:4157],
    "floats": np.where(_THIN.reshape(-1)[:4099] > 0, np.float16(-1.5), np.float16(0.25)),
}
_AUXILIARY = {
    "bias": np.arange(30, dtype=np.float32) / 7,
    "flags": np.array([True, False]),
    "steps": np.array(12345),
    "nothing": np.zeros((0, 3), dtype=np.float16),
}

SEEDS = {
    "small": small_file(),
    "empty": encode_file({}),
    "weight": encode_file({"w": _WEIGHT}),
    "kernels": encode_file({"w": _KERNELS}),
    "wide": encode_file({"w": _WIDE}),
    "tied": encode_file({"a": _WEIGHT, "b": _WEIGHT}),
    "scaled": encode_file({"a": _SCALED, "b": replace(_SCALED, dtype="float16")}),
    "both": encode_file({"w": _BOTH}),
    "levels": encode_file({"w": _LEVELS}),
    "trellis": encode_file({"a": _TRELLIS, "b": replace(_TRELLIS, dtype="float64")}),
    "fast": encode_file({"w": _FAST}, speed="fast"),
    "fast trellis": encode_file({"w": trellised_as(_THIN, 0.5)}, speed="fast"),
    "fast levels": encode_file({"w": leveled_as(np.sign(_THIN), np.array([-2, 3], dtype=np.float16))}, speed="fast"),
    "planes": b"".join(write({}, packs=pack_auxiliary(_PLANES.items(), "exact", speed="fast")).pieces()),
    "grids": encode_file({"a": np.linspace(0.5, 0.9, 16, dtype=np.float32), "b": np.linspace(-1.0, 1.0, 17)}, "uint8"),
    "pack": encode_file(_AUXILIARY, "float16", {"key": "value"}),
}
"""{name: bytes of a whole file}"""


if __name__ == "__main__":
    for kind, seeds in {"reader": SEEDS, "deltas": DELTAS}.items():
        folder = Path(sys.argv[1]) / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (folder / name).write_bytes(data)
