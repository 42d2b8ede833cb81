"""Masks that are recomputed in the first epochs of a training, and then frozen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from interruptions import InterruptionError, interrupt_after
from prepared_networks import STEEP, check_invariants, codes_of, masks_and_steps, optimizers, spread_codes
from small_networks import images, make, to_ratio
from torch import nn

import opq
from opq.quantization.quantizer import fake_quantize
from opq.training.attach import prepared_weights
from opq.training.budget.code_reduction import section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.budget.mask_threshold import MaskThresholds
from opq.training.parametrization import CodebookParametrization
from opq.training.run_folder import RunFolder


@given(
    values=st.lists(st.floats(-50.0, 50.0, width=32), min_size=1, max_size=20),
    step=st.floats(0.015625, 4.0, width=32),
    offset=st.floats(0.0, 1.0, width=32),
    threshold=st.floats(0.0, 50.0, width=32),
    max_codes=st.integers(1, 30),
)
def test_a_threshold_decides_instead_of_the_mask(values, step, offset, threshold, max_codes):
    """Latent values above the threshold have the codes of kept values, the others 0, whatever the mask holds. A frozen mask
    keeps exactly the former.
    """
    latent = torch.tensor(values)
    above = latent.abs() > threshold
    recomputed, kept = (
        CodebookParametrization(mask, step, offset, torch.tensor(float(max_codes)))
        for mask in (torch.zeros_like(above), torch.ones_like(above))
    )
    recomputed.threshold = threshold
    codes = recomputed.codes(latent)
    assert torch.equal(codes, kept.codes(latent) * above)
    assert torch.equal(recomputed(latent), codes.float() * torch.tensor(step))
    recomputed.freeze_mask(latent)
    assert recomputed.threshold is None
    assert torch.equal(recomputed.codes(latent), codes)
    assert torch.equal(recomputed.codes(torch.zeros_like(latent)), above.int())


def test_the_gradient_reaches_all_weights_while_masks_are_recomputed():
    """Pruned latent values train too, so that they can be kept again; and NaN is not hidden by pruning."""
    codebook = CodebookParametrization(torch.tensor([False, True]), 0.5, 0.5, torch.tensor(100.0))
    codebook.threshold = 0.25
    latent = torch.tensor([0.1, 0.6], requires_grad=True)
    values = codebook(latent)
    assert values.tolist() == [0.0, 0.5]
    values.backward(torch.tensor([3.0, -2.0]))
    assert latent.grad.tolist() == [3.0, -2.0]
    assert torch.isnan(codebook(torch.tensor([torch.nan, 1.0]))[0])


@given(share=st.floats(0.1, 1.5), seed=st.integers(0, 5))
@settings(max_examples=10)
def test_recomputed_masks_fill_the_budget(share, seed):
    """Codes take at most the budget and nearly all of it; unless each weight is rounded to nearest, or each layer keeps only a
    quarter of what its plan keeps, the minimum. The kept latent values are always the largest.
    """
    model, before = spread_codes(seed)
    least = [math.ceil(0.25 * np.count_nonzero(codes)) for codes in before]
    latent = [weight.latent.detach().abs().numpy() for weight in prepared_weights(model)]
    code_bytes = int(share * section_bytes(before))
    masks = MaskThresholds(prepared_weights(model))
    assert not masks.are_recomputed
    masks.begin()
    assert masks.are_recomputed
    fits = masks.fit(code_bytes)
    after = codes_of(model)
    steps = [float(weight.codebook.step) for weight in prepared_weights(model)]
    kept = [np.count_nonzero(codes) for codes in after]
    assert fits == (section_bytes(after) <= code_bytes)
    assert fits or kept == least
    assert all(count >= fewest for count, fewest in zip(kept, least, strict=True))
    for values, codes in zip(latent, after, strict=True):
        assert values[codes != 0].min() > values[codes == 0].max(initial=0.0)
    nearest = all(
        ((values > 0.5 * step) == (codes != 0)).all() for values, step, codes in zip(latent, steps, after, strict=True)
    )
    assert section_bytes(after) >= 0.97 * code_bytes or nearest


@given(growth=st.floats(1.0, 100.0), share=st.floats(0.2, 1.0), seed=st.integers(0, 5))
@settings(max_examples=10)
def test_no_layer_is_emptied_while_masks_are_recomputed(growth, share, seed):
    """However much larger one layer has grown than another, each keeps at least a quarter of what its plan keeps: an empty
    layer passes no gradient, and would stay empty.
    """
    model, before = spread_codes(seed)
    weights = prepared_weights(model)
    with torch.no_grad():
        weights[0].latent.mul_(growth)
    masks = MaskThresholds(weights)
    masks.begin()
    masks.fit(int(share * section_bytes(before)))
    masks.freeze()
    assert not masks.are_recomputed
    for weight, codes in zip(weights, before, strict=True):
        assert int(weight.codebook.mask.sum()) >= 0.25 * np.count_nonzero(codes)


@pytest.mark.slow
@given(optimizer=optimizers, recomputed_steps=st.integers(1, 4))
@settings(max_examples=8)
def test_frozen_masks_never_change_again(optimizer, recomputed_steps):
    """After masks were frozen, pruned weights stay zero and kept ones nonzero under any optimizer; steps never change."""
    model, inputs = make("convolutions")
    model.train()
    opq.prepare(model, ratio=6.0, rounding="deadzone")
    steps = {weight.names: float(weight.codebook.step) for weight in prepared_weights(model)}
    controller = BudgetController(model, 1500, recomputed_steps / 8)
    made = optimizer(model.parameters())
    fixed = None
    for step in range(8):
        made.zero_grad()
        model(inputs).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step()
        assume(all(torch.isfinite(weight.latent).all() for weight in prepared_weights(model)))
        controller(step, 8, 1.0)
        fixed = masks_and_steps(model) if step == recomputed_steps - 1 else fixed
    check_invariants(model, fixed)
    assert {names: float(steps) for names, (_, steps) in fixed.items()} == steps


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_with_recomputed_masks_gives_the_same_bytes(tmp_path, stop):
    """A run interrupted while masks are recomputed, or after, ends as one that was never interrupted."""
    training = opq.TrainingConfig(epochs=4, mask_update_epochs=2, **STEEP)

    def run(folder, on_epoch_end=None):
        model, _ = make("convolutions")
        return opq.finetune(model, images(), to_ratio(6.0), training, teacher="dense", folder=folder, on_epoch_end=on_epoch_end)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupt_after(stop))
    assert (RunFolder(tmp_path / "parts").load()["hold"]["thresholds"][0] is None) == (stop >= 2)
    assert run(tmp_path / "parts").compressed.data == whole.compressed.data


@pytest.mark.slow
def test_recomputed_masks_differ_from_the_plan():
    """Some weights that the plan keeps are pruned, some that it prunes are kept, and the file is within its budget."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=6.0, rounding="deadzone")
    planned = {name: fake_quantize(model.state_dict()[name], layer) != 0 for name, layer in plan.layers.items()}
    training = opq.TrainingConfig(epochs=6, mask_update_epochs=5, **{**STEEP, "learning_rate": 30.0})
    dense_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    finetuned = opq.finetune(model, images(), plan, training, teacher="dense")
    assert finetuned.compressed.file_bytes <= finetuned.budget == math.floor(dense_bytes / 6.0)
    opq.verify(finetuned.compressed.data)
    kept = {name: model.state_dict()[name] != 0 for name in planned}
    assert any((planned[name] & ~kept[name]).any() for name in planned)
    assert any((kept[name] & ~planned[name]).any() for name in planned)


