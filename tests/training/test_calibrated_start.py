"""Finetuning that starts from a calibrated file."""

import math

import numpy as np
import pytest
import torch
from interruptions import InterruptionError, interrupt_after
from small_networks import images, make, to_ratio

import opq
import opq.torch
from opq.training.attach import prepared_weights
from opq.training.run_folder import RunFolder

SIX = to_ratio(6.0, auxiliary="float16")


def calibrated():
    """A network and its calibration."""
    model, inputs = make("convolutions")
    return model, opq.calibrate(model, inputs)


@pytest.mark.slow
def test_training_starts_at_the_calibrated_file():
    """Before the first step, masks and values are those of the calibrated file, which is smaller by the reserve."""
    model, calibration = calibrated()
    budget = math.floor(sum(tensor.nbytes for tensor in model.state_dict().values()) / 6.0)
    wanted = opq.torch.load(calibration.compress(size=math.floor(0.9 * budget), auxiliary="float16").data)
    seen = {}

    class Stop(torch.optim.SGD):
        def step(self, closure=None):
            seen.update({w.names[0]: (w.codebook.mask.clone(), w.codebook(w.latent).detach()) for w in prepared_weights(model)})
            raise InterruptionError

    training = opq.TrainingConfig(epochs=1, reserve=0.1, optimizer=lambda groups: Stop(groups))
    with pytest.raises(InterruptionError):
        opq.finetune(model, images(), SIX, training, calibration=calibration)
    assert seen
    for name, (mask, value) in seen.items():
        assert torch.equal(value, wanted[name])
        assert torch.equal(mask, wanted[name] != 0)


@pytest.mark.parametrize(("kind", "axis"), [("convolutions", "columns"), ("sequences", "rows")])
def test_prepare_takes_the_scales_of_a_calibration(kind, axis):
    """Steps, scales and codes are those of the calibrated file, which is smaller by the reserve; the budget is the target."""
    model, inputs = make(kind)
    calibration = opq.calibrate(model, inputs)
    prepared = opq.prepare(model, ratio=6.0, reserve=0.1, calibration=calibration)
    dense_bytes = sum(tensor.nbytes for tensor in make(kind)[0].state_dict().values())
    with opq.OpqFile(calibration.compress(size=math.floor(0.9 * prepared.budget)).data) as file:
        assert file.file_bytes <= 0.9 * prepared.budget
        for weight in prepared.weights:
            expected = file[weight.names[0]].without_trellis
            found = weight.tensor()
            assert found.codebook.step == expected.codebook.step
            for name in ("rows", "columns"):
                np.testing.assert_array_equal(getattr(found.codebook, name, None), getattr(expected.codebook, name, None))
            np.testing.assert_array_equal(found.codes, expected.codes)
    assert any(getattr(weight.codebook, axis) is not None for weight in prepared.weights)
    assert prepared.budget <= dense_bytes / 6.0


def test_a_calibration_of_another_network_is_refused():
    """`prepare` takes the calibration of this network as it is now, and only with a target."""
    model, calibration = calibrated()
    other = make("convolutions", seed=1)[0]
    with pytest.raises(opq.PlanError, match="of another network"):
        opq.prepare(other, ratio=6.0, calibration=calibration)
    with pytest.raises(opq.PlanError, match="leave the calibration out"):
        opq.prepare(model, opq.plan(model, ratio=6.0), calibration=calibration)


@pytest.mark.slow
def test_a_calibrated_finetuning_is_within_its_budget():
    """The file is within the target and has no plan; it holds the values that the network has afterwards."""
    model, calibration = calibrated()
    finetuned = opq.finetune(
        model, images(), SIX, opq.TrainingConfig(epochs=2), teacher="dense", calibration=calibration, progress=False
    )
    opq.verify(finetuned.compressed.data)
    assert finetuned.budget == math.floor(sum(tensor.nbytes for tensor in model.state_dict().values()) / 6.0)
    assert finetuned.compressed.file_bytes <= finetuned.budget
    assert finetuned.compressed.plan is None
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in opq.torch.load(finetuned.compressed.data).items())


@pytest.mark.slow
@pytest.mark.parametrize("stop", [0, 1])
def test_a_resumed_calibrated_run_gives_the_same_bytes(tmp_path, stop):
    """A run interrupted in its first or second epoch resumes from the file that it started with, not from a new one."""

    def run(folder, on_epoch_end=None, seed=0):
        model, inputs = make("convolutions")
        calibration = opq.calibrate(model, inputs if seed == 0 else torch.randn(6, 2, 8, 8))
        training = opq.TrainingConfig(epochs=2)
        return opq.finetune(model, images(), SIX, training, calibration=calibration, folder=folder, on_epoch_end=on_epoch_end)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupt_after(stop))
    assert (RunFolder(tmp_path / "parts").load() is not None) == bool(stop)
    assert run(tmp_path / "parts", seed=1).compressed.data == whole.compressed.data


def test_a_calibration_is_refused_if_masks_are_fixed():
    """A plan, a file or a prepared network already decides what a calibration would decide."""
    model, calibration = calibrated()
    training = opq.TrainingConfig(epochs=1)
    for start in (opq.plan(model, ratio=6.0), opq.compress(model, ratio=6.0).data):
        with pytest.raises(opq.PlanError, match="leave the calibration out"):
            opq.finetune(model, images(), start, training, calibration=calibration)
    with pytest.raises(opq.PlanError, match="leave start and calibration out"):
        opq.finetune(opq.prepare(model, ratio=6.0), images(), training=training, calibration=calibration)
