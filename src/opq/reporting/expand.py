"""Convert a .opq file to a .safetensors checkpoint, alone or in a folder that from_pretrained loads, or to an ONNX model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opq.atomic_file import refuse_existing, refuse_same, write_file
from opq.checkpoints.opq_state import open_file, parts_of
from opq.codec.file_reader import OpqFile
from opq.compression.delta import complete_file
from opq.errors import ConfigError, OutputError, SourceError
from opq.progress import Progress, logger, show_progress
from opq.reporting.model_folder import checkpoint_name, copy_other_files, has_config, make_folder, refuse_files
from opq.reporting.onnx_export import CHOICES, onnx_model
from opq.reporting.safetensors_bytes import safetensors_bytes

_SAFETENSORS = (".safetensors", ".sft")
_OTHER_FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".npz", ".opq", ".h5", ".keras", ".gguf")
_ONNX, _OPQ = ".onnx", ".opq"


@dataclass(frozen=True)
class Expansion:
    """A checkpoint that was written.

    Args:
        tensors: Number of tensors.
        file_bytes: Size of the checkpoint, and of data beside an ONNX model.
        path: The .safetensors or .onnx file.
        integers: {weight: bits of its codes} of those that are integers in an ONNX model.
        floats: {weight: why it stays in floating point} of the others, if integers were requested.
    """

    tensors: int
    file_bytes: int
    path: Path
    integers: Mapping[str, int] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)


def expand(
    source: str | os.PathLike[str] | bytes,
    output: str | os.PathLike[str],
    *,
    base: Any = None,
    like: str | os.PathLike[str] | None = None,
    weights: str = "float",
    overwrite: bool = True,
    progress: Progress | bool = False,
) -> Expansion:
    """Write every tensor of a .opq file, with its name, shape and dtype, to a .safetensors file; or to an ONNX model.

    Args:
        source: The .opq file, by path or as bytes.
        output: Path of the .safetensors file; or of a folder, which is made if there is none. A path that ends in .safetensors
            or .sft is a file. In a folder the file has the name that from_pretrained looks for, and lies beside copies of the
            config, the tokenizer and the other files of `like` that are no weights. A path that ends in .onnx is an ONNX model,
            if the .opq file was made from one; if its tensors take more than 2 GiB, they are in a file beside it, with ".data"
            behind its name. Of a delta it may also end in .opq, if its base is a .opq file.
        base: Of a delta, what it was made from, as in `opq.compress`.
        like: The folder of the network before it was compressed. None: that of the source, if it has a config.
        weights: Of an ONNX model: "float"; "int8" or "int4" for integers of 8 or 4 bits where nearly all codes of a weight fit,
            which the model multiplies by their steps; "auto" for 4 bits where all codes fit, and 8 otherwise. The values are
            the same in all.
        overwrite: Whether existing files are replaced.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Returns:
        The number of tensors, and the size and path of the checkpoint.

    Raises:
        ConfigError: `weights` is none of these, or not "float" for a checkpoint.
        SourceError: The source cannot be read, the base is another one than that of the delta, or `like` is not a folder.
        FormatError: The source is not a valid file.
        OutputError: The output cannot be written, is the source or `like`, exists and `overwrite` is False, or has the suffix
            of another format; safetensors cannot store a tensor; or an ONNX model is requested of a file that has no graph.
        MissingExtraError: onnx is not installed.
    """
    output = Path(output)
    is_onnx = output.suffix.lower() == _ONNX and not output.is_dir()
    _check_weights(weights, is_onnx)
    for read in (source, *parts_of(base)):
        if isinstance(read, (str, os.PathLike)):
            refuse_same(read, output)
    if like is not None:
        _check_like(Path(like), output)
    if not overwrite:
        check_output(output)
    if base is not None and output.suffix == _OPQ:
        layout = complete_file(source, base)
        write_file(output, layout.pieces(), overwrite=overwrite)
        return Expansion(len(layout.entries), layout.size, output)
    is_file = _is_file(output)
    if is_file and like is not None:
        raise OutputError(output, "only a folder can be like another one; choose a path without a suffix")
    if is_onnx:
        if base is not None:
            raise OutputError(output, "a delta has no graph; expand it to a .opq file, and that to an ONNX model")
        with show_progress(progress) as report:
            return _write_onnx(source, output, weights, overwrite, report)
    folder = Path(like) if like is not None else None if isinstance(source, bytes) else Path(source).parent
    path = output if is_file else output / checkpoint_name(folder or output)
    with open_file(source, base) as file, show_progress(progress) as report:
        tensors, metadata = file.arrays(report), dict(file.metadata)
    if not is_file:
        metadata.setdefault("format", "pt")  # transformers refuses a file without it
        make_folder(output)
    data = safetensors_bytes(tensors, metadata, path)
    write_file(path, data, overwrite=overwrite)
    if not is_file and folder is not None and (like is not None or has_config(folder)):
        copy_other_files(folder, output)
    if not is_file and not has_config(output):
        logger.warning("%s: it has no config, so from_pretrained cannot load it; like=FOLDER (--like) copies one", output)
    return Expansion(len(tensors), len(data), path)


def _check_weights(weights: str, is_onnx: bool) -> None:
    if weights not in CHOICES:
        raise ConfigError(f"weights must be one of {', '.join(CHOICES)}, got {weights!r}")
    if weights != "float" and not is_onnx:
        raise ConfigError(f"weights (={weights!r}) are for an ONNX model; choose a path that ends in .onnx")


def _write_onnx(
    source: str | os.PathLike[str] | bytes, path: Path, weights: str, overwrite: bool, report: Progress
) -> Expansion:
    with OpqFile(source) as file:
        made = onnx_model(file, path, weights, report)
    size = 0
    for name, data in made.files(path):
        write_file(name, data, overwrite=overwrite)
        size += sum(map(len, data))
    return Expansion(made.tensors, size, path, made.integers, made.floats)


def check_output(output: str | os.PathLike[str], remedy: str = "pass overwrite=True to replace it") -> None:
    """Check that `expand` replaces nothing.

    Args:
        output: The file or folder.
        remedy: What to do if something would be replaced; the end of the message.

    Raises:
        OutputError: The file exists, or the folder has files.
    """
    path = Path(output)
    if path.suffix == _OPQ or _is_file(path):
        refuse_existing(path, remedy)
    else:
        refuse_files(path, remedy)


def _is_file(output: Path) -> bool:
    """Whether an output is a .safetensors or .onnx file rather than a folder."""
    suffix = output.suffix.lower()
    if suffix == _ONNX and not output.is_dir():
        return True
    if output.is_dir() or (suffix not in _SAFETENSORS and suffix not in _OTHER_FORMATS and not output.exists()):
        return False
    if suffix in _OTHER_FORMATS:
        raise OutputError(
            output,
            f"it would hold a .safetensors checkpoint, and {suffix} is the suffix of another format; "
            "choose a path that ends in .safetensors, or in .onnx if the .opq file was made from an ONNX model",
        )
    return True


def _check_like(folder: Path, output: Path) -> None:
    if not folder.is_dir():
        raise SourceError(folder, "not a folder")
    if output.is_dir() and output.samefile(folder):
        raise OutputError(output, "it is the source that is being read; choose another path")
