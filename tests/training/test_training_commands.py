"""The commands that take a network: finetune, calibrate, search and evaluate; networks by name, and images."""

import json
import math
import pickle
import re

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

def pixels():
    return nn.Conv2d(1, 10, 3, padding=1)

def text():
    return "not a network"
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
    """The working directory of commands, with the code of a network and images in .npz files."""
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


def test_finetune_writes_a_file_and_starts_from_it(work, capsys):
    """From a target, then from the file: each file is valid and within its size; the second has the masks of the first."""
    command = "finetune network.py:make --data images.npz --epochs 2 --ratio 4 --batch 16 -o a.opq --run run"
    assert main(command.split()) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(
        r"a\.opq: [0-9.]+ kB, 4\.[0-9]x smaller than .* under the budget of .*; "
        r"before: loss [0-9.e-]+, top-1 [0-9.]+%; after: loss [0-9.e-]+, top-1 [0-9.]+%\n",
        printed.out,
    )
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["before", "epoch 1 of 2", "epoch 2 of 2"]
    assert (work / "run" / "history.jsonl").read_text().count("\n") == 2
    again = "finetune network.py:make --weights a.opq --from a.opq --data images.npz --epochs 1 --batch 16 -o b.opq"
    assert main(again.split()) == 0
    opq.verify("b.opq")
    with opq.OpqFile("a.opq") as first, opq.OpqFile("b.opq") as second:
        assert second.file_bytes <= first.file_bytes
        for entry in first.entries:
            if entry.storage == "codes":
                np.testing.assert_array_equal(first[entry.name].codes != 0, second[entry.name].codes != 0)


def test_finetune_prints_losses_as_json(work, capsys):
    """--json has loss and metric before, after, and of each epoch."""
    command = "finetune network.py:make --data images.npz --epochs 2 --ratio 4 --batch 16 -o a.opq --json"
    assert main(command.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["before"]) == set(printed["after"]) == {"loss", "top1"}
    assert [row["epoch"] for row in printed["history"]] == [1, 2]
    assert all(row["loss"] > 0.0 and 0.0 <= row["top1"] <= 100.0 for row in printed["history"])


def test_settings_of_training_reach_the_library(work, capsys):
    """The options are the fields of TrainingConfig. Masks of a file are kept, so that updating them is an error."""
    common = "finetune network.py:make --data images.npz --epochs 3 --batch 16"
    settings = "--mask-update-epochs 2 --label-weight 0.25 --learning-rate 0.01 --seed 3"
    assert main(f"{common} --ratio 4 {settings} --run run -o a.opq".split()) == 0
    training = json.loads((work / "run" / "arguments.json").read_text())["training"]
    expected = opq.TrainingConfig(epochs=3, mask_update_epochs=2, label_weight=0.25, learning_rate=0.01, seed=3)
    assert training == json.loads(json.dumps(expected.describe()))
    capsys.readouterr()
    assert main(f"{common} --from a.opq --mask-update-epochs 1 -o b.opq".split()) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "mask_update_epochs must be 0" in error


