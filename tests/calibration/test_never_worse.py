"""A calibrated file is never worse than the file from the weights alone, and what calibration leaves out is named."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import opq
import opq.torch
from opq.calibration.held_out import output_errors
from opq.calibration.inputs import FEWEST, split


class SamePadding(nn.Conv2d):
    """A convolution that pads its inputs itself, as those of timm do; calibration does not cover it."""

    def forward(self, x):
        """Pad, then convolve."""
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def network(seed, covered=False):
    torch.manual_seed(seed)
    layer = SamePadding if not covered else nn.Conv2d
    options = {"padding": 1} if covered else {}
    convolutions = [layer(channels, 12, 3, **options) for channels in (3, 12, 12)]
    steps = [step for convolution in convolutions for step in (convolution, nn.ReLU())]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)).eval()


def pictures(seed, count=64):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**16), st.booleans(), st.sampled_from([4.0, 7.0]))
@settings(max_examples=4)
def test_the_better_of_two_files_is_given(seed, covered, ratio):
    """On the held-out inputs the result errs at most as much as the file from the weights alone, at the same target."""
    model = network(seed, covered)
    calibration = opq.calibrate(model, pictures(seed))
    alone, result = opq.compress(model, ratio=ratio), calibration.compress(ratio=ratio)
    error, error_alone = output_errors(model, [result, alone], calibration.held_out)
    assert error <= error_alone
    assert result.file_bytes <= alone.file_bytes / 0.995


def test_inputs_on_which_calibration_does_not_help_give_the_other_file(caplog):
    """If the held-out inputs contradict the inputs, the file is that of the weights alone, and a warning says so."""
    model = network(0, covered=True)
    calibration = opq.calibrate(model, pictures(0))
    with caplog.at_level(logging.WARNING, "opq"):
        helped = calibration.compress(ratio=7)
        assert "does not help" not in caplog.text
        assert helped.data != opq.compress(model, ratio=7).data
        other = replace(calibration, inputs=0.01 * calibration.inputs.flip(0).abs() - 3.0, held_out=pictures(1))
        result = other.compress(ratio=7)
    alone = opq.compress(model, ratio=7)
    assert "calibration does not help: on 64 inputs" in caplog.text
    assert result.data == alone.data


def test_settings_are_those_of_both_files():
    """Excluded weights, fixed steps and metadata are in the file from the weights alone too."""
    model = network(0)
    calibration = replace(opq.calibrate(model, pictures(0)), held_out=torch.zeros(1, 3, 10, 10))
    options = {"ratio": 2, "exclude": ["2.weight"], "auxiliary": "exact"}
    results = [calibration.compress(metadata={"a": "b"}, **options), opq.compress(model, metadata={"a": "b"}, **options)]
    for result in results:
        with opq.OpqFile(result.data) as file:
            assert file.metadata == {"a": "b"}
            assert torch.equal(torch.from_numpy(file.array("2.weight")), model[2].weight)
            assert torch.equal(torch.from_numpy(file.array("0.bias")), model[0].bias)


@pytest.mark.parametrize("covered", [False, True])
def test_weights_without_calibration_are_named(covered, caplog):
    """A warning counts and names the weights that are quantized from their values alone; there is none if there are none."""
    calibration = opq.calibrate(network(0, covered), pictures(0))
    with caplog.at_level(logging.WARNING, "opq"):
        calibration.compress(ratio=6)
    message = "3 of 4 weights are quantized without the inputs"
    assert (message in caplog.text) == (not covered)
    assert ("'0.weight', '2.weight', '4.weight'" in caplog.text) == (not covered)


@given(st.integers(1, 1200))
def test_the_last_inputs_are_held_out(count):
    """From sixteen inputs on, the last eighth, at most 64, is held out; of fewer all are used for both."""
    inputs = torch.arange(count)
    used, held_out = split(inputs)
    if count < FEWEST:
        assert used is inputs
        assert held_out is inputs
    else:
        assert torch.equal(torch.cat([used, held_out]), inputs)
        assert len(held_out) == min(count // 8, 64)


def test_the_error_is_that_of_the_outputs():
    """It is 0 for a lossless file, and the squared error over the squared outputs for another."""
    model, inputs = network(0), pictures(0, 20)
    compressed = opq.compress(model, ratio=6)
    lossless, error = output_errors(model, [opq.compress(model, lossless=True), compressed], inputs)
    with torch.no_grad():
        other = network(1)
        other.load_state_dict(opq.torch.load(compressed.data))
        wanted, got = model(inputs).double(), other(inputs).double()
    assert lossless == 0.0
    assert error == pytest.approx(float((got - wanted).square().sum() / wanted.square().sum()), rel=1e-6)
    assert error > 0.0


def test_only_the_given_file_is_warned_of(caplog):
    """A weight that is all zero in the other file only is not named."""
    model = network(0, covered=True)
    model[0].weight.data *= 2.0**-40
    calibration = opq.calibrate(model, pictures(0))
    with caplog.at_level(logging.WARNING, "opq"):
        result = calibration.compress(ratio=7)
    with opq.OpqFile(result.data) as file:
        empty = [name for name, weight in file.weights() if not weight.num_kept]
    assert [f"'{name}'" in caplog.text for name in ("0.weight", "2.weight", "4.weight")] == [
        name in empty for name in ("0.weight", "2.weight", "4.weight")
    ]
