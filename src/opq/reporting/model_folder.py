"""Folders that from_pretrained of transformers, diffusers and PEFT loads: a checkpoint, its config, and a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from opq.errors import OutputError

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


def has_config(folder: Path) -> bool:
    """Whether a folder has a config that from_pretrained reads."""
    return any(_config(folder / name) for name in ("config.json", "adapter_config.json"))


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


def _config(path: Path) -> dict[str, object]:
    """A config of transformers, diffusers or PEFT; empty if the file is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) and any(mark in config for mark in _MARKS) else {}
