"""Compression on a Ray cluster: the bytes of the local run, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import opq
from opq.cli import main
from opq.codec.stored_section import StoredSection
from opq.compression.ray_workers import _map

MEMORY = 80 * 2**20
"""Bytes of a node's object store, near the smallest that Ray allows."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with two shards, a bias, and two equal weights in different shards."""
    folder = tmp_path_factory.mktemp("checkpoint")
    rng = np.random.default_rng(0)
    places = {}
    shared = rng.laplace(scale=0.05, size=(64, 128)).astype(np.float32)
    for shard in ("a", "b"):
        tensors = {f"{shard}{k}.weight": rng.laplace(scale=0.02, size=(200 + 40 * k, 300)).astype(np.float32) for k in range(4)}
        tensors |= {f"{shard}.bias": rng.normal(size=300).astype(np.float32), f"{shard}.tied.weight": shared}
        save_file(tensors, folder / f"{shard}.safetensors")
        places |= dict.fromkeys(tensors, f"{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one node with two workers, without dashboard and usage statistics."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster

        arguments = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": MEMORY}
        made = Cluster(initialize_head=True, head_node_args=arguments)
        yield made
        made.shutdown()


@pytest.mark.slow
def test_any_number_of_workers_gives_the_bytes_of_the_local_run(checkpoint, cluster, tmp_path):
    """With two workers, and with four on two nodes, file and result are those of the local run, and nothing else is left."""
    local = opq.save(checkpoint, tmp_path / "local.opq", ratio=10, progress=False)
    path, reports = tmp_path / "ray.opq", []
    for nodes in (1, 2):
        if nodes == 2:
            cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
        made = opq.save(checkpoint, path, ratio=10, ray=cluster.address, progress=lambda *report: reports.append(report))
        assert path.read_bytes() == made.data == local.data
        assert made.plan == local.plan
        assert {(stage, total) for stage, _, total in reports} == {("measuring", 10), ("encoding", 10)}
        assert {other.name for other in tmp_path.iterdir()} == {"local.opq", "ray.opq"}


@pytest.mark.slow
def test_a_killed_worker_is_retried(cluster, tmp_path):
    """A task whose worker dies runs again, and results keep their order."""
    import ray

    folder = str(tmp_path)

    def die_once(item):
        import os
        import signal

        if item == 1:
            try:
                os.mkdir(os.path.join(folder, "died"))
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return item, os.getpid()

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        assert [item for item, _ in _map(die_once, range(5), range(5))] == list(range(5))
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_a_killed_driver_goes_on(checkpoint, cluster, tmp_path):
    """After SIGKILL the encoded weights are there; the next run uses them, and its file has the bytes of the local run."""
    path, kept = tmp_path / "net.opq", tmp_path / ".net.opq.weights"
    command = ["compress", str(checkpoint), "--ratio", "10", "-o", str(path), "--ray", cluster.address]
    driver = subprocess.Popen([sys.executable, "-m", "opq", *command])
    while driver.poll() is None and not (kept.is_dir() and any(not file.name.startswith(".") for file in kept.iterdir())):
        time.sleep(0.002)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert not path.exists()
    before = {file.name: file.stat().st_mtime_ns for file in kept.iterdir() if not file.name.startswith(".")}
    assert before
    after = {}

    def look(stage, done, total):
        if stage == "encoding" and done == total:
            after.update((file.name, file.stat().st_mtime_ns) for file in kept.iterdir())

    made = opq.save(checkpoint, path, ratio=10, ray=cluster.address, progress=look)
    assert before.items() <= after.items()
    assert not kept.exists()
    assert path.read_bytes() == made.data == opq.compress(checkpoint, ratio=10).data


@pytest.mark.slow
def test_an_error_of_a_worker_is_that_of_the_local_run(cluster, tmp_path):
    """A weight that cannot be compressed is the same error in one line, without a traceback of the worker."""
    weight = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    weight[3, 5] = np.nan
    save_file({"a.weight": weight, "b.weight": -weight[:20]}, tmp_path / "net.safetensors")
    messages = []
    for ray in (None, cluster.address):
        with pytest.raises(opq.WeightError) as error:
            opq.save(tmp_path / "net.safetensors", tmp_path / "net.opq", ratio=4, ray=ray, progress=False)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_what_ray_cannot_do_is_an_error(checkpoint, network, tmp_path, monkeypatch, capsys):
    """Tensors in memory, lossless targets and folders of transformers are refused; a missing Ray says how to install it."""
    with pytest.raises(opq.SourceError, match="save it in one, or leave ray out"):
        opq.save(network, tmp_path / "net.opq", ratio=8, ray="local", progress=False)
    assert main(["compress", "torchvision:resnet18", "--ratio", "8", "-o", str(tmp_path / "n.opq"), "--ray", "local"]) == 2
    assert "checkpoint on disk" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(opq.MissingExtraError, match=r"pip install 'opq\[ray\]'"):
        opq.save(checkpoint, tmp_path / "net.opq", ratio=8, ray="local", progress=False)
    assert os.listdir(tmp_path) == []


def test_a_stored_section_is_its_bytes(tmp_path):
    """Equal bytes are equal sections, wherever they lie. Bytes that changed are an error when they are read."""
    (tmp_path / "one").write_bytes(b"--abc")
    (tmp_path / "two").write_bytes(b"abc")
    one, two = StoredSection.of(b"abc", tmp_path / "one", 2), StoredSection.of(b"abc", tmp_path / "two", 0)
    assert one == two
    assert hash(one) == hash(two)
    assert one != StoredSection.of(b"abd", tmp_path / "one", 2)
    assert (bytes(one), len(one)) == (b"abc", 3)
    (tmp_path / "two").write_bytes(b"abd")
    with pytest.raises(opq.SourceError, match="changed"):
        bytes(two)


def test_errors_can_be_pickled():
    """An error that another process raised has its class, its message and its fields."""
    errors = [
        opq.WeightError("a", (2, 3), "it is bad"),
        opq.TargetError("out of reach", 5),
        opq.FormatError("header", "it is short"),
        opq.SelectionError("include", "x*", ["a", "b"]),
    ]
    for error in errors:
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