def test_before_and_after_are_what_evaluate_prints(work, capsys):
    """Top-1 of the dense network and of the file is measured on the test images, as they are, not on augmented ones."""
    torch.save(open_model("network.py:make", seed=0).network.state_dict(), "a.pt")
    common = "network.py:make --weights a.pt --data images.npz --batch 16 --json"
    assert main(f"finetune {common} --epochs 2 --ratio 4 --label-weight 1 -o a.opq".split()) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main(f"evaluate {common}".replace("make", "make a.opq").split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert trained["before"]["top1"] == pytest.approx(found["dense"]["top1"])
    assert trained["after"]["top1"] == pytest.approx(found["file"]["top1"])


def test_a_run_refuses_other_images_and_preprocessing(work, capsys):
    """The same command gives the same file and says that the run is finished; other images, another mean, batch or
    augmentation are refused by name.
    """
    arrays = dict(np.load("images.npz"))
    np.savez("other.npz", **{**arrays, "x_train": arrays["x_train"] ^ 1})
    settings = {"--data": "images.npz", "--mean": "0.5", "--std": "0.25", "--batch": "16"}

    def finetune(*more, **changed):
        options = {**settings, **{f"--{key}": value for key, value in changed.items()}}
        words = " ".join([*(f"{key} {value}" for key, value in options.items()), *more])
        return main(f"finetune network.py:make --epochs 1 --ratio 4 --run run --force -o a.opq {words}".split())

    assert finetune() == 0
    first = (work / "a.opq").read_bytes()
    capsys.readouterr()
    assert finetune() == 0
    assert "the run in run is finished already; its result is used" in capsys.readouterr().err.splitlines()
    assert (work / "a.opq").read_bytes() == first
    for name, more, changed in (
        ("mean", (), {"mean": "0.25"}),
        ("std", (), {"std": "0.5"}),
        ("data", (), {"data": "other.npz"}),
        ("batch", (), {"batch": "17"}),
        ("augment", ("--no-augment",), {}),
    ):
        assert finetune(*more, **changed) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"different arguments (loader.{name}); use a new folder" in error, error


def test_finetune_follows_a_plan_or_a_config(work):
    """--plan keeps the plan's steps, and --config is equivalent to the same options."""
    torch.save(open_model("network.py:make", seed=0).network.state_dict(), "a.pt")
    common = "finetune network.py:make --weights a.pt --data images.npz --epochs 1 --batch 16"
    assert main(["plan", "a.pt", "--ratio", "4", "--rounding", "deadzone", "-o", "plan.json"]) == 0
    assert main(f"{common} --plan plan.json -o a.opq".split()) == 0
    plan = opq.Plan.from_json((work / "plan.json").read_text())
    with opq.OpqFile("a.opq") as file:
        assert {entry.name: entry.step for entry in file.entries if entry.step} == {
            name: layer.step for name, layer in plan.layers.items()
        }
    (work / "config.json").write_text(opq.CompressionConfig(target=opq.Ratio(4), auxiliary="float16").to_json())
    assert main(f"{common} --config config.json -o b.opq".split()) == 0
    assert main(f"{common} --ratio 4 --auxiliary float16 -o c.opq".split()) == 0
    assert (work / "b.opq").read_bytes() == (work / "c.opq").read_bytes()


@pytest.mark.slow
def test_search_finds_the_smallest_file(work, capsys):
    """The file, and the line about it, are those of `opq.compress_to_accuracy`; each tried file is a line on stderr."""
    torch.save(open_model("network.py:make", seed=0).network.state_dict(), "a.pt")
    common = "search network.py:make --weights a.pt --data images.npz --max-drop 5"
    assert main(f"{common} --auxiliary float16 -o a.opq".split()) == 0
    printed = capsys.readouterr()
    network = open_model("network.py:make", "a.pt").network
    loader = open_images("images.npz", plain(), training=False)
    found = opq.compress_to_accuracy(network, loader, max_drop=5, auxiliary="float16")
    assert (work / "a.opq").read_bytes() == found.compressed.data
    assert printed.out == f"a.opq: {found.compressed}, top-1 drop {found.best.drop:.2f} points\n"
    assert printed.err.count("top-1 drop") == len(found.trials)


@pytest.mark.slow
def test_calibrate_makes_the_file_of_the_library(work, capsys):
    """It calibrates on the training images of a file, on a part of them, and on synthetic images."""
    torch.save(open_model("network.py:make", seed=0).network.state_dict(), "a.pt")
    network = open_model("network.py:make", "a.pt", input_size=12, mean=(0.5,)).network
    images = torch.stack([plain().evaluation(image) for image in np.load("images.npz")["x_train"]])
    common = "calibrate network.py:make --weights a.pt --ratio 4 --force -o a.opq"
    assert main(f"{common} --images images.npz --num-images 40".split()) == 0
    assert re.fullmatch(r"a\.opq: [0-9.]+ kB, 4\.[0-9]x smaller than .* zeros\)\n", capsys.readouterr().out)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert (work / "a.opq").read_bytes() == opq.calibrate(network, images[order]).compress(ratio=4).data
    assert main(f"{common} --images images.npz --num-images 9".split()) == 0
    assert (work / "a.opq").read_bytes() == opq.calibrate(network, images[order[:9]]).compress(ratio=4).data
    assert main(f"{common} --images synthetic --input-size 12 --mean 0.5 --std 0.25".split()) == 0
    assert (work / "a.opq").read_bytes() == opq.calibrate(network, shape=(1, 12, 12)).compress(ratio=4).data


def test_initial_weights_are_the_same_each_time(work):
    """Random initial weights are the same in each process, so that the same command resumes from its folder."""
    command = "finetune network.py:make --data images.npz --ratio 4 --epochs 1 --batch 16 --run run --force -o a.opq"
    torch.manual_seed(1)
    assert main(command.split()) == 0
    first = (work / "a.opq").read_bytes()
    torch.manual_seed(2)
    assert main(command.split()) == 0
    assert (work / "a.opq").read_bytes() == first


def test_finetune_starts_from_a_calibrated_file(work):
    """--calibrate gives the masks and steps of `opq calibrate` at the target less the reserve."""
    torch.save(open_model("network.py:make").network.state_dict(), "a.pt")
    network = "network.py:make --weights a.pt --num-images 9"
    options = "--calibrate images.npz --data images.npz --batch 16 --epochs 1 --size 4000 --run run -o a.opq"
    assert main(f"finetune {network} {options}".split()) == 0
    size = math.floor(4000 * (1.0 - opq.TrainingConfig(epochs=1).reserve))
    assert main(f"calibrate {network} --images images.npz --size {size} -o b.opq".split()) == 0
    with opq.OpqFile("run/start.opq") as first, opq.OpqFile("b.opq") as second, opq.OpqFile("a.opq") as trained:
        for entry in first.entries:
            if entry.storage == "codes":
                np.testing.assert_array_equal(first[entry.name].codes, second[entry.name].codes)
                np.testing.assert_array_equal(first[entry.name].codes != 0, trained[entry.name].codes != 0)
                assert first[entry.name].codebook == trained[entry.name].codebook


def test_evaluate_compares_with_the_dense_network(work, capsys):
    """The numbers are those of `opq.evaluate`, for the dense network and for the network with the file's weights."""
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


def test_images_of_different_sizes_are_an_error(work, capsys):
    """A network without an input size needs images of one size, or --input-size."""
    image = pytest.importorskip("PIL.Image")
    (work / "mixed").mkdir()
    for width in (12, 14):
        image.new("L", (width, 12)).save(work / "mixed" / f"{width}.png")
    assert main(["evaluate", "network.py:make", "--data", "mixed"]) == 1
    assert "give --input-size" in capsys.readouterr().err


def test_a_file_of_code_is_run_as_python_runs_it(work):
    """Dataclasses find their module; an error in the user's code is reported with its place, not as a missing factory."""
    (work / "other.py").write_text(DATACLASS)
    assert open_model("other.py:make").network.in_features == 4
    with pytest.raises(opq.ModelError, match=r"its code fails at line \d+ of .*other\.py: AttributeError: .*absent"):
        open_model("other.py:broken")


def test_a_factory_may_import_modules_of_its_folder(work):
    """Imports work while the factory runs and while its file is loaded; a missing module is a ModelError."""
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
        ("evaluate network --data images.npz", 1, "MODEL must be torchvision:NAME, timm:NAME"),
        ("calibrate m.onnx --ratio 4 --images synthetic -o x.opq", 1, "opq does not run ONNX models; use opq compress"),
        ("evaluate network.py:absent --data images.npz", 1, "there is no 'absent' in network.py"),
        ("evaluate absent.py:make --data images.npz", 1, "there is no file absent.py"),
        ("evaluate no_such_package:make --data images.npz", 1, "No module named 'no_such_package'"),
        ("evaluate network.py:text --data images.npz", 1, "the factory must return a torch module, got str"),
        ("evaluate network.py:make --data absent", 1, "there is no such folder"),
        ("evaluate network.py:make --data . ", 1, "it holds no images"),
        ("evaluate network.py:make --data images.npz --mean a,b", 2, "--mean must be numbers separated by commas, got 'a,b'"),
        (
            "evaluate network.py:make --data images.npz --weights absent.pt",
            1,
            "weights must be an existing file, got 'absent.pt'",
        ),
        ("finetune network.py:make --data images.npz --epochs 1 -o a.opq", 2, "Give exactly one target"),
        ("finetune network.py:make --data images.npz --epochs 1 --from a.opq --plan p -o a.opq", 2, "give one of them"),
        ("finetune network.py:make --data images.npz --epochs 1 --ratio 4 -o network.py", 1, "it exists"),
        (
            "calibrate network.py:make --images synthetic --num-images 9 --ratio 4 -o a.opq",
            2,
            "--num-images requires a folder of images",
        ),
        (
            "finetune network.py:make --data images.npz --epochs 1 --from b --calibrate d -o a.opq",
            2,
            "--calibrate and --from both determine masks and steps",
        ),
        ("calibrate network.py:make --images synthetic --ratio 4 -o a.opq", 2, "give --input-size"),
        ("calibrate network.py:make --images images.npz --sparsity 0.5 --bits 3 -o a.opq", 2, "No such option"),
        ("search network.py:make --data images.npz --max-drop 1 --ratio 3 -o a.opq", 2, "No such option"),
        ("evaluate network.py:make --data images.npz --std 0", 2, "--std must be positive, got '0'"),
        ("evaluate network.py:make --data images.npz --mean 1,2", 2, "--mean must be one or three finite numbers, got '1,2'"),
        ("evaluate network.py:make --data images.npz --device abacus", 2, "--device must be an available device, got 'abacus'"),
        ("finetune network.py:make --data images.npz --epochs 1 --from b --ratio 3 -o a.opq", 2, "leave out --ratio"),
        ("evaluate network.py:pixels --data images.npz", 1, "must return logits (n, classes)"),
        ("search network.py:pixels --data images.npz --max-drop 1 -o a.opq", 1, "must return logits (n, classes)"),
        ("finetune network.py:pixels --data images.npz --epochs 1 --ratio 1.5 -o a.opq", 1, "are not classes for logits"),
        ("evaluate network.py:make --data colours.npz", 1, "the network fails on a batch of (40, 3, 12, 12)"),
        ("finetune network.py:make --data colours.npz --epochs 1 --ratio 4 -o a.opq", 1, "the network fails on a batch"),
        ("finetune network.py:make --data many.npz --epochs 1 --ratio 4 --label-weight 0.5 -o a.opq", 1, "labels go from"),
        (
            "finetune network.py:make --data images.npz --epochs 1 --plan images.npz -o a.opq",
            1,
            "images.npz must be a JSON file",
        ),
    ],
)
def test_errors_of_the_user_are_explained(work, capsys, arguments, status, message):
    """The message is on stderr. The exit status is 1 for an error and 2 for wrong usage."""
    assert main(arguments.split()) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert status == 2 or captured.err.count("\n") == 1


