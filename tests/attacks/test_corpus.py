"""The corpus that fuzzing kept is read in every test run; `make fuzz` searches for more inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

from laws import try_file  # noqa: E402 - needs the path
from seeds import SEEDS  # noqa: E402

CORPUS = sorted((FUZZ / "corpus" / "reader").iterdir())


@pytest.mark.slow
def test_the_corpus_keeps_the_laws():
    """Every input of the corpus keeps the laws of fuzz/laws.py; some are read and some refused."""
    read = sum(try_file(path.read_bytes()) for path in CORPUS)
    assert len(CORPUS) / 10 < read < len(CORPUS)


def test_the_seeds_are_read():
    """The seeds of the fuzzer are valid files of this version of the format."""
    assert all(try_file(data) for data in SEEDS.values())


def test_the_corpus_is_small():
    """The corpus takes less than 1 MiB of the repository."""
    assert sum(path.stat().st_size for path in FUZZ.rglob("corpus/*/*")) < 2**20


@pytest.mark.parametrize("garbage", [b"", b"OPQ", b"OPQ\1" + bytes(60)])
def test_other_bytes_keep_the_laws(garbage):
    """The laws hold for bytes that are no file."""
    assert not try_file(garbage)
