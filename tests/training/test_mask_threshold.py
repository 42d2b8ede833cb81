"""Masks that stay open over the first epochs, and close."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from interruptions import InterruptionError, interrupting_after
from small_networks import make
from test_finetuning import check_invariants, fixed_facts, images, optimizers
from test_holding import spread
from torch import nn

import opq
from opq.training.run_folder import RunFolder
from opq.training.parametrization import Codebook
from opq.training.budget.code_reduction import section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.budget.mask_threshold import MaskThresholds
from opq.training.prepared_model import codebooks

STEEP = opq.TrainingConfig(learning_rate=1.0, warm_up=0.0, weight_decay=0.0, clip=1.0)


@given(
    values=st.lists(st.floats(-50.0, 50.0, width=32), min_size=1, max_size=20),
    step=st.floats(0.015625, 4.0, width=32),
    rounding_offset=st.floats(0.0, 1.0, width=32),
    border=st.floats(0.0, 50.0, width=32),
    most=st.integers(1, 30),
)
def test_a_border_decides_while_masks_are_open(values, step, offset, border, most):
    """Beyond the border latent values have the codes they would have were they kept, others 0, whatever the mask says; closed,
    just the former are kept from then on.
    """
    latent = torch.tensor(values)
    beyond = latent.abs() > border
    open_, kept = (
        Codebook(mask, step, offset, torch.tensor(float(most))) for mask in (torch.zeros_like(beyond), torch.ones_like(beyond))
    )
    open_.border = border
    codes = open_.codes(latent)
    assert torch.equal(codes, kept.codes(latent) * beyond)
    assert torch.equal(open_(latent), codes.float() * torch.tensor(step))
    open_.close(latent)
    assert torch.equal(open_.codes(latent), codes)
    assert torch.equal(open_.codes(torch.zeros_like(latent)), beyond.int())


def test_the_gradient_passes_to_all_while_masks_are_open():
    """Pruned latent values learn too, so that they can come back; and NaN is not hidden by being pruned."""
    codebook = Codebook(torch.tensor([False, True]), 0.5, 0.5, torch.tensor(100.0))
    codebook.border = 0.25
    latent = torch.tensor([0.1, 0.6], requires_grad=True)
    values = codebook(latent)
    assert values.tolist() == [0.0, 0.5]
    values.backward(torch.tensor([3.0, -2.0]))
    assert latent.grad.tolist() == [3.0, -2.0]
    assert torch.isnan(codebook(torch.tensor([torch.nan, 1.0]))[0])


@given(share=st.floats(0.1, 1.5), seed=st.integers(0, 5))
@settings(max_examples=10)
def test_open_masks_fill_the_budget(share, seed):
    """Whatever codes would take: while masks are open, they fill the budget and no more, or each weight is rounded to nearest,
    or each layer keeps a quarter of what its plan keeps, which it keeps in any case; it is always the largest that are kept.
    """
    model, before = spread(seed)
    least = [math.ceil(0.25 * np.count_nonzero(codes)) for codes in before]
    latent = [weight.latent.detach().abs().numpy() for weight in codebooks(model)]
    room = int(share * section_bytes(before))
    masks = MaskThresholds(codebooks(model))
    masks.open()
    fits = masks.fit(room)
    after = [weight.codebook.codes(weight.latent).numpy() for weight in codebooks(model)]
    steps = [float(weight.codebook.step) for weight in codebooks(model)]
    kept = [np.count_nonzero(codes) for codes in after]
    assert fits == (section_bytes(after) <= room)
    assert fits or kept == least
    assert all(count >= fewest for count, fewest in zip(kept, least, strict=True))
    for values, codes in zip(latent, after, strict=True):
        assert values[codes != 0].min() > values[codes == 0].max(initial=0.0)
    nearest = all(
        ((values > 0.5 * step) == (codes != 0)).all() for values, step, codes in zip(latent, steps, after, strict=True)
    )
    assert section_bytes(after) >= 0.97 * room or nearest


@given(growth=st.floats(1.0, 100.0), share=st.floats(0.2, 1.0), seed=st.integers(0, 5))
@settings(max_examples=10)
def test_no_layer_is_emptied_while_masks_are_open(growth, share, seed):
    """However much larger one layer has grown than another, each keeps a quarter of what its plan keeps: an empty layer passes
    no gradient, and nothing would come back.
    """
    model, before = spread(seed)
    weights = codebooks(model)
    with torch.no_grad():
        weights[0].latent.mul_(growth)
    masks = MaskThresholds(weights)
    masks.open()
    masks.fit(int(share * section_bytes(before)))
    masks.close()
    for weight, codes in zip(weights, before, strict=True):
        assert int(weight.codebook.mask.sum()) >= 0.25 * np.count_nonzero(codes)


@given(optimizer=optimizers, open_steps=st.integers(1, 4))
@settings(max_examples=8)
def test_closed_masks_never_open_again(optimizer, open_steps):
    """Whatever the optimizer does after masks were closed: pruned weights stay zero, kept ones kept, steps what they were."""
    model, inputs = make("convolutions")
    model.train()
    opq.prepare(model, ratio=6.0)
    steps = {weight.names: float(weight.codebook.step) for weight in codebooks(model)}
    controller = BudgetController(model, 1500, open_steps / 8)
    made = optimizer(model.parameters())
    facts = None
    for step in range(8):
        made.zero_grad()
        model(inputs).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step()
        assume(all(torch.isfinite(weight.latent).all() for weight in codebooks(model)))
        controller(step, 8, 1.0)
        facts = fixed_facts(model) if step == open_steps - 1 else facts
    check_invariants(model, facts)
    assert {names: step for names, (_, step) in facts.items()} == steps


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_with_open_masks_gives_the_same_bytes(tmp_path, stop):
    """Interrupted while masks are open, or after, a run ends as one that was never interrupted."""

    def run(folder, watch=None):
        model, _ = make("convolutions")
        return opq.finetune(
            model, images(), epochs=4, mask_update_epochs=2, ratio=6.0, teacher="dense", recipe=STEEP, folder=folder, watch=watch
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupting_after(stop))
    assert (RunFolder(tmp_path / "parts").load()["hold"]["borders"][0] is None) == (stop >= 2)
    assert run(tmp_path / "parts").compressed.data == whole.compressed.data


def test_weights_change_sides_while_masks_are_open():
    """Other weights are pruned than the plan has, some that it prunes are kept, and the file is within its budget."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=6.0, rounding="plain")
    planned = {name: opq.fake_quantize(model.state_dict()[name], layer) != 0 for name, layer in plan.layers.items()}
    recipe = replace(STEEP, learning_rate=30.0)
    finetuned = opq.finetune(model, images(), epochs=6, mask_update_epochs=5, start=plan, teacher="dense", recipe=recipe)
    assert finetuned.compressed.file_bytes <= finetuned.budget == math.floor(plan.dense_bytes / 6.0)
    opq.verify(finetuned.compressed.data)
    kept = {name: model.state_dict()[name] != 0 for name in planned}
    assert any((planned[name] & ~kept[name]).any() for name in planned)
    assert any((kept[name] & ~planned[name]).any() for name in planned)


