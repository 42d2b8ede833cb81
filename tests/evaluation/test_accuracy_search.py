"""Laws of the smallest file within a drop, of the search behind it, and of `opq compress` on a network that is at hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import opq
import opq.torch
from opq.cli.main import main
from opq.evaluation.accuracy_search import find_ratio

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )
"""


@given(st.floats(0.1, 9e3), st.floats(0.005, 0.3))
def test_the_search_ends_close_under_the_highest_ratio_that_is_within(limit, tolerance):
    """Where the drop rises with the ratio: within the drop, and no more than the tolerance under what is; in few steps."""
    asked = []

    def drop_at(ratio):
        asked.append(ratio)
        return 0.5 if ratio <= limit else 2.0

    found = find_ratio(drop_at, 1.0, tolerance)
    if limit < 1.25:
        assert found == 0.0
    else:
        assert found <= limit <= found * (1.0 + tolerance)
    brackets = 2 + abs(math.log2(limit / 10.0))
    assert len(asked) <= brackets + 1 + math.ceil(math.log2(math.log(2.0) / math.log1p(tolerance)))


def test_a_search_in_which_all_is_within_or_nothing_ends():
    """At the ends of the ratios that are tried at all."""
    assert find_ratio(lambda ratio: 0.0, 1.0, 0.03) == 1e4
    assert find_ratio(lambda ratio: math.inf, 1.0, 0.03) == 0.0


@pytest.fixture(scope="module")
def task():
    """A network that tells which of eight prototypes an input is nearest to, and noisy inputs with labels."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(8, 64, generator=generator)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(64) + 0.05 * torch.randn(64, 64, generator=generator))
        model[0].bias.zero_()
        model[1].weight.copy_(prototypes)
        model[1].bias.copy_(-0.5 * prototypes.square().sum(1))
    labels = torch.randint(8, (600,), generator=generator)
    inputs = prototypes[labels] + 2.5 * torch.randn(600, 64, generator=generator)
    return model.eval(), list(zip(inputs.split(100), labels.split(100), strict=True))


@pytest.mark.parametrize("max_drop", [0.5, 3.0])
def test_the_file_is_within_the_drop_and_the_next_smaller_one_is_not(task, max_drop):
    """What the file holds, evaluated anew, is within the drop; a file 3% smaller than it was tried, and lost more."""
    model, loader = task
    seen = []
    found = opq.compress_to_accuracy(model, loader, max_drop=max_drop, report=seen.append)
    assert list(found.trials) == seen
    again = opq.torch.load(found.compressed.data)
    other = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    other.load_state_dict(again)
    assert found.dense.top1 - opq.evaluate(other, loader).top1 == found.best.drop <= max_drop
    size = found.compressed.file_bytes
    assert any(0.95 * size < trial.compressed.file_bytes < size and trial.drop > max_drop for trial in seen)
    assert len(seen) <= 11


def test_a_larger_drop_gives_no_larger_file(task):
    """More points allowed, fewer bytes or as many."""
    sizes = [opq.compress_to_accuracy(*task, max_drop=drop).compressed.file_bytes for drop in (0.0, 1.0, 10.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_finest_file_is_tried_where_the_lowest_ratio_is_out_of_reach(monkeypatch):
    """Codes end before ratio 1.25: a network that loses too much at 2.5 may be within the drop at the finest steps."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(256, 256, generator=generator))
    with pytest.raises(opq.TargetError, match="out of reach"):
        opq.compress(model, ratio=1.25)
    loader = [(torch.randn(10, 256, generator=generator), torch.zeros(10, dtype=torch.int64))]
    dense = opq.evaluate(model, loader)

    def evaluate(network, _):
        far = (network[0].weight - model[0].weight).abs().max().item() > 1e-4
        return replace(dense, top1=0.0 if far else 100.0)

    monkeypatch.setattr("opq.evaluation.accuracy_search.evaluate", evaluate)
    found = opq.compress_to_accuracy(model, loader, max_drop=0.0)
    assert found.compressed.file_ratio < 2.5


def test_a_calibrated_search_uses_the_calibration(task):
    """With a calibration the file is what the calibration makes, and as far within the drop."""
    model, loader = task
    calibration = opq.calibrate(model, torch.cat([inputs for inputs, _ in loader])[:100])
    found = opq.compress_to_accuracy(model, loader, max_drop=2.0, calibration=calibration, tolerance=0.2)
    assert found.best.drop <= 2.0
    ratio = found.best.compressed.plan.target["ratio"]
    assert found.compressed.data == calibration.compress(ratio=ratio).data


