"""The base install: everything but PyTorch works without PyTorch.

`make base` runs these in an environment that has none; elsewhere importing it is made to fail.
"""

import importlib.util
import subprocess
import sys

import pytest
from safetensors.numpy import save_file

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def source(network, tmp_path):
    save_file(network, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("target", ["ratio=8", "sparsity=0.8, bits=3"])
def test_the_whole_way_needs_no_torch(target, source, tmp_path):
    """Plan, compress, save, load, inspect and verify run where torch cannot be imported."""
    code = (
        "import opq, opq.numpy\n"
        f"print(opq.plan(sys.argv[1], {target}))\n"
        f"opq.compress(sys.argv[1], {target}).save(sys.argv[2])\n"
        "print(len(opq.numpy.load_file(sys.argv[2])), opq.inspect(sys.argv[2]).file_ratio, opq.verify(sys.argv[2]))\n"
    )
    done = run(code, source, tmp_path / "net.opq")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().split("\n")[-1].startswith("20 ")


def test_what_needs_torch_says_how_to_get_it(tmp_path):
    """opq.torch and .pt sources name the extra to install."""
    (tmp_path / "m.pt").write_bytes(b"")
    for code in (
        "import opq.torch",
        "import opq; opq.torch",
        "import opq.zoo.models",
        "opq.calibrate",
        f"import opq; opq.plan({str(tmp_path / 'm.pt')!r}, ratio=3)",
    ):
        done = run(f"import opq\ntry:\n    {code}\nexcept opq.MissingExtraError as error:\n    print(error)\n")
        assert "pip install 'opq[torch]'" in done.stdout, done.stderr


def test_this_environment_is_as_bare_as_it_says():
    """Where these tests run from a wheel, there is really no torch."""
    if ".venv-base" not in sys.prefix:
        pytest.skip("not in the base environment")
    assert importlib.util.find_spec("torch") is None
