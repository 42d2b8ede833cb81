"""A calibrated file is never worse than the file from the weights alone, and what calibration leaves out is named."""

import logging
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import opq
import opq.torch
from opq.calibration.held_out import output_errors
from opq.calibration.inputs import FEWEST, groups_of, joined, portions, split


class SamePadding(nn.Conv2d):
    """A convolution that pads its inputs itself, as those of timm do."""

    def forward(self, x):
        """Pad, then convolve."""
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class WithSpares(nn.Sequential):
    """A network with three layers that do not run."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.spares = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x):
        """The outputs of the other layers."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def network(seed, spares=False):
    torch.manual_seed(seed)
    convolutions = [SamePadding(channels, 12, 3) for channels in (3, 12, 12)]
    steps = [step for convolution in convolutions for step in (convolution, nn.ReLU())]
    return (WithSpares if spares else nn.Sequential)(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)).eval()


def pictures(seed, count=64):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**16), st.booleans(), st.sampled_from([4.0, 7.0]))
@settings(max_examples=4)
def test_the_better_of_two_files_is_given(seed, spares, ratio):
    """On the held-out inputs the result errs at most as much as the file from the weights alone, at the same target."""
    model = network(seed, spares)
    calibration = opq.calibrate(model, pictures(seed))
    alone, result = opq.compress(model, ratio=ratio), calibration.compress(ratio=ratio)
    error, error_alone = output_errors(model, [result, alone], calibration.held_out)
    assert error <= error_alone
    assert result.file_bytes <= alone.file_bytes / 0.995


def test_inputs_on_which_calibration_does_not_help_give_the_other_file(caplog):
    """If the held-out inputs contradict the inputs, the file is that of the weights alone, and a warning says so."""
    model = network(0)
    calibration = opq.calibrate(model, pictures(0))
    with caplog.at_level(logging.WARNING, "opq"):
        helped = calibration.compress(ratio=7)
        assert "does not help" not in caplog.text
        assert helped.data != opq.compress(model, ratio=7).data
        wrong = {name: replace(found, rows=found.rows**-4) for name, found in calibration.curvatures.items()}
        result = replace(calibration, curvatures=wrong, held_out=[((pictures(1),), {})]).compress(ratio=7)
    alone = opq.compress(model, ratio=7)
    assert "calibration does not help: on 64 inputs" in caplog.text
    assert result.data == alone.data


def test_settings_are_those_of_both_files():
    """Excluded weights, fixed steps and metadata are in the file from the weights alone too."""
    model = network(0)
    calibration = replace(opq.calibrate(model, pictures(0)), held_out=[((torch.zeros(1, 3, 10, 10),), {})])
    options = {"ratio": 2, "exclude": ["2.weight"], "auxiliary": "exact"}
    results = [calibration.compress(metadata={"a": "b"}, **options), opq.compress(model, metadata={"a": "b"}, **options)]
    for result in results:
        with opq.OpqFile(result.data) as file:
            assert file.metadata == {"a": "b"}
            assert torch.equal(torch.from_numpy(file.array("2.weight")), model[2].weight)
            assert torch.equal(torch.from_numpy(file.array("0.bias")), model[0].bias)


@pytest.mark.parametrize("spares", [False, True])
def test_weights_without_calibration_are_named(spares, caplog):
    """A warning counts and names the weights that are quantized from their values alone; there is none if there are none."""
    calibration = opq.calibrate(network(0, spares), pictures(0))
    with caplog.at_level(logging.INFO, "opq"):
        calibration.compress(ratio=3 if spares else 6)
    assert ("3 of 7 weights are quantized without the inputs" in caplog.text) == spares
    assert ("'spares.0.weight', 'spares.1.weight', 'spares.2.weight'" in caplog.text) == spares
    assert f"4 of {7 if spares else 4} weights are calibrated" in caplog.text


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_the_last_inputs_are_held_out(sizes):
    """From sixteen inputs on, the last eighth, at most 64, is held out; of fewer all are used for both. Their order stays."""
    numbers = torch.arange(sum(sizes)).split(sizes)
    batches = [((part,), {"shared": torch.zeros(3 * sum(sizes))}) for part in numbers]
    used, held_out = split(batches)
    if sum(sizes) < FEWEST:
        assert used == held_out == batches
    else:
        assert torch.equal(torch.cat([batch[0][0] for batch in (*used, *held_out)]), torch.arange(sum(sizes)))
        assert sum(len(batch[0][0]) for batch in held_out) == min(sum(sizes) // 8, 64)
    whole = portions(used, 7)
    assert torch.equal(torch.cat([batch[0][0] for batch in whole]), torch.cat([batch[0][0] for batch in used]))
    assert all(len(batch[0][0]) <= 7 and len(batch[1]["shared"]) == 3 * sum(sizes) for batch in whole)
    groups = groups_of(used, 5)
    assert torch.equal(
        torch.cat([batch[0][0] for group in groups for batch in group]), torch.cat([batch[0][0] for batch in used])
    )
    share = -(-sum(len(batch[0][0]) for batch in used) // 5)
    assert all(sum(len(batch[0][0]) for batch in group) <= share for group in groups)
    assert len(groups) <= 10
    assert torch.equal(joined(used, 20)[0][0], torch.cat([batch[0][0] for batch in used])[:20])


def test_the_error_is_that_of_the_outputs():
    """It is 0 for a lossless file, and the squared error over the mean square of the outputs for another."""
    model, inputs = network(0), pictures(0, 20)
    compressed = opq.compress(model, ratio=6)
    lossless, error = output_errors(model, [opq.compress(model, lossless=True), compressed], [((inputs,), {})])
    with torch.no_grad():
        other = network(1)
        other.load_state_dict(opq.torch.load(compressed.data))
        wanted, got = model(inputs).double(), other(inputs).double()
    assert lossless == 0.0
    assert error == pytest.approx(float((got - wanted).square().sum() / wanted.square().sum()), rel=1e-6)
    assert error > 0.0


def test_only_the_given_file_is_warned_of(caplog):
    """A weight that is all zero in the other file only is not named."""
    model = network(0)
    model[0].weight.data *= 2.0**-40
    calibration = opq.calibrate(model, pictures(0))
    with caplog.at_level(logging.WARNING, "opq"):
        result = calibration.compress(ratio=7)
    with opq.OpqFile(result.data) as file:
        empty = [name for name, weight in file.weights() if not weight.num_kept]
    assert [f"'{name}'" in caplog.text for name in ("0.weight", "2.weight", "4.weight")] == [
        name in empty for name in ("0.weight", "2.weight", "4.weight")
    ]


def test_if_all_weights_are_fixed_nothing_is_calibrated():
    """The file is that of the weights alone."""
    model = network(0)
    fixed = {"*weight": opq.LayerConfig(step=0.02)}
    with pytest.raises(opq.TargetError) as raised:
        opq.compress(model, ratio=1.5, layers=fixed)
    size = math.ceil(int(re.search(r"to ([\d,]+) bytes", str(raised.value))[1].replace(",", "")) * 1.05)
    calibrated = opq.calibrate(model, pictures(0)).compress(size=size, layers=fixed)
    assert calibrated.data == opq.compress(model, size=size, layers=fixed).data