def test_masks_that_are_fixed_cannot_be_open():
    """A file's, a prepared network's and the paper's masks are refused, and open epochs to the end, before anything trains."""
    model, _ = make("convolutions")
    with pytest.raises(opq.TrainingError, match="less than the 2 epochs, got 2"):
        opq.finetune(model, images(), epochs=2, mask_update_epochs=2, ratio=6.0)
    file = opq.compress(model, ratio=6.0).data
    paper = opq.plan(model, sparsity=0.5, bits=3.0)
    boundless = replace(opq.plan(model, ratio=6.0, rounding="plain"), target={})
    counted = replace(boundless, layers={name: replace(layer, num_kept=3) for name, layer in boundless.layers.items()})
    for start, options, reason in (
        (file, {}, "the file's are kept"),
        (None, {"ratio": 6.0, "calibration": opq.calibrate(model, torch.randn(4, 2, 8, 8))}, "the file's are kept"),
        (paper, {}, "the paper's mode fixes them"),
        (None, {"sparsity": 0.5, "bits": 3.0}, "the paper's mode fixes them"),
        (opq.plan(model, ratio=6.0), {}, "rounding is shaped"),
        (None, {"ratio": 6.0, "rounding": "shaped"}, "rounding is shaped"),
        (counted, {"budget": 4000}, "how many weights of a layer to keep"),
        (boundless, {}, "give a budget"),
        (None, {"ratio": 6.0, "overrides": {"head.*": {"sparsity": 0.5}}}, "an override says"),
    ):
        with pytest.raises(opq.PlanError, match=reason):
            opq.finetune(model, images(), epochs=2, mask_update_epochs=1, start=start, **options)
    assert not codebooks(model)
    opq.prepare(model, ratio=6.0)
    with pytest.raises(opq.PlanError, match="prepared already"):
        opq.finetune(model, images(), epochs=2, mask_update_epochs=1)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "bits": 3.0},
        {"ratio": 6.0, "rounding": "shaped"},
        {"ratio": 6.0, "overrides": {"head.*": {"sparsity": 0.5}}},
    ],
    ids=["paper", "shaped", "override"],
)
def test_masks_are_fixed_where_something_else_decides_them(tmp_path, options):
    """Without being asked, no epoch is open in the paper's mode, under shaped rounding, or beside an override of zeros."""
    model, _ = make("convolutions")
    masks = []

    def look(stage, done, total):
        assert all(weight.codebook.border is None for weight in codebooks(model))
        masks.append([weight.codebook.mask.clone() for weight in codebooks(model)])

    opq.finetune(model, images(), epochs=3, folder=tmp_path, progress=look, **options)
    assert all(torch.equal(now, first) for found in masks for now, first in zip(found, masks[0], strict=True))
    assert json.loads((tmp_path / "arguments.json").read_text())["open_epochs"] == 0


