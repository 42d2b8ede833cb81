"""Magika (Google, 2024): the type of a file from its bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

from unseen_networks.onnx_network import Decisions, package_file

FILES, ENDS, PADDING, LEAST = 200, 1024, 256, 8
"""Files; bytes that are read of each end of one; what stands for a missing byte; bytes of the smallest file."""


def magika() -> Decisions:
    """An embedding of bytes, convolutions, and 214 types. Its inputs are files of the Python installation."""
    model = package_file("magika/models/standard_v3_3/model.onnx")
    return Decisions("magika", "file types", model, [{"bytes": np.stack([_ends(path) for path in _some_files()])}])


def _some_files() -> list[Path]:
    """As many files of every ending as there are, in turns, in the order of names."""
    by_ending: dict[str, list[Path]] = {}
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size >= LEAST:
            by_ending.setdefault(path.suffix, []).append(path)
    chosen: list[Path] = []
    while len(chosen) < FILES and any(by_ending.values()):
        chosen += [paths.pop(len(paths) // 2) for paths in by_ending.values() if paths]
    return chosen[:FILES]


def _ends(path: Path) -> np.ndarray:
    """The first and the last bytes without white space, filled up behind the first and before the last, int32."""
    content = path.read_bytes()
    first, last = content[:4096].lstrip()[:ENDS], content[-4096:].rstrip()[-ENDS:]
    tokens = np.full(2 * ENDS, PADDING, np.int32)
    tokens[: len(first)] = np.frombuffer(first, np.uint8)
    tokens[2 * ENDS - len(last) :] = np.frombuffer(last, np.uint8)
    return tokens
