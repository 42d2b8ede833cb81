"""Finetuning from what a calibration gives."""

import math

import pytest
import torch
from interruptions import InterruptionError, interrupting_after
from small_networks import make
from test_finetuning import images

import opq
import opq.torch
from opq.training.prepared_model import codebooks
from opq.training.run_folder import RunFolder

SIX = {"ratio": 6.0, "auxiliary": "half"}


def calibrated():
    """A network and its calibration."""
    model, inputs = make("convolutions")
    return model, opq.calibrate(model, inputs)


def test_training_begins_at_the_calibrated_file():
    """Masks, steps and values before the first step are those of the calibration's file, smaller by the reserve."""
    model, calibration = calibrated()
    budget = math.floor(sum(tensor.nbytes for tensor in model.state_dict().values()) / 6.0)
    wanted = opq.torch.load(calibration.compress(size=math.floor(0.9 * budget), auxiliary="half").data)
    seen = {}

    class Stop(torch.optim.SGD):
        def step(self, closure=None):
            seen.update({w.names[0]: (w.codebook.mask.clone(), w.codebook(w.latent).detach()) for w in codebooks(model)})
            raise InterruptionError

    recipe = opq.TrainingConfig(optimizer=lambda groups: Stop(groups))
    with pytest.raises(InterruptionError):
        opq.finetune(model, images(), epochs=1, calibration=calibration, recipe=recipe, reserve=0.1, **SIX)
    assert seen
    for name, (mask, value) in seen.items():
        assert torch.equal(value, wanted[name])
        assert torch.equal(mask, wanted[name] != 0)


def test_a_calibrated_file_is_within_its_budget():
    """The finetuned file is within what was asked, and holds what the network then holds."""
    model, calibration = calibrated()
    finetuned = opq.finetune(model, images(), epochs=2, teacher="dense", calibration=calibration, **SIX)
    opq.verify(finetuned.compressed.data)
    assert finetuned.compressed.file_bytes <= finetuned.budget
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in opq.torch.load(finetuned.compressed.data).items())


@pytest.mark.parametrize("stop", [0, 1])
def test_a_resumed_calibrated_run_gives_the_same_bytes(tmp_path, stop):
    """Interrupted in its first or second epoch, a run goes on from the file that it began with, not from one made now."""

    def run(folder, watch=None, seed=0):
        model, inputs = make("convolutions")
        calibration = opq.calibrate(model, inputs if seed == 0 else torch.randn(6, 2, 8, 8))
        return opq.finetune(model, images(), epochs=2, calibration=calibration, folder=folder, watch=watch, **SIX)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupting_after(stop))
    assert (RunFolder(tmp_path / "parts").load() is not None) == bool(stop)
    assert run(tmp_path / "parts", seed=1).compressed.data == whole.compressed.data


def test_a_calibration_is_refused_where_masks_are_fixed():
    """A calibration beside a plan, a file or a prepared network would decide what is decided already."""
    model, calibration = calibrated()
    for start in (opq.plan(model, ratio=6.0), opq.compress(model, ratio=6.0).data):
        with pytest.raises(opq.PlanError, match="leave the calibration out"):
            opq.finetune(model, images(), epochs=1, start=start, calibration=calibration)
    opq.prepare(model, ratio=6.0)
    with pytest.raises(opq.PlanError, match="leave the calibration out"):
        opq.finetune(model, images(), epochs=1, calibration=calibration)
