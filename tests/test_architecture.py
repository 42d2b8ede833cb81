"""The house: who may import whom, and what the package hands out."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import make_dataclass
from pathlib import Path

import pytest

import opq

SOURCE = Path(__file__).parents[1] / "src" / "opq"

# From the ground up; a room may import its own floor and what is under it.
FLOORS = [
    {"errors", "version", "text_table", "atomic_file", "dtypes", "thread_map", "progress"},
    {"rate_distortion"},
    {"quantization"},
    {"codec"},
    {"config"},
    {"checkpoints"},
    {"compression"},
    {"reporting", "calibration"},
    {"numpy", "torch"},
    {"training"},
    {"evaluation"},
    {"zoo"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules = [f"{node.module}.{alias.name}" if node.module == "opq" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "opq":
                rooms.add(parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__")
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_room_imports_an_upper_one(path):
    """Data flow one way: a file imports only from its own floor's room and from lower floors."""
    if path == SOURCE / "__init__.py":
        return  # it hands names on from everywhere, lazily
    own = room_of(path)
    for room in imported_rooms(path):
        assert FLOOR[room] < FLOOR[own] or room == own or FLOOR[room] == FLOOR[own] == 0, f"{own} imports {room}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_small_and_plain(path):
    """A file has at most 300 lines and a docstring; nothing asserts, and only the command line prints."""
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 300
    assert not text.strip() or ast.get_docstring(tree)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


def test_no_module_is_called_by_a_name_that_says_nothing():
    """No utils, core, base, common or helpers."""
    names = {path.stem for path in FILES}
    assert not names & {"utils", "util", "core", "base", "common", "helpers", "misc"}


def test_all_is_what_can_be_imported():
    """`opq.__all__` and the lazy names agree, every one exists, and each is what its home says it is."""
    lazy = set(opq._HOMES)
    eager = set(opq.__all__) - lazy
    assert lazy < set(opq.__all__)
    for name in eager:
        assert getattr(opq, name) is not None
    for name, home in opq._HOMES.items():
        assert getattr(opq, name) is getattr(importlib.import_module(home), name)
    assert opq.__all__ == sorted(opq.__all__)


def own_docstring(public: object) -> str:
    """The docstring of a function or class, empty where it is inherited or the signature that a dataclass gets for one."""
    text = (vars(public).get("__doc__") if isinstance(public, type) else public.__doc__) or ""
    is_signature = isinstance(public, type) and text.startswith(f"{public.__name__}(")
    return "" if is_signature else text.strip()


def test_public_functions_and_classes_say_what_they_do():
    """Every public name has a docstring of its own."""
    assert not own_docstring(make_dataclass("Bare", ["field"]))
    for name in set(opq.__all__) - {"__version__"}:
        assert own_docstring(getattr(opq, name)), name


def test_every_error_is_an_opq_error():
    """Whatever opq raises on purpose can be caught as OpqError, and its docstring draws them all."""
    errors = {name: value for name, value in vars(importlib.import_module("opq.errors")).items() if isinstance(value, type)}
    drawn = importlib.import_module("opq.errors").__doc__
    for name, error in errors.items():
        if issubclass(error, Exception):
            assert issubclass(error, opq.OpqError)
            assert re.search(rf"\b{name}\b", drawn)


def test_unknown_names_are_attribute_errors():
    """A misspelt name fails as it does on any module."""
    with pytest.raises(AttributeError, match="no attribute 'plam'"):
        _ = opq.plam
