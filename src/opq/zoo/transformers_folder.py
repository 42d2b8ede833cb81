"""Networks and tokenizers in folders of Hugging Face's transformers, and texts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from opq.errors import ModelError, SourceError
from opq.zoo.preprocessing import load_library

_NEEDED_FOR = "a network of transformers"


def open_folder(name: str, folder: str) -> nn.Module:
    """The network of a folder, of the class that its config.json names, in its own dtype. Nothing is downloaded.

    Args:
        name: What the user called it, for messages.
        folder: A folder that `save_pretrained` wrote.

    Raises:
        ModelError: It is no such folder, or transformers has no such network.
        MissingExtraError: transformers is not installed.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(name, f"{folder} must be a folder with a config.json, as save_pretrained writes it")
    transformers = load_library("transformers", _NEEDED_FOR)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, (config.architectures or ["AutoModel"])[0])
        network = kind.from_pretrained(folder, local_files_only=True, dtype="auto")
    except (OSError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        raise ModelError(name, " ".join(str(error).split())) from None
    if not isinstance(network, nn.Module):
        raise ModelError(name, f"its class must be a torch module, got {type(network).__name__}")
    return network


def open_tokenizer(name: str, folder: str) -> Any:
    """The tokenizer of a folder.

    Raises:
        ModelError: The folder has none.
        MissingExtraError: transformers is not installed.
    """
    transformers = load_library("transformers", _NEEDED_FOR)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(name, f"it has no tokenizer: {' '.join(str(error).split())}") from None
    if not tokenizer.vocab_size:  # transformers makes one without tokens if the folder has no files of one
        raise ModelError(name, "it has no tokenizer; copy its files, such as tokenizer.json, into the folder")
    return tokenizer


def read_texts(path: str, count: int) -> list[str]:
    """Texts of a file: what blank lines separate, or each line if there are none; evenly from the whole file.

    Args:
        path: A text file in UTF-8.
        count: The largest number of texts, >= 1.

    Raises:
        SourceError: The file cannot be read, or holds no text.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(path, f"it must be a text file in UTF-8: {error}") from None
    parts = content.split("\n\n") if "\n\n" in content.strip() else content.split("\n")
    texts = [part.strip() for part in parts if part.strip()]
    if not texts:
        raise SourceError(path, "it holds no text")
    taken = min(count, len(texts))
    return [texts[number * len(texts) // taken] for number in range(taken)]
