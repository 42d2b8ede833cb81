"""The format of a checkpoint file, recognised by its first bytes; and the limit on the memory that its tensors may take."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from opq.errors import SourceError

_HEAD = 64
_LONGEST_HEADER = 100_000_000  # safetensors' own limit
_KNOWN = "expected safetensors, PyTorch, .npz, GGUF, HDF5, .keras or ONNX"
_MAGIC = (
    (b"GGUF", "gguf"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x80", "pickle"),  # every pickle of protocol 2 and above
)
_ONNX = re.compile(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]")
"""The version of a ModelProto, and the tag of its next field."""
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file; run git lfs pull"),
    (b"\x93NUMPY", "a single NumPy array without a name; save it with numpy.savez"),
    (b"\x1f\x8b", "a gzip file; unpack it"),
    (b"\xfd7zXZ", "an xz file; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it"),
    (b"BZh", "a bzip2 file; unpack it"),
    (b"OPQ", "a .opq file, which is compressed already; `opq expand` gives its tensors"),
    (b"OPD", "a delta; `opq expand --base` gives its tensors"),
    (b"<", "a web page or XML"),
)


def kind_of(path: Path) -> str:
    """The format of a file.

    Args:
        path: The file; its name does not matter.

    Returns:
        "safetensors", "torch", "torchscript", "pickle" (PyTorch's format before 1.6), "npz", "gguf", "hdf5", "keras",
        "onnx", or "index" for a JSON file.

    Raises:
        SourceError: The file cannot be read, or is of no known format. The error names the format if it is a known one.
    """
    try:
        if not path.is_file():
            raise SourceError(path, "not a regular file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise SourceError(path, error.strerror or str(error)) from None
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"{") and path.suffix == ".json":
        return "index"
    if path.suffix.lower() in (".safetensors", ".sft"):
        raise SourceError(path, f"not a safetensors file: it begins with {head[:8]!r}")
    what = next((words for magic, words in _OTHERS if head.startswith(magic)), None)
    if what is None and (_ONNX.match(head) or path.suffix.lower() == ".onnx"):
        return "onnx"
    if what is None:
        what = f"it begins with {head[:8]!r}" if head else "it is empty"
    raise SourceError(path, f"not a checkpoint: {what}; {_KNOWN}")


def allowed_bytes(path: Path) -> int:
    """The most bytes that the tensors of a file may take in memory: 64 MiB, and 64 times the file.

    Archives may be deflated, and a tensor may repeat its elements, so a small file could otherwise fill any amount of memory.
    """
    return (64 << 20) + 64 * path.stat().st_size


def check_memory(path: Path, sizes: Iterable[tuple[str, int]]) -> None:
    """Refuse tensors that together take more memory than `allowed_bytes`.

    Args:
        path: Their file.
        sizes: (name, bytes) of each tensor.

    Raises:
        SourceError: They do.
    """
    total, allowed = 0, allowed_bytes(path)
    for name, size in sizes:
        total += size
        if total > allowed:
            raise SourceError(path, f"with {name!r} its tensors take {total:,} bytes; a file of its size may have {allowed:,}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names, size = archive.namelist(), sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(path, f"a damaged checkpoint ({error}); save it again") from None
    if size > allowed_bytes(path):
        raise SourceError(path, f"a zip archive that unpacks to {size:,} bytes, more than 64 times its own and 64 MiB")
    inner = [name.partition("/")[2] for name in names]
    if "data.pkl" in inner:
        return "torchscript" if "constants.pkl" in inner or any(name.startswith("code/") for name in inner) else "torch"
    if "model.weights.h5" in names:
        return "keras"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise SourceError(path, f"a zip archive of other things, such as {names[:1]}; {_KNOWN}")
