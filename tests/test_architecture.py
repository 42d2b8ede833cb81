"""The rules of the source tree: which module may import which, what a file may hold, and which names are public."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import make_dataclass
from pathlib import Path

import pytest

import opq

SOURCE = Path(__file__).parents[1] / "src" / "opq"

# From the lowest: a part of the package may import itself and parts of lower floors. Parts of the lowest floor may import each
# other.
FLOORS = [
    {
        "errors",
        "version",
        "dtypes",
        "packed_floats",
        "text_table",
        "atomic_file",
        "thread_map",
        "progress",
        "batch_norm",
        "natural_order",
    },
    {"config"},
    {"rate_distortion"},
    {"quantization"},
    {"codec"},
    {"checkpoints"},
    {"compression"},
    {"reporting", "calibration"},
    {"numpy", "torch", "functional"},
    {"resident", "transformers"},
    {"training"},
    {"callbacks"},
    {"evaluation"},
    {"zoo"},
    {"save_load"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def part_of(path: Path) -> str:
    """The module or package directly under opq that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of opq that a file imports, inside functions and for type checking too."""
    parts = set()
    for node in ast.walk(TREES[path]):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" if node.module == "opq" else node.module or "" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            names = module.split(".")
            if names[0] == "opq":
                parts.add(names[1] if len(names) > 1 and names[1] in FLOOR else "__init__")
    return parts


def offenders(rule) -> list[str]:
    """The files that break a rule."""
    return [str(path.relative_to(SOURCE)) for path in FILES if not rule(path)]


def test_every_part_has_a_floor():
    """The floors list the parts of the package, no more and no fewer."""
    assert {part_of(path) for path in FILES} == set(FLOOR)


def test_no_part_imports_a_higher_one():
    """Data flow in one direction: a file imports only its own part and parts of lower floors."""
    found = [
        f"{path.relative_to(SOURCE)} imports {part}"
        for path in FILES
        if path != SOURCE / "__init__.py"  # it imports public names of all parts, on first use
        for part in sorted(imported_parts(path))
        if part != part_of(path) and FLOOR[part] >= (FLOOR[part_of(path)] or 1)
    ]
    assert found == []


def test_imports_are_absolute():
    """No file imports relative to its folder."""
    nodes = {path: [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)] for path, tree in TREES.items()}
    assert offenders(lambda path: all(node.level == 0 for node in nodes[path])) == []


def test_files_are_small():
    """A file has at most 300 lines."""
    assert offenders(lambda path: len(path.read_text().splitlines()) <= 300) == []


def test_files_have_a_docstring():
    """A file that is not empty has a docstring."""
    assert offenders(lambda path: not path.read_text().strip() or ast.get_docstring(TREES[path])) == []


def test_nothing_asserts():
    """Conditions raise errors of opq, which `python -O` keeps."""
    assert offenders(lambda path: not any(isinstance(node, ast.Assert) for node in ast.walk(TREES[path]))) == []


def test_nothing_prints():
    """Only the command line writes to stdout, through click."""

    def calls_print(path: Path) -> bool:
        calls = [node.func for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
        return any(isinstance(call, ast.Name) and call.id == "print" for call in calls)

    assert offenders(lambda path: not calls_print(path)) == []


def test_module_names_say_what_they_hold():
    """No utils, core, base, common or helpers."""
    vague = {"utils", "util", "core", "base", "common", "helpers", "misc"}
    assert offenders(lambda path: path.stem not in vague) == []


def test_public_names_can_be_imported():
    """`opq.__all__` and the names imported on first use agree, and each name is that of its module."""
    lazy = set(opq._MODULE_OF)
    assert lazy < set(opq.__all__)
    assert [name for name in set(opq.__all__) - lazy if getattr(opq, name) is None] == []
    modules = {name: importlib.import_module(module) for name, module in opq._MODULE_OF.items()}
    assert [name for name, module in modules.items() if getattr(opq, name) is not getattr(module, name)] == []
    assert opq.__all__ == sorted(opq.__all__)
    assert set(dir(opq)) == {*opq.__all__, *opq._MODULES}
    assert all(getattr(opq, name) is importlib.import_module(f"opq.{name}") for name in opq._MODULES)


def own_docstring(public: object) -> str:
    """The docstring of a function or class; empty if it is inherited, or the signature that dataclasses get by default."""
    text = (vars(public).get("__doc__") if isinstance(public, type) else public.__doc__) or ""
    is_signature = isinstance(public, type) and text.startswith(f"{public.__name__}(")
    return "" if is_signature else text.strip()


def test_public_functions_and_classes_have_docstrings():
    """Every public function and class has its own docstring."""
    assert not own_docstring(make_dataclass("Bare", ["field"]))
    public = set(opq.__all__) - {"__version__"}
    assert [name for name in public if not own_docstring(getattr(opq, name))] == []


def test_every_error_is_an_opq_error():
    """All errors of opq.errors are OpqErrors, and the module's docstring lists them."""
    module = importlib.import_module("opq.errors")
    errors = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert [error.__name__ for error in errors if not issubclass(error, opq.OpqError)] == []
    assert [error.__name__ for error in errors if not re.search(rf"\b{error.__name__}\b", module.__doc__)] == []


def test_unknown_names_are_attribute_errors():
    """A misspelt name is an AttributeError, as on any module."""
    with pytest.raises(AttributeError, match="no attribute 'plam'"):
        _ = opq.plam
