"""Long runs: weights in pieces, and the work file from which a stopped run goes on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opq
import opq.numpy
from opq import dtypes
from opq.codec import code_stream
from opq.compression import journal
from opq.compression.compress import compress
from opq.compression.journal import Journal, work_path
from opq.errors import OutputError
from opq.quantization.chunked import code_pieces
from opq.quantization.quantizer import quantize
from opq.quantization.statistics import measure, measure_rows


@pytest.fixture
def long_runs(monkeypatch):
    """Every run is a long one, and every weight of more than 1,000 elements a large one."""
    monkeypatch.setattr(journal, "LONG_RUN", 1)
    monkeypatch.setattr(compress, "CHUNK", 1000)
    monkeypatch.setattr(code_stream, "CHUNK", 1000)


SHAPES = st.sampled_from([(7, 5), (1, 40), (40, 1), (6, 3, 3, 3), (5, 2, 13, 13), (64,), (3, 1, 130)])


@settings(max_examples=60)
@given(SHAPES, st.sampled_from(sorted(dtypes.COMPRESSIBLE)), st.floats(0, 1), st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_pieces_are_the_whole(shape, kind, share, seed, size):
    """Codes made piece by piece are those of the whole weight: ties of magnitudes and limits of channels included."""
    rng = np.random.default_rng(seed)
    weight = (rng.integers(-6, 7, shape) / 4).astype(dtypes.NUMPY[kind])
    kept = round(share * weight.size)
    limits = tuple(rng.integers(1, 4, shape[0]).tolist())
    for fixed in ({"kept": kept, "limits": limits}, {"kept": None}):
        plan = opq.LayerPlan(shape, 0.5, 0.6, 0.5, 0.5, 1.0, 1.0, **fixed)
        piece = code_pieces(lambda start, stop: weight[start:stop], plan)
        pieces = [piece(start, min(start + size, weight.size)) for start in range(0, weight.size, size)]
        assert np.concatenate(pieces).tolist() == quantize(weight, plan).reshape(-1).tolist()


@given(st.integers(1, 50), st.integers(1, 40_000), st.booleans())
@settings(max_examples=30)
def test_statistics_of_rows_are_those_of_the_whole(channels, width, zeros):
    """Whatever rows are asked for, the statistics are the same, and a plain computation's."""
    weight = np.random.default_rng(0).laplace(size=(channels, width)).astype(np.float32)
    weight[:, ::3] *= not zeros
    found = measure_rows(weight.shape, lambda start, stop: weight[start:stop].copy(), "w")
    plain = measure(weight)
    for key in ("channel_scales", "magnitudes", "excerpt"):
        assert getattr(found, key).tobytes() == getattr(plain, key).tobytes()
    assert (found.zeros, found.laplace_scale) == (plain.zeros, plain.laplace_scale)
    np.testing.assert_allclose(found.channel_scales, np.abs(weight).mean(axis=1), rtol=1e-4)
    assert set(found.magnitudes.tolist()) <= set(np.abs(weight).reshape(-1).tolist())


@pytest.mark.parametrize("options", [{"ratio": 8}, {"sparsity": 0.6, "bits": 4}])
def test_a_work_file_changes_no_byte(network, options, long_runs, tmp_path):
    """With a work file and in pieces, or without, the bytes are the same; when the file is saved, the work file is gone."""
    with_work = opq.compress(network, work_file=tmp_path / "n.partial", **options)
    assert (tmp_path / "n.partial").stat().st_size > 1000
    assert with_work.data == opq.compress(network, **options).data
    with_work.save(tmp_path / "n.opq")
    assert (tmp_path / "n.opq").read_bytes() == with_work.data
    assert [path.name for path in tmp_path.iterdir()] == ["n.opq"]


class StopError(Exception):
    """What stops a run."""


def stop_after(count):
    """A progress that ends the run after so many weights."""

    def progress(stage, done, total):
        if done == count:
            raise StopError

    return progress


