"""Make vectors.py importable; build the package for JavaScript."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from vectors import JS


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A copy of js with the module built from the sources here."""
    if shutil.which("clang") is None or shutil.which("wasm-ld") is None:
        pytest.skip("clang and lld, which build the WebAssembly module, are not here")
    folder = tmp_path_factory.mktemp("package") / "js"
    shutil.copytree(JS, folder, ignore=shutil.ignore_patterns("opq.wasm", "node_modules"))
    subprocess.run([JS / "wasm" / "build.sh", folder / "opq.wasm"], check=True)
    return folder


@pytest.fixture
def node() -> str:
    """The path of Node."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not here")
    return path