def test_what_cannot_be_searched_for_is_said(task):
    """No labels, a target of its own, a drop below zero, one that no file keeps: each is an error that says so."""
    model, loader = task
    with pytest.raises(opq.TargetError, match="loader must give labels"):
        opq.compress_to_accuracy(model, [inputs for inputs, _ in loader])
    with pytest.raises(opq.TargetError, match="leave ratio out"):
        opq.compress_to_accuracy(model, loader, ratio=4)
    with pytest.raises(opq.TargetError, match="leave sparsity out"):
        opq.compress_to_accuracy(model, loader, sparsity=0.0)
    with pytest.raises(opq.TargetError, match=r"max_drop \(=-1.0\) must be >= 0"):
        opq.compress_to_accuracy(model, loader, max_drop=-1.0)
    worse = [(inputs, model(inputs).argmax(1)) for inputs, _ in loader]  # the dense network is always right
    with pytest.raises(opq.TargetError, match=r"no file loses at most 0 points of top-1: at ratio [\d.]+ it loses"):
        opq.compress_to_accuracy(model, worse, max_drop=0.0, overrides={"1.weight": {"bits": 0.05}})


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a network's code and images in an .npz file, which is where commands run."""
    rng = np.random.default_rng(0)
    (tmp_path / "network.py").write_text(NETWORK)
    arrays = {f"x_{part}": rng.integers(0, 256, (40, 12, 12), dtype=np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": rng.integers(0, 10, 40) for part in ("train", "test")}
    np.savez(tmp_path / "images.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GREY = "--mean 0.5 --std 0.25"


@pytest.mark.parametrize("inputs", ["images.npz", "drawn --input-size 12"])
def test_compress_calibrates_a_named_network(work, capsys, inputs):
    """The file is whole and within its size, and the same at every run; on images, and on drawn ones."""
    for name in ("a.opq", "b.opq"):
        assert main(f"compress network.py:make --calibrate {inputs} {GREY} --ratio 3 -o {name}".split()) == 0
    opq.verify("a.opq")
    assert capsys.readouterr().out.startswith("a.opq: ")
    assert (work / "a.opq").read_bytes() == (work / "b.opq").read_bytes()
    assert (work / "a.opq").stat().st_size <= 4 * (16 * 9 + 16 * 5 + 24 * 16 * 9 + 24 + 240 + 10) / 3 + 8


@pytest.mark.parametrize("calibrated", ["", "--calibrate images.npz"])
def test_compress_finds_the_smallest_file_within_a_drop(work, capsys, calibrated):
    """What `opq evaluate` says of the file is within the drop of what it says of the network; trials are told on stderr."""
    command = f"compress network.py:make --max-drop 5 --data images.npz {GREY} {calibrated} -o a.opq"
    assert main(command.split()) == 0
    assert "top-1 falls by" in capsys.readouterr().err
    assert main(f"evaluate network.py:make a.opq --data images.npz {GREY} --json".split()) == 0
    import json

    results = json.loads(capsys.readouterr().out)
    assert results["dense"]["top1"] - results["file"]["top1"] <= 5.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--max-drop 1", "--max-drop needs --data"),
        ("--max-drop 1 --data images.npz --ratio 3", "--max-drop finds the size"),
        ("--calibrate drawn --ratio 3", "give --input-size"),
        ("--calibrate images.npz --ratio 3 --data images.npz", "--data goes with --max-drop"),
        ("--calibrate images.npz --lossless", "--lossless keeps every bit"),
        ("--calibrate images.npz --plan p.json", "leave --calibrate and --max-drop out"),
        ("--calibrate images.npz --ratio 3 --batch 3", "--batch goes with --max-drop"),
        ("--calibrate images.npz --ratio 3 --device cpu", "--device goes with --max-drop"),
        ("--max-drop 1 --data images.npz --images 3", "--images goes with --calibrate DIR"),
        ("--calibrate drawn --ratio 3 --images 3", "--images goes with --calibrate DIR"),
        ("--calibrate images.npz --ratio 3 --mean 0,nan,0", "--mean: expected one finite number, or three"),
        ("--calibrate images.npz --ratio 3 --mean 0,0", "--mean: expected one finite number, or three"),
        ("--calibrate images.npz --ratio 3 --std 1,0,1", "--std: expected one finite number, or three, > 0"),
        ("--ratio 3 --weights w.pt", "--weights goes with --calibrate or --max-drop"),
    ],
)
def test_options_that_do_not_go_together_are_refused(work, capsys, options, problem):
    """Each is wrong usage, status 2, and no file is written."""
    assert main(f"compress network.py:make {options} -o a.opq".split()) == 2
    assert problem in " ".join(capsys.readouterr().err.split())
    assert not (work / "a.opq").exists()


def test_images_that_are_not_there_are_told_in_one_line(work, capsys):
    """A missing folder is an error, status 1."""
    assert main(["compress", "network.py:make", "--calibrate", "nowhere", "--ratio", "3", "-o", "a.opq"]) == 1
    assert capsys.readouterr().err == "opq: error: cannot read nowhere: no such folder\n"