def test_a_stopped_run_goes_on(network, long_runs, tmp_path, monkeypatch):
    """What a stopped run encoded is not encoded again, and the result is that of a run that was never stopped."""
    work = tmp_path / "n.partial"
    whole = opq.compress(network, ratio=8)
    with pytest.raises(StopError):
        opq.compress(network, ratio=8, work_file=work, progress=stop_after(3))
    left = Journal(work)
    kept = left.count
    left.close()
    assert kept >= 3
    made = []
    plain = compress.encode_pieces
    monkeypatch.setattr(compress, "encode_pieces", lambda *arguments: made.append(arguments) or plain(*arguments))
    resumed = opq.compress(network, ratio=8, work_file=work)
    assert resumed.data == whole.data
    assert 0 < len(made) <= resumed.journal.count - kept


def test_damage_to_a_work_file_costs_time_alone(network, long_runs, tmp_path):
    """Cut off or changed anywhere, a work file gives what is whole before the damage, and the same result."""
    work = tmp_path / "n.partial"
    whole = opq.compress(network, ratio=8, work_file=work).data
    data = work.read_bytes()
    for at in range(0, len(data), len(data) // 12):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]):
            work.write_bytes(damaged)
            if at < 15 and len(damaged) == len(data):
                continue  # then it is not taken for a work file
            assert opq.compress(network, ratio=8, work_file=work).data == whole


def test_work_for_other_weights_is_not_used(network, long_runs, tmp_path):
    """Another checkpoint finds nothing of its own in a work file; the same weights under other names do."""
    work = tmp_path / "n.partial"
    opq.compress(network, ratio=8, work_file=work)
    other = {name: array * np.float32(1.5) if array.dtype == np.float32 else array for name, array in network.items()}
    assert opq.compress(other, ratio=8, work_file=work).data == opq.compress(other, ratio=8).data


def test_what_stands_in_the_way_is_not_touched(network, long_runs, tmp_path):
    """A file that is no work file, a folder, and a work file that another run holds are refused in one line."""
    (tmp_path / "text").write_text("my diary")
    (tmp_path / "folder").mkdir()
    holder = Journal(tmp_path / "held")
    for name, message in (
        ("text", "opq did not make"),
        ("folder", "directory"),
        ("held", "another run of opq"),
        ("no/f", "No such"),
    ):
        with pytest.raises(OutputError, match=message):
            opq.compress(network, ratio=8, work_file=tmp_path / name)
    assert (tmp_path / "text").read_text() == "my diary"
    assert holder.count == 0


def test_an_error_that_would_come_again_leaves_no_work_file(network, long_runs, tmp_path):
    """A target out of reach, say."""
    with pytest.raises(opq.TargetError):
        opq.compress(network, ratio=100_000, work_file=tmp_path / "n.partial")
    assert list(tmp_path.iterdir()) == []


def test_short_runs_need_no_work_file(network, tmp_path):
    """A small network is compressed in memory."""
    opq.numpy.save_file(network, tmp_path / "n.opq", ratio=8)
    opq.compress(network, ratio=8, work_file=work_path(tmp_path / "n.opq"))
    assert [path.name for path in tmp_path.iterdir()] == ["n.opq"]


CHILD = """
import os, signal, sys
from opq.compression import journal
from opq.compression.compress import compress
journal.LONG_RUN, compressing.CHUNK = 1, 1000
from opq.cli import main
if sys.argv[1] == "kill":
    plain, count = journal.Journal._append, [0]
    def append(self, key, data):
        count[0] += 1
        if count[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, key, data)
    journal.Journal._append = append
sys.exit(main(sys.argv[2:]))
"""


def test_the_same_command_goes_on_after_a_kill(network, tmp_path):
    """`opq compress`, killed and given again, ends with the file that an unhindered run writes, and nothing beside it."""
    from safetensors.numpy import save_file

    save_file(network, tmp_path / "n.safetensors")
    command = ["compress", str(tmp_path / "n.safetensors"), "--ratio", "8", "-o"]
    killed = subprocess.run([sys.executable, "-c", CHILD, "kill", *command, str(tmp_path / "a.opq")], check=False)
    assert killed.returncode == -9
    assert work_path(tmp_path / "a.opq").stat().st_size > 1000
    for mode, name in (("go", "a.opq"), ("go", "b.opq")):
        subprocess.run([sys.executable, "-c", CHILD, mode, *command, str(tmp_path / name)], check=True, capture_output=True)
    assert (tmp_path / "a.opq").read_bytes() == (tmp_path / "b.opq").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.opq", "b.opq", "n.safetensors"]
