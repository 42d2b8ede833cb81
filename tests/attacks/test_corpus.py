"""The corpus that fuzzing kept is read in every test run; `make fuzz` searches for more inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

from delta_laws import try_delta  # noqa: E402 - needs the path
from laws import try_file  # noqa: E402
from seeds import DELTAS, SEEDS  # noqa: E402

CORPUS, CORPUS_OF_DELTAS = (sorted((FUZZ / "corpus" / kind).iterdir()) for kind in ("reader", "deltas"))


@pytest.mark.slow
def test_the_corpus_keeps_the_laws():
    """Every input of the corpus keeps the laws of fuzz/laws.py; some are read and some refused."""
    read = sum(try_file(path.read_bytes()) for path in CORPUS)
    assert len(CORPUS) / 10 < read < len(CORPUS)


@pytest.mark.slow
def test_the_corpus_of_deltas_keeps_the_laws():
    """Every input of the corpus of deltas keeps the laws of fuzz/delta_laws.py; some are read and some refused."""
    read = sum(try_delta(path.read_bytes()) for path in CORPUS_OF_DELTAS)
    assert len(CORPUS_OF_DELTAS) / 10 < read < len(CORPUS_OF_DELTAS)


def test_the_seeds_are_read():
    """The seeds of the fuzzers are valid files and deltas of this version of the format."""
    assert all(try_file(data) for data in SEEDS.values())
    assert all(try_delta(data) for data in DELTAS.values())


def test_the_corpus_is_small():
    """The corpus takes less than 1 MiB of the repository."""
    assert sum(path.stat().st_size for path in FUZZ.rglob("corpus/*/*")) < 2**20


@pytest.mark.parametrize("garbage", [b"", b"OPQ", b"OPQ\1" + bytes(60)])
def test_other_bytes_keep_the_laws(garbage):
    """The laws hold for bytes that are no file."""
    assert not try_file(garbage)
