"""Damage to golden files: every reader refuses every truncation and every changed byte."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from thoroughness import one_in, some

import opq
import opq.numpy
from opq.cli import main
from opq.codec.file_reader import OpqFile
from opq.codec.verify import verify
from opq.errors import FormatError
from opq.reporting.inspect import inspect

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.opq"))
each_file = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)


def refuses(data: bytes) -> bool:
    """Whether reading all tensors is a FormatError; any other exception passes through."""
    try:
        with OpqFile(data) as file:
            file.arrays()
    except FormatError:
        return True
    return False


@pytest.mark.slow
@each_file
def test_every_truncation_is_refused(path):
    """A file that is cut off at any length is refused when it is opened."""
    data = path.read_bytes()
    for length in one_in(5, range(len(data))):
        with pytest.raises(FormatError):
            OpqFile(data[:length])


@pytest.mark.slow
@each_file
def test_every_changed_byte_is_refused(path):
    """A file with a changed byte, in one bit or in all, is refused at every position."""
    data = bytearray(path.read_bytes())
    for at in one_in(5, range(len(data))):
        mask = 0xFF if at % 2 else 1 << at // 2 % 8
        data[at] ^= mask
        assert refuses(bytes(data)), f"byte {at}"
        data[at] ^= mask


@each_file
def test_every_reader_refuses_a_damaged_file(path, tmp_path, capsys):
    """Loading, verifying and expanding refuse any changed byte; inspecting may refuse it, and raises nothing else."""
    data = path.read_bytes()
    chance = random.Random(0)  # noqa: S311 - places, not secrets
    target = tmp_path / "f.opq"
    for at in chance.sample(range(len(data)), some(15, 40)):
        changed = bytearray(data)
        changed[at] ^= chance.randrange(1, 256)
        target.write_bytes(changed)
        for read in (opq.numpy.load_file, verify):
            with pytest.raises(FormatError):
                read(target)
        with suppress(FormatError):
            inspect(target)
        assert main(["expand", str(target), "-o", str(tmp_path / "out")]) == 1
        assert main(["verify", str(target)]) == 1
        assert not (tmp_path / "out").exists()
        assert capsys.readouterr().err.count("\n") == 2


def test_damage_to_a_large_file_is_refused(network, tmp_path):
    """A file of some hundred kilobytes is refused if it is cut off or changed, at a sample of positions."""
    rng = np.random.default_rng(0)
    data = opq.compress({**network, "large.weight": rng.laplace(size=(500, 700)).astype("f4")}, ratio=5).data
    for at in rng.integers(0, len(data), 60).tolist():
        assert refuses(data[:at])
        assert refuses(data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :])
