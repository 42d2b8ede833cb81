"""Folders in the layouts of transformers, diffusers and PEFT: which of their files hold the checkpoint."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from opq.errors import SourceError
from opq.progress import logger

_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")
_STEM = "|".join(_STEMS)
_WHOLE = re.compile(rf"({_STEM})(\.[\w-]+)?\.(safetensors|bin)")
_INDEX = re.compile(rf"({_STEM})(\.[\w-]+)?\.(safetensors|bin)\.index(\.[\w-]+)?\.json")
_SHARD = re.compile(r".*-\d+-of-\d+(\.[\w-]+)?\.(safetensors|bin)")


T = TypeVar("T")

Shards = dict[Path, list[str] | None]
"""The files of a checkpoint: {file: names of its tensors by the index, or None if there is no index}."""


@dataclass(frozen=True)
class _Candidate:
    """A file of a folder that could be its checkpoint, or the index of such files."""

    path: Path
    stem: str
    variant: str
    is_index: bool
    format: str

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """The key by which candidates are sorted; the first one is read."""
        return self.variant != "", self.format != "safetensors", self.is_index


def find_shards(folder: Path) -> Shards:
    """The files of the checkpoint in a folder.

    A file without a variant is preferred to one with a variant, .safetensors to .bin, and a whole file to an index. A warning
    names the other files.

    Args:
        folder: The folder.

    Raises:
        SourceError: There is none, or there are several of which none comes first; or an index is not valid.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise SourceError(folder, error.strerror or str(error)) from None
    candidates = sorted(filter(None, map(_candidate, files)), key=lambda candidate: candidate.rank)
    if not candidates:
        return _other(folder, files)
    first = candidates[0]
    networks = {"model" if candidate.stem == "pytorch_model" else candidate.stem for candidate in candidates}
    rivals = [c for c in candidates if c.rank == first.rank and c.variant != first.variant] if first.variant else []
    if len(networks) > 1 or rivals:
        raise SourceError(folder, f"it has several checkpoints: {_names(candidates)}; give the path of one")
    if len(candidates) > 1:
        logger.warning("%s: read %s, ignored %s", folder, first.path.name, _names(candidates[1:]))
    return read_index(first.path) if first.is_index else {first.path: None}


def read_index(index: Path) -> Shards:
    """The shards of an index.

    Args:
        index: A JSON file, whose "weight_map" is {tensor: file}.

    Raises:
        SourceError: The file cannot be read or is no index, or a shard is not in its folder.
    """
    shards: Shards = {}
    try:
        for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            # An index is untrusted, so it must not name files outside of its folder.
            if Path(file).name != file:
                raise SourceError(index, f"shard {file!r:.200} is not in this folder")
            names = shards.setdefault(index.parent / file, [])
            if names is not None:
                names.append(name)
    except RecursionError:
        raise SourceError(index, "not an index of shards: it is nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SourceError(index, f"not an index of shards: {error!r:.200}") from None
    if not shards:
        raise SourceError(index, "not an index of shards: it names no tensor")
    first = next(iter(shards)).name
    siblings = sorted(path.name for path in index.parent.glob(f"{glob.escape(first.split('-')[0])}-*") if path not in shards)
    if left := [name for name in siblings if _SHARD.fullmatch(name) and name.split(".")[1:] == first.split(".")[1:]]:
        logger.warning("%s: ignored %s, which the index does not list", index.parent, ", ".join(left[:4]))
    return shards


def _candidate(path: Path) -> _Candidate | None:
    if match := _WHOLE.fullmatch(path.name):
        stem, variant, form = match.groups()
        return None if _SHARD.fullmatch(path.name) else _Candidate(path, stem, variant or "", False, form)
    if match := _INDEX.fullmatch(path.name):
        stem, variant, form, late = match.groups()
        return _Candidate(path, stem, variant or late or "", True, form)
    return None


def _other(folder: Path, files: list[Path]) -> Shards:
    """The single .safetensors file of a folder without any of the usual names."""
    others = [path for path in files if path.suffix.lower() == ".safetensors"]
    if len(others) == 1:
        return {others[0]: None}
    if others:
        raise SourceError(folder, f"it has {len(others)} .safetensors files and no index; give the path of one")
    if (folder / "model_index.json").exists():
        raise SourceError(folder, "a pipeline of several networks; give the path of one of its folders")
    raise SourceError(folder, "expected model.safetensors.index.json or model.safetensors, or the same of pytorch_model.bin, "
                      "diffusion_pytorch_model or adapter_model, in the folder")  # fmt: skip


def _names(candidates: list[_Candidate]) -> str:
    return ", ".join(candidate.path.name for candidate in candidates[:5])


def merge_shards(shards: Shards, found: Mapping[Path, Mapping[str, T]]) -> dict[str, T]:
    """The tensors of all files of a checkpoint. If several files have a tensor, the index decides which one is read.

    Args:
        shards: The files, as `read_index` gives them.
        found: {file: {name: tensor}} of each of them.

    Returns:
        {name: tensor}, first those that the index lists.

    Raises:
        SourceError: A file lacks a tensor that the index lists for it.
    """
    listed: dict[str, T] = {}
    others: dict[str, T] = {}
    for path, names in shards.items():
        tensors, wanted = found[path], set(found[path] if names is None else names)
        if missing := sorted(wanted.difference(tensors)):
            raise SourceError(path, f"it does not have {missing[0]!r}, which the index lists for it")
        for name, tensor in tensors.items():
            (listed if name in wanted else others)[name] = tensor
    others = {name: tensor for name, tensor in others.items() if name not in listed}
    if others:
        folder, first = next(iter(shards)).parent, next(iter(others))
        logger.warning("%s: read %d tensors that the index does not list, such as %r", folder, len(others), first)
    return {**listed, **others}
