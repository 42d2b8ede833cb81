"""Checkpoints in safetensors files: a single file, or shards."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from opq import dtypes
from opq.checkpoints.file_state import FileState, TensorPlace, contents_of
from opq.checkpoints.folder import Shards, merge_shards
from opq.checkpoints.wrappers import without_prefixes
from opq.errors import SourceError

_DTYPES = {header: name for name, header in dtypes.SAFETENSORS.items()}


class SafetensorsState(FileState):
    """The tensors of one or more .safetensors files.

    Args:
        shards: {file: names of its tensors by an index, or None}. Tensors that the index does not name are read too.

    Raises:
        SourceError: A file cannot be read, or has no tensor of a given name.
    """

    def __init__(self, shards: Shards) -> None:
        found: dict[Path, dict[str, TensorPlace]] = {}
        metadata: dict[str, str] = {}
        for path in shards:
            found[path], texts = _read_index(path)
            metadata.update(texts)
        places = merge_shards(shards, found)
        super().__init__({short: places[name] for short, name in without_prefixes(places).items()})
        self.metadata = metadata


def _read_index(path: Path) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """The places of a file's tensors, and its metadata. The safetensors library checks the header, but gives no offsets."""
    try:
        with safe_open(str(path), framework="numpy"):
            pass
        with path.open("rb") as file:
            contents = contents_of(file)
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise SourceError(path, "no such file") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise SourceError(path, f"not a safetensors file: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    places = {
        name: TensorPlace(
            path,
            contents,
            8 + length + tensor["data_offsets"][0],
            _DTYPES.get(tensor["dtype"], tensor["dtype"]),
            tuple(tensor["shape"]),
        )
        for name, tensor in header.items()
    }
    return places, metadata
