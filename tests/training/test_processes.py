"""Training in several processes, as Hugging Face Accelerate runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import opq

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_make_one_file(tmp_path):
    """Two gloo processes on the CPU, started with different weights, end with the same masks, values and bytes, also if masks
    were recomputed at first. One of them writes the file. An interrupted and resumed run ends with the same bytes.
    """
    pytest.importorskip("accelerate")
    # Without GPUs `accelerate launch` requires MPI; torchrun sets the same environment.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    script = [str(HERE / "in_two_processes.py"), str(tmp_path)]
    done = subprocess.run([*command, *script], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt") for rank in range(2))
    assert first["processes"] == 2
    assert "one per process" in first["few"]
    assert "one per process" in second["few"]
    assert first["resumed"]["file"] == first["recomputed"]["file"]
    for name in ("prepared", "recomputed", "resumed"):
        one, other = first[name], second[name]
        assert one["file"] == other["file"] == (tmp_path / name / "model.opq").read_bytes()
        for key, value in one["values"].items():
            assert torch.equal(value, other["values"][key]), key
        opq.verify(one["file"])
        with opq.OpqFile(one["file"]) as file:
            assert one["masks"]
            for key, mask in one["masks"].items():
                np.testing.assert_array_equal(file[key].codes != 0, mask.numpy(), err_msg=f"{name} {key}")
