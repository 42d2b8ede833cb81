"""Loading many times, and from many threads."""

from __future__ import annotations

import gc
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from codec_strategies import small_file
from thoroughness import some

import opq.numpy
from opq.codec.file_reader import OpqFile
from opq.errors import FormatError

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.opq"))


def open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open handles are counted on Linux")
def test_reading_leaks_no_handles_and_no_memory(tmp_path):
    """After hundreds of valid and damaged files, read completely or in part, no handle is open and no memory is kept."""
    whole, damaged = tmp_path / "whole.opq", tmp_path / "damaged.opq"
    whole.write_bytes(small_file())
    damaged.write_bytes(small_file()[:-1] + bytes([small_file()[-1] ^ 1]))

    def load() -> None:
        opq.numpy.load_file(whole)
        with pytest.raises(FormatError):
            opq.numpy.load_file(damaged)
        with pytest.raises(FormatError):
            OpqFile(damaged.read_bytes()[:-3])
        with opq.numpy.safe_open(whole) as file:
            file.get_tensor("features.0.bias")

    for _ in range(20):
        load()
    gc.collect()
    handles = open_handles()
    tracemalloc.start()
    try:
        load()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        rounds = some(80, 250)  # of four files each
        for _ in range(rounds):
            load()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert open_handles() == handles
    assert grown < 400 * rounds


@pytest.mark.parametrize("shared", [True, False], ids=["one file", "a file each"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_eight_threads_read_the_same(path, shared):
    """Eight threads that share an open file, or have one each, read the same bits in any order."""
    expected = {name: array.tobytes() for name, array in opq.numpy.load_file(path).items()}
    common = OpqFile(path)

    def read(number: int) -> bool:
        file = common if shared else OpqFile(path)
        names = list(expected)
        for _ in range(3):
            for name in names[number:] + names[:number] if number % 2 else reversed(names):
                if file.array(name).tobytes() != expected[name]:
                    return False
        if not shared:
            file.close()
        return True

    with common, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
