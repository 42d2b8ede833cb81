"""Laws of the search for the smallest file within a drop of accuracy."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import opq
import opq.torch
from opq.evaluation.accuracy_search import find_ratio


@given(st.floats(0.1, 9e3), st.floats(0.005, 0.3))
def test_the_search_ends_close_below_the_highest_ratio(limit, tolerance):
    """If the drop rises with the ratio, the result is within the drop, within the tolerance of the best, and found in few
    steps.
    """
    tried = []

    def drop_at(ratio):
        tried.append(ratio)
        return 0.5 if ratio <= limit else 2.0

    found = find_ratio(drop_at, 1.0, tolerance)
    if limit < 1.25:
        assert found == 0.0
    else:
        assert found <= limit <= found * (1.0 + tolerance)
    num_brackets = 2 + abs(math.log2(limit / 10.0))
    assert len(tried) <= num_brackets + 1 + math.ceil(math.log2(math.log(2.0) / math.log1p(tolerance)))


def test_a_search_without_a_border_ends():
    """If every ratio is within the drop, or none, the search ends at the end of its range."""
    assert find_ratio(lambda ratio: 0.0, 1.0, 0.03) == 1e4
    assert find_ratio(lambda ratio: math.inf, 1.0, 0.03) == 0.0


@pytest.fixture(scope="module")
def task():
    """A network that classifies inputs by the nearest of eight prototypes, and noisy inputs with labels."""
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
    """The network in the file is within the drop; a file about 3% smaller was tried and lost more."""
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
    """The size does not grow with the allowed drop."""
    sizes = [opq.compress_to_accuracy(*task, max_drop=drop).compressed.file_bytes for drop in (0.0, 1.0, 10.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_finest_file_is_tried_if_the_lowest_ratio_is_out_of_reach(monkeypatch):
    """Even the finest steps give a file smaller than ratio 1.25: that file is tried if ratio 2.5 loses too much."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(256, 256, generator=generator))
    with pytest.raises(opq.TargetError, match="out of reach"):
        opq.compress(model, ratio=1.25)
    loader = [(torch.randn(10, 256, generator=generator), torch.zeros(10, dtype=torch.int64))]
    dense = opq.evaluate(model, loader)

    def evaluate(network, _, **__):
        far = (network[0].weight - model[0].weight).abs().max().item() > 1e-4
        return replace(dense, top1=0.0 if far else 100.0)

    monkeypatch.setattr("opq.evaluation.accuracy_search.evaluate", evaluate)
    found = opq.compress_to_accuracy(model, loader, max_drop=0.0)
    assert found.compressed.file_ratio < 2.5


class RecordingCalibration(opq.Calibration):
    """A calibration that records the configs of its files."""

    def compress(self, config=None, **options):
        """As Calibration.compress."""
        compressed = super().compress(config, **options)
        self.configs.append(config)
        return compressed


@pytest.mark.slow
def test_a_calibrated_search_uses_the_calibration(task):
    """With a calibration the file is one that the calibration makes, and is within the drop."""
    model, loader = task
    calibration = opq.calibrate(model, torch.cat([inputs for inputs, _ in loader])[:100])
    recording = RecordingCalibration(**vars(calibration))
    object.__setattr__(recording, "configs", [])
    found = opq.compress_to_accuracy(model, loader, max_drop=2.0, calibration=recording, tolerance=0.2, exclude=["1.*"])
    assert found.best.drop <= 2.0
    assert len(recording.configs) == len(found.trials)
    assert {config.exclude for config in recording.configs} == {("1.*",)}
    config = recording.configs[found.trials.index(found.best)]
    assert found.compressed.data == calibration.compress(config).data


def test_settings_of_a_config_reach_every_file(task):
    """Keywords other than the target are those of `opq.compress`."""
    model, loader = task
    found = opq.compress_to_accuracy(model, loader, max_drop=1.0, rounding="deadzone", exclude=["1.*"])
    for trial in found.trials:
        assert trial.compressed.data == opq.compress(model, trial.compressed.plan).data
        assert list(trial.compressed.plan.layers) == ["0.weight"]
        assert {layer.rounding for layer in trial.compressed.plan.layers.values()} == {"deadzone"}


def test_a_result_prints_its_trials(task):
    """The table has a row per file, and the last line is the best one; the network is unchanged and keeps its mode."""
    model, loader = task
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = opq.compress_to_accuracy(model, loader, max_drop=1.0)
    lines = str(found).splitlines()
    assert len([line for line in lines if any(f"{t.compressed.file_bytes:,}" in line for t in found.trials)]) >= len(
        found.trials
    )
    assert lines[-1] == f"best: {found.compressed}"
    assert str(found.compressed) in repr(found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 4}, "ratio must not be given"),
        ({"size": "1kB"}, "size must not be given"),
        ({"sparsity": 0.0}, "sparsity must not be given"),
        ({"bits": 3.0}, "bits must not be given"),
        ({"lossless": True}, "lossless must not be given"),
        ({"max_drop": -1.0}, "max_drop .*must be >= 0"),
        ({"max_drop": math.nan}, "max_drop .*must be >= 0"),
        ({"tolerance": 0.0}, r"tolerance .*lie in \(0, 1\)"),
        ({"tolerance": 1.0}, r"tolerance .*lie in \(0, 1\)"),
    ],
)
def test_options_that_contradict_are_refused(task, options, message):
    """A target, a negative drop and a tolerance out of range each raise a TargetError."""
    with pytest.raises(opq.TargetError, match=message):
        opq.compress_to_accuracy(*task, **options)


def test_what_cannot_be_searched_for_is_an_error(task):
    """Missing labels, a drop that no file achieves, and an unknown keyword are errors that name the problem."""
    model, loader = task
    with pytest.raises(opq.TargetError, match="labels"):
        opq.compress_to_accuracy(model, [inputs for inputs, _ in loader])
    worse = [(inputs, model(inputs).argmax(1)) for inputs, _ in loader]  # the dense network is always right
    with pytest.raises(opq.TargetError, match=r"no file loses at most 0 points of top-1: at ratio [\d.]+ it loses"):
        opq.compress_to_accuracy(model, worse, max_drop=0.0, layers={"1.weight": opq.LayerConfig(bits=0.05)})
    with pytest.raises(TypeError, match=r"compress_to_accuracy\(\) .* 'exclud'; did you mean 'exclude'\?"):
        opq.compress_to_accuracy(model, loader, exclud=["1.*"])
