"""The base install: everything that does not train, calibrate or evaluate works without PyTorch.

`make base` runs these tests in an environment without it. Elsewhere importing torch is made to fail.
"""

import importlib.util
import subprocess
import sys

import pytest
from safetensors.numpy import save_file

WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def source(network, tmp_path):
    save_file(network, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ratio=8", "sparsity=0.8, bits=3"])
def test_compressing_and_loading_need_no_torch(target, source, tmp_path):
    """Plan, compress, save, load, inspect, compare and verify run if torch cannot be imported."""
    code = (
        "import opq, opq.numpy\n"
        f"print(opq.plan(sys.argv[1], {target}))\n"
        f"print(opq.save(sys.argv[1], sys.argv[2], {target}))\n"
        f"assert opq.numpy.save_file(opq.numpy.load_file(sys.argv[2]), sys.argv[2], {target}).file_bytes\n"
        "with opq.numpy.safe_open(sys.argv[2]) as file:\n"
        "    assert file.get_slice('fc.weight')[:2].shape == (2, 64)\n"
        "opq.compare(sys.argv[2])\n"
        "print(len(opq.numpy.load_file(sys.argv[2])), opq.inspect(sys.argv[2]).file_ratio, opq.verify(sys.argv[2]))\n"
    )
    done = run(code, source, tmp_path / "net.opq")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().split("\n")[-1].startswith("20 ")


@pytest.mark.slow
def test_missing_torch_is_an_error_that_names_the_extra(tmp_path):
    """Loading torch tensors, calibration, networks by name, finetuning and .pt checkpoints name the extra to install."""
    (tmp_path / "m.pt").write_bytes(b"\x80\x02}.")  # an empty pickled dict
    for code in (
        "import opq.torch",
        "import opq; opq.torch",
        "import opq.zoo.models",
        "opq.load('m.opq')",
        "opq.calibrate",
        "opq.evaluate",
        "opq.compress_to_accuracy",
        "opq.finetune",
        "opq.prepare",
        f"import opq; opq.plan({str(tmp_path / 'm.pt')!r}, ratio=3)",
    ):
        done = run(f"import opq\ntry:\n    {code}\nexcept opq.MissingExtraError as error:\n    print(error)\n")
        assert "pip install 'opq[torch]'" in done.stdout, done.stderr


def test_the_base_environment_has_no_torch():
    """The environment of `make base` has no PyTorch."""
    if ".venv-base" not in sys.prefix:
        pytest.skip("not in the base environment")
    assert importlib.util.find_spec("torch") is None