def test_a_given_plan_keeps_its_masks(tmp_path):
    """A plan's zeros stay zeros unless epochs are asked to be open."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=6.0, rounding="plain")
    zeros = {name: opq.fake_quantize(model.state_dict()[name], layer) == 0 for name, layer in plan.layers.items()}
    opq.finetune(model, images(), epochs=3, start=plan, recipe=STEEP)
    assert all(((model.state_dict()[name] == 0) == pruned).all() for name, pruned in zeros.items())


def test_a_layer_of_zeros_stays_zero_while_masks_are_open():
    """Its step means nothing: nothing comes back in it, whatever the gradient does."""
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    nn.init.zeros_(model[1].weight)
    opq.prepare(model, ratio=8.0)
    controller = BudgetController(model, 10_000, open_share=1.0)
    with torch.no_grad():
        for weight in codebooks(model):
            weight.latent.add_(3.0)
    controller(0, 100, 1.0)
    assert (model[0].weight != 0).any()
    assert (model[1].weight == 0).all()


@pytest.mark.parametrize(("asked", "epochs", "opened"), [(None, 6, 4), (None, 1, 0), (0, 0, 0), (0, 4, 0), (3, 4, 3)])
def test_two_thirds_of_the_epochs_are_open(tmp_path, asked, epochs, opened):
    """By default masks are open for two thirds of the epochs, rounded down, and closed by their last step; the run's arguments
    tell for how many.
    """
    model, _ = make("convolutions")
    seen = []

    def look(stage, done, total):
        seen.append([weight.codebook.border is not None for weight in codebooks(model)])

    loader = images()
    opq.finetune(model, loader, epochs=epochs, mask_update_epochs=asked, ratio=6.0, folder=tmp_path, progress=look)
    last = opened * len(loader) - 1  # the step after which masks close
    assert [any(open_) for open_ in seen] == [step < last for step in range(epochs * len(loader))]
    assert all(all(open_) for open_ in seen[: max(last, 0)])
    assert json.loads((tmp_path / "arguments.json").read_text())["open_epochs"] == opened
