"""What fuzzing found worth keeping is tried again with every test run; `make fuzz` looks for more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

from laws import try_file  # noqa: E402 - they lie beside the fuzzer
from seeds import SEEDS  # noqa: E402

CORPUS = sorted((FUZZ / "corpus" / "reader").iterdir())


def test_the_corpus_keeps_the_laws():
    """Every input of the reader's corpus is read or refused as the laws in fuzz/laws.py have it, a good part of each."""
    read = sum(try_file(path.read_bytes()) for path in CORPUS)
    assert len(CORPUS) / 10 < read < len(CORPUS)


def test_the_fuzzer_begins_with_files_that_are_read():
    """Its seeds are whole files of this version of the format."""
    assert all(try_file(data) for data in SEEDS.values())


def test_the_corpus_is_small():
    """It belongs into the repository."""
    assert sum(path.stat().st_size for path in FUZZ.rglob("corpus/*/*")) < 2**20


@pytest.mark.parametrize("garbage", [b"", b"OPQ", b"OPQ\1" + bytes(60)])
def test_what_is_no_file_breaks_no_law(garbage):
    """The laws hold for bytes that were never a file."""
    assert not try_file(garbage)