def changed(plan, **fields):
    """A plan whose layers have other fields."""
    return replace(plan, layers={name: replace(layer, **fields) for name, layer in plan.layers.items()})


FIXED = {
    "file": (lambda model: opq.compress(model, ratio=6.0).data, "a file or a calibration are kept"),
    "calibration": (lambda model: to_ratio(6.0), "a file or a calibration are kept"),
    "two-stage plan": (lambda model: opq.plan(model, sparsity=0.5, bits=3.0), "sparsity and bits fixes the masks"),
    "two-stage config": (
        lambda model: opq.CompressionConfig(target=opq.TwoStage(0.5, 3.0)),
        "sparsity and bits fixes the masks",
    ),
    "compensated plan": (lambda model: opq.plan(model, ratio=6.0, rounding="compensated"), "compensated or trellis rounding"),
    "compensated config": (lambda model: to_ratio(6.0, rounding="compensated"), "compensated rounding"),
    "trellis config": (lambda model: to_ratio(6.0, rounding="trellis"), "trellis rounding"),
    "counted plan": (
        lambda model: changed(opq.plan(model, ratio=6.0, rounding="deadzone"), num_kept=3),
        "how many weights of a layer are kept",
    ),
    "plan without budget": (
        lambda model: replace(opq.plan(model, ratio=6.0, rounding="deadzone"), target=opq.Lossless()),
        "no byte target; give a budget",
    ),
    "layer config": (lambda model: to_ratio(6.0, layers={"head.*": opq.LayerConfig(sparsity=0.5)}), "a layer config fixes"),
}


