"""Sizes of the same network under general compressors: of its dense checkpoint, and of its codes."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq.codec.code_length import zero_order_entropy
from opq.codec.file_reader import OpqFile
from opq.progress import Progress, counted, show_progress
from opq.quantization.compressed_tensor import CompressedTensor
from opq.reporting.safetensors_bytes import safetensors_bytes
from opq.text_table import format_table, html_text
from opq.thread_map import thread_map

GZIP_LEVEL, ZSTD_LEVEL, XZ_LEVEL = 9, 19, 6
"""Compression levels."""


@dataclass(frozen=True)
class Comparison:
    """Bytes of the same tensors under other compressors.

    Args:
        opq_bytes: Size of the .opq file.
        code_bytes: Bytes of the file's weight sections, tables of levels included.
        dense_bytes: Size of the .safetensors checkpoint that `opq expand` writes.
        integer_bytes: Bytes of all codes, each weight's in the smallest integer type that holds them.
        entropy_bytes: Zero-order entropy of each weight's codes, summed, in bytes.
        dense: {"gzip -9": bytes, "zstd -19": bytes, "xz -6": bytes} of the checkpoint; None for zstd if it is not installed.
        codes: The same of the integers.
    """

    opq_bytes: int
    code_bytes: int
    dense_bytes: int
    integer_bytes: int
    entropy_bytes: float
    dense: dict[str, int | None]
    codes: dict[str, int | None]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain objects, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table with a row per compressor."""
        rows = [("opq", f"{self.opq_bytes:,}", f"{self.code_bytes:,}")]
        rows += [(method, _number(self.dense[method]), _number(self.codes[method])) for method in self.dense]
        rows.append(("entropy", "", f"{self.entropy_bytes:,.0f}"))
        rows.append(("uncompressed", f"{self.dense_bytes:,}", f"{self.integer_bytes:,}"))
        text = format_table(("", "whole checkpoint", "codes alone"), rows)
        return text if None not in self.dense.values() else f"{text}\nzstd is not installed: pip install 'opq[zstd]'"

    def __repr__(self) -> str:
        """Sizes of the whole checkpoint, in brackets."""
        others = ", ".join(f"{method} {_number(size)}" for method, size in self.dense.items())
        return f"<Comparison: opq {self.opq_bytes:,} bytes, {others}, uncompressed {self.dense_bytes:,}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))


def compare(source: str | os.PathLike[str] | bytes, *, progress: Progress | bool = False) -> Comparison:
    """Compress the tensors of a .opq file with gzip, zstd and xz. It takes about 3 s per 10 MB of dense tensors.

    Args:
        source: The file, by path or as bytes.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Returns:
        The sizes, which print as a table.

    Raises:
        SourceError: The file cannot be read.
        FormatError: It is not a valid file.
        OutputError: safetensors cannot store a tensor, such as one of complex128.
    """
    with OpqFile(source) as file:
        measured: dict[CompressedTensor, tuple[bytes, float]] = {}  # equal weights may be one object
        weights = [measured.get(weight) or measured.setdefault(weight, _measure(weight)) for _, weight in file.weights()]
        dense = safetensors_bytes(file.arrays(), file.metadata, "the tensors as .safetensors")
        coded = {entry.section for entry in file.entries if entry.is_weight}
        file_bytes, code_bytes = file.file_bytes, sum(map(file.section_bytes, coded))
    integers = b"".join(integers for integers, _ in weights)
    methods = _methods()
    jobs = [(method, data) for data in (dense, integers) for method in methods.values()]
    with show_progress(progress) as report:
        found = thread_map(lambda job: len(job[0](job[1])) if job[0] else None, jobs)
        sizes = list(counted(found, report, "compressing", len(jobs)))
    return Comparison(
        opq_bytes=file_bytes,
        code_bytes=code_bytes,
        dense_bytes=len(dense),
        integer_bytes=len(integers),
        entropy_bytes=sum(entropy for _, entropy in weights) / 8.0,
        dense=dict(zip(methods, sizes[: len(methods)], strict=True)),
        codes=dict(zip(methods, sizes[len(methods) :], strict=True)),
    )


def _methods() -> dict[str, Callable[[bytes], bytes] | None]:
    return {
        f"gzip -{GZIP_LEVEL}": lambda data: gzip.compress(data, GZIP_LEVEL, mtime=0),
        f"zstd -{ZSTD_LEVEL}": _zstd(),
        f"xz -{XZ_LEVEL}": lambda data: lzma.compress(data, preset=XZ_LEVEL),
    }


def _zstd() -> Callable[[bytes], bytes] | None:
    """Python's own zstd (3.14 and later), or the package zstandard; None if neither is installed."""
    try:
        builtin: Any = import_module("compression.zstd")
        return lambda data: bytes(builtin.compress(data, ZSTD_LEVEL))
    except ImportError:
        pass
    try:
        package: Any = import_module("zstandard")
    except ImportError:
        return None
    return lambda data: bytes(package.ZstdCompressor(level=ZSTD_LEVEL).compress(data))


def _measure(weight: CompressedTensor) -> tuple[bytes, float]:
    """What is coded in the smallest integer type that holds it, and its zero-order entropy in bits."""
    return _narrowed(weight.indices).tobytes(), zero_order_entropy(np.unique(weight.indices, return_counts=True)[1])


def _narrowed(codes: NDArray[np.int32]) -> NDArray[np.signedinteger[Any]]:
    largest = int(np.abs(codes).max(initial=0))
    return codes.astype(np.int8 if largest < 2**7 else np.int16 if largest < 2**15 else np.int32)


def _number(size: int | None) -> str:
    return "not installed" if size is None else f"{size:,}"
