"""English text: the prose of the docstrings of packages that requirements/dev.lock pins, in a fixed order.

The files of a package, in the order of their paths, are training text, except every twentieth: it is held out. A paragraph
that is in several files is taken once, and a held-out paragraph that is also in the training text is left out.
"""

from __future__ import annotations

import ast
import json
import os
import re
import string
import warnings
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from images import cache_folder

LIBRARIES = {
    "torch": "torch",
    "scipy": "scipy",
    "sympy": "sympy",
    "transformers": "transformers",
    "sklearn": "scikit-learn",
    "networkx": "networkx",
    "numpy": "numpy",
    "matplotlib": "matplotlib",
    "timm": "timm",
    "torchmetrics": "torchmetrics",
    "setuptools": "setuptools",
    "huggingface_hub": "huggingface_hub",
    "lightning": "lightning",
    "torchvision": "torchvision",
    "pydantic": "pydantic",
    "hypothesis": "hypothesis",
}
"""{module: its distribution}"""

HELD_OUT = 20
"""One of this many files is held out."""

SHORTEST, PROSE = 120, 0.93
"""Least letters of a paragraph, and least fraction of letters, blanks, commas and full stops."""

_LETTERS = str.maketrans("", "", string.ascii_letters + " ,.")


def paragraphs(part: str) -> list[str]:
    """The paragraphs of a part, "train" (8 million letters) or "test" (0.4 million), those of a file one after another."""
    versions = {name: metadata.version(name) for name in LIBRARIES.values()}
    path = cache_folder() / "zoo_texts.json"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["versions"] != versions:
        temporary = path.with_suffix(f".{os.getpid()}.json")
        temporary.write_text(json.dumps({"versions": versions, **_read()}), encoding="utf-8")
        temporary.replace(path)
    found: list[str] = json.loads(path.read_text(encoding="utf-8"))[part]
    return found


def sentences(count: int, part: str = "test") -> list[str]:
    """Different sentences of 40 to 160 letters, evenly from a whole part of the text."""
    found = [sentence for text in paragraphs(part) for sentence in re.split(r"(?<=[.!?]) ", text)]
    plain = [sentence for sentence in dict.fromkeys(found) if re.fullmatch(r"[A-Z][a-z][A-Za-z ,'-]{38,158}[.!?]", sentence)]
    return [plain[number * len(plain) // count] for number in range(count)]


def _read() -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for module in LIBRARIES:
        spec = find_spec(module)
        folder = Path((spec.submodule_search_locations if spec and spec.submodule_search_locations else [])[0])
        for number, path in enumerate(sorted(folder.rglob("*.py"))):
            parts["test" if number % HELD_OUT == 0 else "train"] += _prose(path)
    train = dict.fromkeys(parts["train"])
    return {"train": list(train), "test": [text for text in dict.fromkeys(parts["test"]) if text not in train]}


def _prose(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for block in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(block.split())
                others = len(text.translate(_LETTERS))
                if len(text) >= SHORTEST and others <= (1.0 - PROSE) * len(text) and not re.search(r"https?:|[<>{}|]", text):
                    yield text