@pytest.mark.parametrize(("start", "reason"), FIXED.values(), ids=FIXED)
def test_fixed_masks_cannot_be_recomputed(request, start, reason):
    """If something else decides the masks, `mask_update_epochs` above 0 is an error before training."""
    model, inputs = make("convolutions")
    options = {"calibration": opq.calibrate(model, inputs)} if "[calibration]" in request.node.name else {}
    training = opq.TrainingConfig(epochs=2, mask_update_epochs=1)
    with pytest.raises(opq.PlanError, match=f"mask_update_epochs must be 0, because .*{reason}"):
        opq.finetune(model, images(), start(model), training, **options)
    assert not prepared_weights(model)


def test_a_prepared_network_keeps_its_masks():
    """The masks of a prepared network cannot be recomputed either."""
    prepared = opq.prepare(make("convolutions")[0], ratio=6.0, rounding="deadzone")
    with pytest.raises(opq.PlanError, match="prepared already"):
        opq.finetune(prepared, images(), training=opq.TrainingConfig(epochs=2, mask_update_epochs=1))


@pytest.mark.parametrize(
    "start",
    [
        opq.CompressionConfig(target=opq.TwoStage(0.5, 3.0)),
        to_ratio(6.0, rounding="compensated"),
        to_ratio(6.0, layers={"head.*": opq.LayerConfig(sparsity=0.5)}),
    ],
    ids=["two-stage", "compensated", "layer config"],
)
def test_masks_are_fixed_if_something_else_decides_them(start):
    """By default no mask is recomputed with a two-stage target, compensated rounding, or a layer's sparsity."""
    model, _ = make("convolutions")
    masks = []

    def record(stage, finished, total):
        if not stage.startswith("epoch"):
            return
        assert all(weight.codebook.threshold is None for weight in prepared_weights(model))
        masks.append([weight.codebook.mask.clone() for weight in prepared_weights(model)])

    opq.finetune(model, images(), start, opq.TrainingConfig(epochs=3), progress=record)
    assert len(masks) == 9
    assert all(torch.equal(now, first) for found in masks for now, first in zip(found, masks[0], strict=True))


def test_a_given_plan_keeps_its_masks():
    """By default the zeros of a plan stay zeros, and no other weight becomes one."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=6.0, rounding="deadzone")
    zeros = {name: fake_quantize(model.state_dict()[name], layer) == 0 for name, layer in plan.layers.items()}
    opq.finetune(model, images(), plan, opq.TrainingConfig(epochs=3, **STEEP))
    assert all(((model.state_dict()[name] == 0) == pruned).all() for name, pruned in zeros.items())


def test_a_layer_of_zeros_stays_zero_while_masks_are_recomputed():
    """The step of a layer that is all zeros has no meaning, so nothing in it is kept, whatever the gradient does."""
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    nn.init.zeros_(model[1].weight)
    opq.prepare(model, ratio=8.0, rounding="deadzone")
    controller = BudgetController(model, 10_000, 1.0)
    with torch.no_grad():
        for weight in prepared_weights(model):
            weight.latent.add_(3.0)
    controller(0, 100, 1.0)
    assert (model[0].weight != 0).any()
    assert (model[1].weight == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("requested", "epochs", "recomputed"), [(None, 6, 4), (None, 1, 0), (0, 4, 0), (3, 4, 3)])
def test_masks_are_recomputed_in_two_thirds_of_the_epochs(requested, epochs, recomputed):
    """By default masks are recomputed in two thirds of the epochs, rounded down, and frozen by their last step."""
    model, _ = make("convolutions")
    seen = []

    def record(stage, finished, total):
        if stage.startswith("epoch"):
            seen.append([weight.codebook.threshold is not None for weight in prepared_weights(model)])

    loader = images()
    training = opq.TrainingConfig(epochs=epochs, mask_update_epochs=requested)
    opq.finetune(model, loader, to_ratio(6.0), training, progress=record)
    last = recomputed * len(loader) - 1  # the step after which masks are frozen
    assert [any(found) for found in seen] == [step < last for step in range(epochs * len(loader))]
    assert all(all(found) for found in seen[: max(last, 0)])