@pytest.mark.filterwarnings("ignore")
def test_networks_of_libraries_come_with_their_preprocessing():
    """Networks of torchvision and timm are found by name, with the published preprocessing."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    small = open_model("torchvision:squeezenet1_1")
    assert small.preprocessing.shape == (3, 224, 224)
    other = open_model("timm:test_resnet")
    assert other.preprocessing.shape == (3, 160, 160)
    with pytest.raises(opq.ModelError, match=r"must be an image classifier.*SemanticSegmentation"):
        open_model("torchvision:lraspp_mobilenet_v3_large")
    with pytest.raises(opq.ModelError, match="no_such_network"):
        open_model("torchvision:no_such_network")
    with pytest.raises(opq.ModelError, match="no_such_network"):
        open_model("timm:no_such_network")


def test_folders_of_images(tmp_path):
    """One folder per class gives labels in order of names; images alone have none. Hidden files are ignored."""
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
    (tmp_path / "train" / "ant" / "._3.png").write_bytes(b"metadata of a file system")
    (_, labels), *_ = loader = open_images(tmp_path / "train", want, training=False)
    assert labels.tolist() == [0, 1, 1, 2]
    assert len(pickle.loads(pickle.dumps(loader.dataset))) == 4  # as for workers that are not forked


def test_arrays_of_images_have_one_channel_or_three(tmp_path):
    """The channels are the last axis; an array with another number there is refused."""
    for shape in ((4, 3, 16, 16), (4, 16, 16, 4)):
        np.savez(tmp_path / "images.npz", x_test=np.zeros(shape, np.uint8), y_test=np.zeros(4, np.int64))
        with pytest.raises(opq.SourceError, match="must have 1 or 3 channels in its last axis"):
            open_images(tmp_path / "images.npz", plain(), training=False)
