"""Folders that from_pretrained of transformers loads, with coded weights: model.safetensors holds a .opq file of each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq.atomic_file import write_file
from opq.codec.file_reader import OpqFile
from opq.compression.compress import compress
from opq.compression.compressed_model import CompressedModel
from opq.config import CompressionConfig, Size
from opq.errors import OutputError, TargetError
from opq.progress import Progress
from opq.rate_distortion.plan import Plan
from opq.reporting.model_folder import copy_other_files, make_folder, refuse_files, transformers_config
from opq.reporting.safetensors_bytes import safetensors_bytes
from opq.text_table import file_summary
from opq.version import __version__

CODED = ":opq"
"""What follows the name of a weight in the name of the tensor that holds its .opq file, uint8 (bytes,)."""

METHOD = "opq"
"""The quant_method in config.json."""

LARGEST_SHARD = 5 * 10**9
"""Bytes of a .safetensors file from which on several are written."""

_START, _END = "<!-- opq -->", "<!-- /opq -->"


@dataclass(frozen=True)
class CodedFolder:
    """A folder that was written.

    Args:
        path: The folder.
        file_bytes: Bytes of its .safetensors files.
        dense_bytes: Bytes of all tensors in their dtypes.
        shards: Number of .safetensors files.
    """

    path: Path
    file_bytes: int
    dense_bytes: int
    shards: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        """The size in one line."""
        return file_summary(self.file_bytes, self.dense_bytes, None, None)


def compress_for_folder(source: Any, config: CompressionConfig | Plan, *, progress: Progress | bool = False) -> CompressedModel:
    """As `opq.compress`, but a byte target is that of the .safetensors files that `save_pretrained` writes.

    They are larger than the .opq file: each weight is a file of its own, and all other tensors are kept as they are.

    Raises:
        TargetError: The target cannot be reached.
        SourceError, SelectionError, WeightError, PlanError: See `opq.compress`.
    """
    compressed = compress(source, config, progress=progress)
    budget = None if isinstance(config, Plan) else config.budget(compressed.dense_bytes)
    if budget is None or isinstance(config, Plan):
        return compressed
    while (excess := _folder_bytes(compressed) - budget) > 0:
        if (size := compressed.file_bytes - excess) <= 0:
            raise TargetError(
                f"{config.target} is out of reach for a folder: what is not quantized takes more; give a .opq file"
            )
        compressed = compress(source, replace(config, target=Size(size)), progress=progress)
    return compressed


def save_pretrained(
    source: CompressedModel | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str],
    quality: str | None = None,
    overwrite: bool = True,
) -> CodedFolder:
    """Write a compressed network as a folder that transformers' from_pretrained loads after `import opq.transformers`.

        compressed = opq.compress("bert", ratio=8)
        opq.save_pretrained(compressed, "bert-small", like="bert")

    model.safetensors has a tensor of bytes for each weight, which is a .opq file of that weight alone, and all other tensors as
    they are. So it is larger than the .opq file. Weights are decoded while they are loaded. README.md has a section with
    the sizes.

    Args:
        source: The compressed network, or the path of its .opq file.
        folder: The folder, which is made if there is none.
        like: The folder that was compressed: its config, tokenizer and similar files are copied.
        quality: What was measured of the network's quality, a sentence for README.md. None: that nothing was.
        overwrite: Whether existing files are replaced.

    Raises:
        SourceError: `like` has no config of transformers, or one of a quantized network; or the file cannot be
            read.
        FormatError: The file is not valid.
        OutputError: A file cannot be written, or exists and `overwrite` is False.
    """
    folder, like = Path(folder), Path(like)
    config = transformers_config(like)
    if folder.exists() and folder.samefile(like):
        raise OutputError(folder, "it is the source that is being read; choose another path")
    if not overwrite:
        refuse_files(folder, "pass overwrite=True to replace them")
    make_folder(folder)
    copy_other_files(like, folder)
    with OpqFile(source.data if isinstance(source, CompressedModel) else source) as file:
        shards = list(_shards(file))
        sizes = [len(data) for data in _write_shards(folder, shards, file)]
        dense = sum(entry.dense_bytes for entry in file.entries)
    quantization = {"quant_method": METHOD, "version": __version__}
    _write_text(folder / "config.json", json.dumps({**config, "quantization_config": quantization}, indent=2) + "\n")
    written = CodedFolder(folder, sum(sizes), dense, len(sizes))
    card, kind = folder / "README.md", (config.get("architectures") or ["AutoModel"])[0]
    text = card.read_text(encoding="utf-8") if card.exists() else None
    _write_text(card, with_section(text, folder.name, section_of_card(written.file_bytes, dense, quality, kind)))
    return written


def coded(file: OpqFile, name: str) -> tuple[str, NDArray[np.generic]]:
    """The name and the tensor by which a tensor of a file is kept in model.safetensors."""
    if not file.entry(name).is_weight:
        return name, file.array(name)
    return name + CODED, np.frombuffer(file.alone(name), dtype=np.uint8)


def section_of_card(file_bytes: int, dense_bytes: int, quality: str | None, kind: str = "AutoModel") -> str:
    """The section of a model card.

    Args:
        file_bytes: Bytes of the weights' files.
        dense_bytes: Bytes of all tensors in their dtypes.
        quality: What was measured, a sentence.
        kind: The network's class in transformers.
    """
    return "\n".join(
        [
            _START,
            "## Compression",
            "",
            f"The weights take {file_bytes:,} bytes in place of {dense_bytes:,}: they are {dense_bytes / file_bytes:.1f} times "
            f"smaller, quantized and entropy coded by opq {__version__}. Loading decodes them to the dtype of the config.",
            "",
            f"Quality: {quality or 'not measured.'}",
            "",
            "```python",
            "import opq.transformers  # without it, transformers takes random weights",
            f"from transformers import {kind}",
            "",
            f'model = {kind}.from_pretrained("THIS FOLDER OR REPOSITORY")',
            "```",
            _END,
        ]
    )


def with_section(card: str | None, title: str, section: str) -> str:
    """A model card with the section, in place of an earlier one or at its end.

    Args:
        card: The text of the card; None if there is none.
        title: Title of a new card.
        section: As `section_of_card` makes it.
    """
    if card is None:
        return f"---\nlibrary_name: transformers\ntags:\n- opq\n---\n\n# {title}\n\n{section}\n"
    start, end = card.find(_START), card.find(_END)
    if 0 <= start < end:
        return card[:start] + section + card[end + len(_END) :]
    return f"{card.rstrip()}\n\n{section}\n"


def _shards(file: OpqFile) -> Iterator[list[str]]:
    """Names of the tensors of each .safetensors file, in order."""
    names: list[str] = []
    size = 0
    for entry in file.entries:
        stored = file.section_bytes(entry.section) if entry.is_weight else entry.dense_bytes
        if names and size + stored > LARGEST_SHARD:
            yield names
            names, size = [], 0
        names.append(entry.name)
        size += stored
    if names:
        yield names


def _folder_bytes(compressed: CompressedModel) -> int:
    """Bytes of the .safetensors files."""
    with OpqFile(compressed.data) as file:
        metadata = _metadata(file)
        return sum(
            len(safetensors_bytes(dict(coded(file, name) for name in names), metadata, "the folder")) for names in _shards(file)
        )


def _metadata(file: OpqFile) -> dict[str, str]:
    return {**file.metadata, "format": "pt"}  # transformers refuses a file without a format


def _write_shards(folder: Path, shards: list[list[str]], file: OpqFile) -> Iterator[bytes]:
    """Write the .safetensors files, and their index if there are several; their bytes.

    Those of an earlier network are removed at the end, since from_pretrained could take them.
    """
    metadata = _metadata(file)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        path = folder / ("model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors")
        tensors = dict(coded(file, name) for name in names)
        places |= dict.fromkeys(tensors, path.name)
        data = safetensors_bytes(tensors, metadata, path)
        write_file(path, data, overwrite=True)
        yield data
    index = folder / "model.safetensors.index.json"
    if len(shards) > 1:
        _write_text(index, json.dumps({"metadata": {}, "weight_map": places}, indent=2) + "\n")
    else:
        index.unlink(missing_ok=True)
    for path in (folder / "model.safetensors", *folder.glob("model-*-of-*.safetensors")):
        if path.name not in places.values():
            path.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    write_file(path, text.encode(), overwrite=True)
