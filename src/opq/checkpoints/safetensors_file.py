"""Checkpoints in safetensors files: a single file, or shards."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from opq import dtypes
from opq.checkpoints.file_state import FileState, TensorPlace, contents_of
from opq.checkpoints.wrappers import without_prefixes
from opq.errors import SourceError
from opq.progress import logger

_DTYPES = {header: name for name, header in dtypes.SAFETENSORS.items()}


class SafetensorsState(FileState):
    """The tensors of one or more .safetensors files.

    Args:
        shards: {file: names of its tensors by an index, or None}. Tensors that the index does not name are read too.

    Raises:
        SourceError: A file cannot be read, or has no tensor of a given name.
    """

    def __init__(self, shards: Mapping[Path, list[str] | None]) -> None:
        places: dict[str, TensorPlace] = {}
        metadata: dict[str, str] = {}
        unnamed: dict[str, TensorPlace] = {}
        for path, listed in shards.items():
            names = None if listed is None else set(listed)
            found, texts = _read_index(path)
            if missing := sorted((names or set()) - set(found)):
                raise SourceError(path, f"it does not have {missing[0]!r}, which the index lists for it")
            places.update({name: found[name] for name in (found if names is None else names)})
            unnamed.update({name: place for name, place in found.items() if names is not None and name not in names})
            metadata.update(texts)
        warn_of_unnamed(unnamed := {name: place for name, place in unnamed.items() if name not in places}, shards)
        places.update(unnamed)
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


def warn_of_unnamed(names: Collection[str], shards: Iterable[Path]) -> None:
    """Log that shards have tensors that their index does not name, and that were taken.

    Args:
        names: The tensors.
        shards: The shards.
    """
    if names:
        folder, first = next(iter(shards)).parent, next(iter(names))
        logger.warning("%s: took %d tensors that the index does not name, such as %r", folder, len(names), first)
