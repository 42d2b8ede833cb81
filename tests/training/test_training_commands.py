"""`opq finetune` and `opq evaluate`, and the networks and images that they find by name."""

import json
import math
import pickle

import numpy as np
import pytest
import torch

import opq
import opq.torch
from opq.cli.main import main
from opq.zoo.image_data import open_images
from opq.zoo.models import open_model
from opq.zoo.preprocessing import plain

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )

def text():
    return "no network"
"""

DATACLASS = """
from __future__ import annotations
import dataclasses
from torch import nn

@dataclasses.dataclass
class Width:
    value: int = 4

def make():
    return nn.Linear(Width().value, 2)

def broken():
    return nn.absent
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a network's code and images in an .npz file, which is where commands run."""
    rng = np.random.default_rng(0)
    (tmp_path / "network.py").write_text(NETWORK)
    arrays = {f"x_{part}": rng.integers(0, 256, (40, 12, 12), dtype=np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": rng.integers(0, 10, 40) for part in ("train", "test")}
    np.savez(tmp_path / "images.npz", **arrays)
    np.savez(tmp_path / "many.npz", **{key: value if key[0] == "x" else value + 10 for key, value in arrays.items()})
    np.savez(
        tmp_path / "colours.npz",
        **{key: value if key[0] == "y" else value[..., None].repeat(3, 3) for key, value in arrays.items()},
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_finetune_writes_the_file_and_goes_on_from_it(work, capsys):
    """From a target, then from the file: each file is whole and within its size; the second has the masks of the first."""
    assert (
        main(
            [
                "finetune",
                "network.py:make",
                "--data",
                "images.npz",
                "--epochs",
                "2",
                "--ratio",
                "4",
                "--batch",
                "16",
                "-o",
                "a.opq",
                "--run",
                "run",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.startswith("a.opq: ")
    assert "asked for" in printed
    assert (work / "run" / "history.jsonl").read_text().count("\n") == 2
    again = "finetune network.py:make --weights a.opq --from a.opq --data images.npz --epochs 1 --batch 16 -o b.opq"
    assert main(again.split()) == 0
    opq.verify("b.opq")
    with opq.OpqFile("a.opq") as first, opq.OpqFile("b.opq") as second:
        assert second.file_bytes <= first.file_bytes
        for entry in first.entries:
            if entry.storage == "codes":
                np.testing.assert_array_equal(first[entry.name].codes != 0, second[entry.name].codes != 0)


def test_open_epochs_are_asked_for_by_their_number(work, capsys):
    """--open-epochs reaches the run; where the file's masks are kept it is refused, in one line."""
    common = "finetune network.py:make --data images.npz --epochs 3 --batch 16"
    assert main(f"{common} --ratio 4 --open-epochs 2 --run run -o a.opq".split()) == 0
    assert json.loads((work / "run" / "arguments.json").read_text())["open_epochs"] == 2
    capsys.readouterr()
    assert main(f"{common} --from a.opq --open-epochs 1 -o b.opq".split()) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "the file's are kept" in error


def test_a_network_without_weights_is_the_same_each_time(work):
    """Random weights are the same ones in each process, so that the same command goes on from its folder."""
    command = "finetune network.py:make --data images.npz --ratio 4 --epochs 1 --batch 16 --run run --force -o a.opq"
    torch.manual_seed(1)
    assert main(command.split()) == 0
    first = (work / "a.opq").read_bytes()
    torch.manual_seed(2)
    assert main(command.split()) == 0
    assert (work / "a.opq").read_bytes() == first


def test_finetune_begins_at_a_calibrated_file(work):
    """--calibrate gives the masks and steps that `opq compress --calibrate` has at the target less the reserve."""
    torch.save(open_model("network.py:make").network.state_dict(), "a.pt")
    informed = "network.py:make --weights a.pt --calibrate images.npz --images 9"
    asked = f"finetune {informed} --data images.npz --batch 16 --epochs 1 --size 4000 --run run -o a.opq"
    assert main(asked.split()) == 0
    assert main(f"compress {informed} --size {math.floor(4000 * (1.0 - 0.07))} -o b.opq".split()) == 0
    with opq.OpqFile("run/start.opq") as first, opq.OpqFile("b.opq") as second, opq.OpqFile("a.opq") as trained:
        for entry in first.entries:
            if entry.storage == "codes":
                np.testing.assert_array_equal(first[entry.name].codes, second[entry.name].codes)
                np.testing.assert_array_equal(first[entry.name].codes != 0, trained[entry.name].codes != 0)
                assert first[entry.name].step == trained[entry.name].step


def test_evaluate_compares_with_the_dense_network(work, capsys):
    """The numbers are the library's, for the network as it comes and as the file has it."""
    network = open_model("network.py:make").network
    opq.torch.save_model(network, "a.opq", ratio=4.0)
    torch.save(network.state_dict(), "a.pt")
    assert main(["evaluate", "network.py:make", "a.opq", "--weights", "a.pt", "--data", "images.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    loader = open_images("images.npz", plain(), training=False)
    loaded = open_model("network.py:make", "a.opq").network
    expected = opq.evaluate(loaded, loader, dense=network)
    assert found["file"] == pytest.approx(vars(expected))
    assert found["dense"]["agreement"] is None
    assert main(["evaluate", "network.py:make", "a.opq", "--data", "images.npz"]) == 0
    assert "agreement %" in capsys.readouterr().out


def test_images_of_different_sizes_are_told_in_a_line(work, capsys):
    """A network that does not tell how large its images are needs them alike, or --input-size."""
    image = pytest.importorskip("PIL.Image")
    (work / "mixed").mkdir()
    for width in (12, 14):
        image.new("L", (width, 12)).save(work / "mixed" / f"{width}.png")
    assert main(["evaluate", "network.py:make", "--data", "mixed"]) == 1
    assert "give --input-size" in capsys.readouterr().err


def test_a_file_of_code_is_run_as_python_runs_it(work):
    """Dataclasses find their module; an error of the user's own code is not taken for a missing factory."""
    (work / "other.py").write_text(DATACLASS)
    assert open_model("other.py:make").network.in_features == 4
    with pytest.raises(AttributeError, match="absent"):
        open_model("other.py:broken")


def test_a_factory_may_import_what_lies_beside_it(work):
    """While it runs as well as while its file is loaded; what is not there is told in one line."""
    (work / "code").mkdir()
    (work / "code" / "beside.py").write_text("width = 5")
    code = "from torch import nn\ndef make():\n    from beside import width\n    return nn.Linear(width, 2)\n"
    (work / "code" / "late.py").write_text(code + "def missing():\n    import no_such_module_at_all\n")
    assert open_model("code/late.py:make").network.in_features == 5
    with pytest.raises(opq.ModelError, match="no_such_module_at_all"):
        open_model("code/late.py:missing")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("evaluate network --data images.npz", 1, "expected torchvision:NAME, timm:NAME"),
        ("evaluate network.py:absent --data images.npz", 1, "there is no 'absent' in network.py"),
        ("evaluate absent.py:make --data images.npz", 1, "there is no file absent.py"),
        ("evaluate no_such_package:make --data images.npz", 1, "No module named 'no_such_package'"),
        ("evaluate network.py:text --data images.npz", 1, "expected it to give a torch module, got str"),
        ("evaluate network.py:make --data absent", 1, "no such folder"),
        ("evaluate network.py:make --data . ", 1, "there are no images"),
        ("evaluate network.py:make --data images.npz --mean a,b", 2, "expected numbers with commas between"),
        ("evaluate network.py:make --data images.npz --weights absent.pt", 1, "there is no file 'absent.pt'"),
        ("finetune network.py:make --data images.npz --epochs 1 -o a.opq", 2, "Give one target"),
        ("finetune network.py:make --data images.npz --epochs 1 --from a.opq --plan p -o a.opq", 2, "give one of them"),
        ("finetune network.py:make --data images.npz --epochs 1 --ratio 4 -o network.py", 1, "it exists"),
        (
            "finetune network.py:make --data images.npz --epochs 1 --ratio 4 --images 9 -o a.opq",
            2,
            "--images goes with --calibrate",
        ),
        (
            "finetune network.py:make --data images.npz --epochs 1 --from b --calibrate d -o a.opq",
            2,
            "and so do --from and --plan",
        ),
        ("evaluate network.py:make --data colours.npz", 1, "the network fails on a batch of (40, 3, 12, 12)"),
        ("finetune network.py:make --data colours.npz --epochs 1 --ratio 4 -o a.opq", 1, "the network fails on a batch"),
        ("finetune network.py:make --data many.npz --epochs 1 --ratio 4 --labels 0.5 -o a.opq", 1, "labels go from"),
        ("finetune network.py:make --data images.npz --epochs 1 --plan images.npz -o a.opq", 1, "images.npz is not text"),
    ],
)
def test_mistakes_end_in_one_line(work, capsys, arguments, status, message):
    """What a user gets wrong is told in a line: status 1 for what is not there, 2 for wrong usage."""
    assert main(arguments.split()) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.filterwarnings("ignore")
def test_networks_of_libraries_come_with_their_preprocessing():
    """Torchvision's and timm's networks are found by name, and say how they want their images."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    small = open_model("torchvision:squeezenet1_1")
    assert small.preprocessing.shape == (3, 224, 224)
    other = open_model("timm:test_resnet")
    assert other.preprocessing.shape == (3, 160, 160)
    with pytest.raises(opq.ModelError, match=r"no classifier of images.*SemanticSegmentation"):
        open_model("torchvision:lraspp_mobilenet_v3_large")
    with pytest.raises(opq.ModelError, match="no_such_network"):
        open_model("torchvision:no_such_network")
    with pytest.raises(opq.ModelError, match="no_such_network"):
        open_model("timm:no_such_network")


def test_folders_of_images(tmp_path):
    """A folder a class gives labels in order of names; images alone have none; the centre is cut out, or random parts."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for number, name in enumerate(("cat", "dog", "cat", "ant")):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((80, 100, 3), 60 * number, dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    want = plain(32, (0.5,) * 3, (0.25,) * 3)
    (inputs, labels), *_ = open_images(tmp_path, want, training=True)
    assert inputs.shape == (4, 3, 32, 32)
    assert sorted(labels.tolist()) == [0, 1, 1, 2]
    (inputs, labels), *_ = open_images(tmp_path / "train", want, training=False)
    assert labels.tolist() == [0, 1, 1, 2]
    assert torch.allclose(inputs.mean((1, 2, 3)), (torch.tensor([180.0, 0.0, 120.0, 60.0]) / 255.0 - 0.5) / 0.25, atol=1e-3)
    (inputs, *rest), *_ = [[batch] for batch in open_images(tmp_path / "train" / "cat", want, training=False)]
    assert inputs.shape == (2, 3, 32, 32)
    assert not rest
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "ant" / "._3.png").write_bytes(b"what a file system keeps beside an image")
    (_, labels), *_ = loader = open_images(tmp_path / "train", want, training=False)
    assert labels.tolist() == [0, 1, 1, 2]
    assert len(pickle.loads(pickle.dumps(loader.dataset))) == 4  # as workers that are not forked get it


def test_arrays_of_images_have_one_channel_or_three(tmp_path):
    """Channels stand last; an array that has them elsewhere is refused in one line."""
    for shape in ((4, 3, 16, 16), (4, 16, 16, 4)):
        np.savez(tmp_path / "images.npz", x_test=np.zeros(shape, np.uint8), y_test=np.zeros(4, np.int64))
        with pytest.raises(opq.SourceError, match="expected 1 or 3 channels behind height and width"):
            open_images(tmp_path / "images.npz", plain(), training=False)
