"""Folders that from_pretrained of transformers, diffusers and PEFT loads: a checkpoint, its config, and a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from opq.atomic_file import refuse_existing
from opq.errors import OutputError, SourceError

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".opq", ".h5", ".keras", ".msgpack", ".gguf", ".onnx", ".ot", ".npz",
    ".index.json",
)  # fmt: skip
_MARKS = ("model_type", "architectures", "_class_name", "peft_type")


def checkpoint_name(folder: Path) -> str:
    """The name of the checkpoint that the library of a config loads: transformers', diffusers' or PEFT's.

    Args:
        folder: The folder with the config. Without one it is transformers' name.
    """
    if _config(folder / "adapter_config.json"):
        return "adapter_model.safetensors"
    of_diffusers = "_class_name" in _config(folder / "config.json")
    return "diffusion_pytorch_model.safetensors" if of_diffusers else "model.safetensors"


def transformers_config(folder: Path) -> dict[str, Any]:
    """The config of a network of transformers.

    Raises:
        SourceError: The folder has none, or the network is quantized.
    """
    config = _config(folder / "config.json")
    if "model_type" not in config and "architectures" not in config:
        raise SourceError(folder, "it has no config.json of a transformers network")
    if (quantized := config.get("quantization_config")) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise SourceError(folder, f"its weights are quantized (quant_method {method!r}); compress the original network")
    return config


def has_config(folder: Path) -> bool:
    """Whether a folder has a config that from_pretrained reads."""
    return any(_config(folder / name) for name in ("config.json", "adapter_config.json"))


def make_folder(folder: Path) -> None:
    """Make a folder, unless there is one; OutputError if that fails."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(folder, error.strerror or str(error)) from None


def refuse_files(folder: Path, remedy: str) -> None:
    """Raise OutputError if a path is a file, or a folder that has files.

    Args:
        folder: The path.
        remedy: What to do, the end of the message.
    """
    if not folder.is_dir():
        refuse_existing(folder, remedy)
    elif any(folder.iterdir()):
        raise OutputError(folder, f"it has files; {remedy}")


def copy_other_files(source: Path, target: Path) -> None:
    """Copy the files of a folder that are no weights: config, tokenizer, texts. Hidden files are not copied.

    Of the folders in it only those with a config.json of their own are copied, such as sentence-transformers' modules.

    Args:
        source: The folder to copy from; links are followed.
        target: The folder to copy to. Files of the same names are replaced.

    Raises:
        OutputError: A file cannot be copied.
    """
    if target.exists() and source.samefile(target):
        return
    modules = (path for path in source.iterdir() if (path / "config.json").is_file() and not _is_same(path, target))
    try:
        for file in (file for folder in (source, *modules) for file in _other_files(folder)):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    except OSError as error:
        raise OutputError(target, error.strerror or str(error)) from None


def _other_files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and not path.name.lower().endswith(_WEIGHTS)
    ]


def _is_same(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def _config(path: Path) -> dict[str, Any]:
    """A config of transformers, diffusers or PEFT; empty if the file is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) and any(mark in config for mark in _MARKS) else {}
