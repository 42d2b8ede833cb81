"""Training of weights whose rows and columns have scales."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import InterruptionError, interrupt_after
from prepared_networks import STEEP, check_invariants, codes_of, masks_and_steps, steps_in
from small_networks import images, make, to_ratio
from torch import nn

import opq
from opq.rate_distortion.scales import measured_rows
from opq.training.attach import prepared_weights
from opq.training.budget.code_reduction import reduce_codes, section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.budget.mask_threshold import MaskThresholds


def twins(seed):
    """A prepared network, and one whose rows and columns are larger by powers of two, with scales to match."""
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    plan = opq.plan(plain, ratio=14.0, rounding="deadzone")
    scaled = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    scaled.load_state_dict(plain.state_dict())
    layers, chance = {}, np.random.default_rng(seed)
    with torch.no_grad():
        for name, layer in plan.layers.items():
            rows, columns = chance.integers(-6, 7, 40), chance.integers(-6, 7, 40)
            weight = scaled.get_parameter(name)
            weight.mul_(torch.from_numpy(np.exp2(rows[:, None] + columns).astype(np.float32)))
            layers[name] = replace(layer, rows=tuple((8 * rows).tolist()), columns=tuple((8 * columns).tolist()))
    networks = [
        opq.prepare(plain, plan, reserve=0.0).model,
        opq.prepare(scaled, replace(plan, layers=layers), reserve=0.0).model,
    ]
    with torch.no_grad():
        for network in networks:
            for weight in prepared_weights(network):
                weight.latent.mul_(1.5)
    return networks


def have_the_same_codes(networks):
    return all(np.array_equal(one, other) for one, other in zip(*map(codes_of, networks), strict=True))


@given(share=st.floats(0.5, 0.99), seed=st.integers(0, 5))
@settings(max_examples=6)
def test_scales_change_nothing_about_masks(share, seed):
    """Thresholds that fill the budget are those of the network without scales, and so are the masks."""
    networks = twins(seed)
    code_bytes = int(share * section_bytes(codes_of(networks[0])))
    found = []
    for network in networks:
        masks = MaskThresholds(prepared_weights(network))
        masks.begin()
        begun = masks.thresholds
        found.append((begun, masks.fit(code_bytes), masks.thresholds))
        assert have_the_same_codes(networks) or network is networks[0]
        masks.freeze()
    assert found[0] == found[1]
    assert have_the_same_codes(networks)


@given(share=st.floats(0.9, 0.99), seed=st.integers(0, 5))
@settings(max_examples=6)
def test_scales_change_nothing_about_the_budget(share, seed):
    """Codes are pulled into the budget, and then lowered, as in the network without scales; masks and steps stay."""
    networks = twins(seed)
    fixed = masks_and_steps(networks[1])
    size = section_bytes(codes_of(networks[0]))
    before = prepared_weights(networks[1])[0].latent.detach().clone()
    for network in networks:
        controller = BudgetController(network, int(share * size))
        for step in range(100):
            controller(step, 100, 1.0)
    assert have_the_same_codes(networks)
    assert not torch.equal(prepared_weights(networks[1])[0].latent, before)
    size = section_bytes(codes_of(networks[0]))
    reductions = [reduce_codes(network, 0.97 * size) for network in networks]
    assert reductions[0] == reductions[1]
    assert reductions[0].lowered
    assert have_the_same_codes(networks)
    check_invariants(networks[1], fixed)


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["auto", "compensated"])
def test_a_finetuned_network_keeps_its_scales(rounding, tmp_path):
    """The file has the measured scales of rows, the steps of its plan, and at most the requested bytes; a resumed run too."""
    training = opq.TrainingConfig(epochs=3, mask_update_epochs=None if rounding == "auto" else 0, **STEEP)
    config = replace(to_ratio(6.0), scales="rows", rounding=rounding)

    def run(folder, on_epoch_end=None):
        model, _ = make("convolutions")
        return opq.finetune(model, images(), config, training, teacher="dense", folder=folder, on_epoch_end=on_epoch_end)

    finetuned = run(tmp_path / "whole")
    assert finetuned.compressed.file_bytes <= finetuned.budget
    opq.verify(finetuned.compressed.data)
    state, plan = make("convolutions")[0].state_dict(), finetuned.compressed.plan
    with opq.OpqFile(finetuned.compressed.data) as file:
        for name, layer in plan.layers.items():
            rows = measured_rows(state[name].abs().double().flatten(1).mean(1).numpy()).tolist()
            assert list(layer.rows) == file[name].codebook.rows.tolist() == rows
            assert torch.equal(steps_in(file[name]), torch.from_numpy(np.float32(layer.steps)))
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupt_after(1))
    assert run(tmp_path / "parts").compressed.data == finetuned.compressed.data


def test_a_run_of_other_scales_is_not_resumed(tmp_path):
    """Scales are part of the arguments that identify a run."""
    config = to_ratio(6.0)
    training = opq.TrainingConfig(epochs=1)
    opq.finetune(make("convolutions")[0], images(), config, training, teacher="dense", folder=tmp_path)
    with pytest.raises(opq.SourceError):
        opq.finetune(
            make("convolutions")[0], images(), replace(config, scales="rows"), training, teacher="dense", folder=tmp_path
        )
