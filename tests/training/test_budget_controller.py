"""A training held to a byte budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import InterruptionError, interrupting_after
from small_networks import make
from test_finetuning import images
from torch import nn

import opq
from opq.training.budget.code_reduction import section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.prepared_model import codebooks
from opq.training.run_folder import RunFolder


def spread(seed):
    """A prepared network whose codes have spread, and those codes."""
    torch.manual_seed(seed)
    model = opq.prepare(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), ratio=14.0)
    with torch.no_grad():
        for weight in codebooks(model):
            weight.latent.mul_(1.5)
    return model, [weight.codebook.codes(weight.latent).numpy() for weight in codebooks(model)]


@given(share=st.floats(0.95, 0.99), seed=st.integers(0, 5))
@settings(max_examples=6)
def test_codes_are_pulled_into_the_budget(share, seed):
    """Where nothing else moves latent values, they end within the budget; zeros, ones and signs stay, no code grows."""
    model, before = spread(seed)
    room = int(share * section_bytes(before))
    controller = BudgetController(model, room)
    for step in range(2500):
        controller(step, 2500, 1.0)
    after = [weight.codebook.codes(weight.latent).numpy() for weight in codebooks(model)]
    assert section_bytes(after) <= room
    for old, new in zip(before, after, strict=True):
        assert (abs(new) <= abs(old)).all()
        assert ((new > 0) == (old > 0)).all()
        assert ((new < 0) == (old < 0)).all()


@given(seed=st.integers(0, 5))
@settings(max_examples=5)
def test_codes_within_the_budget_are_left_alone(seed):
    """A network that is within the budget trains as if there were none."""
    model, before = spread(seed)
    values = [weight.latent.detach().clone() for weight in codebooks(model)]
    controller = BudgetController(model, int(1.01 * section_bytes(before)))
    for step in range(100):
        controller(step, 100, 1.0)
    assert all(torch.equal(value, weight.latent) for value, weight in zip(values, codebooks(model), strict=True))


@pytest.mark.parametrize("stop", [1, 2])
def test_a_held_run_resumed_gives_the_same_bytes(tmp_path, stop):
    """The pull is part of the checkpoint: interrupted while it acts, a run ends as one that was never interrupted."""
    recipe = opq.TrainingConfig(learning_rate=1.0, warm_up=0.0, weight_decay=0.0, clip=1.0)

    def run(folder, watch=None):
        model, _ = make("convolutions")
        fixed = {"reserve": 0.0, "open_epochs": 0}
        return opq.finetune(model, images(), epochs=3, ratio=5.0, recipe=recipe, folder=folder, watch=watch, **fixed)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupting_after(stop))
    assert RunFolder(tmp_path / "parts").load()["hold"]["pull"] > 0.0
    assert run(tmp_path / "parts").compressed.data == whole.compressed.data
