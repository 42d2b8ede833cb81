"""The budget controller: codes stay within a byte budget while a network trains."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import InterruptionError, interrupt_after
from prepared_networks import STEEP, codes_of, spread_codes
from small_networks import images, make, to_ratio

import opq
from opq.training.attach import prepared_weights
from opq.training.budget.code_reduction import section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.run_folder import RunFolder


@given(share=st.floats(0.95, 0.99), seed=st.integers(0, 5))
@settings(max_examples=6)
def test_codes_are_pulled_into_the_budget(share, seed):
    """If nothing else moves latent values, codes end within the budget; zeros, ones and signs stay, and no code grows."""
    model, before = spread_codes(seed)
    code_bytes = int(share * section_bytes(before))
    controller = BudgetController(model, code_bytes)
    for step in range(2500):
        controller(step, 2500, 1.0)
    after = codes_of(model)
    assert section_bytes(after) <= code_bytes
    for old, new in zip(before, after, strict=True):
        assert (abs(new) <= abs(old)).all()
        assert ((new > 0) == (old > 0)).all()
        assert ((new < 0) == (old < 0)).all()


@given(seed=st.integers(0, 5))
@settings(max_examples=5)
def test_codes_within_the_budget_do_not_move(seed):
    """A network within its budget trains as if there were none."""
    model, before = spread_codes(seed)
    values = [weight.latent.detach().clone() for weight in prepared_weights(model)]
    controller = BudgetController(model, int(1.01 * section_bytes(before)))
    for step in range(100):
        controller(step, 100, 1.0)
    assert all(torch.equal(value, weight.latent) for value, weight in zip(values, prepared_weights(model), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_with_a_pull_gives_the_same_bytes(tmp_path, stop):
    """The checkpoint holds the pull: a run interrupted while it acts ends as one that was never interrupted."""
    training = opq.TrainingConfig(epochs=3, reserve=0.0, mask_update_epochs=0, **STEEP)

    def run(folder, on_epoch_end=None):
        model, _ = make("convolutions")
        return opq.finetune(model, images(), to_ratio(5.0), training, folder=folder, on_epoch_end=on_epoch_end)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupt_after(stop))
    assert RunFolder(tmp_path / "parts").load()["hold"]["pull"] > 0.0
    assert run(tmp_path / "parts").compressed.data == whole.compressed.data
