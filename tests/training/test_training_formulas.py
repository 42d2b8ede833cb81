"""The formulas of docs/method.md, section 9, each computed a second time."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_networks import codes_of, spread_codes
from small_networks import to_ratio
from torch import nn

import opq
from opq.training.attach import prepared_weights
from opq.training.budget.code_reduction import reduce_codes, section_bytes
from opq.training.budget.controller import BudgetController
from opq.training.budget.mask_threshold import MaskThresholds
from opq.training.parametrization import CodebookParametrization


def bits_by_hand(codes):
    """{k: log2(n_(k-1) / n_k)} for k of 2 and more."""
    counts = np.bincount(np.abs(codes).ravel())
    return {k: math.log2(counts[k - 1] / counts[k]) for k in range(2, len(counts)) if counts[k - 1] and counts[k]}


@given(
    values=st.lists(st.floats(-40.0, 40.0, width=32), min_size=1, max_size=20),
    step=st.floats(0.125, 4.0, width=32),
    offset=st.floats(0.0, 1.0, width=32),
    max_codes=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_value_is_a_code_times_the_step(values, step, offset, max_codes, seed):
    """It is step sign(v) clip(floor(|v| / step + offset), 1, max_codes) if kept, with sign(0) = 1, and 0 if pruned. Its
    gradient is that of the value if kept, and 0 if pruned.
    """
    kept = np.random.default_rng(seed).random(len(values)) < 0.6
    codebook = CodebookParametrization(torch.tensor(kept), step, offset, torch.tensor(float(max_codes)))
    latent = torch.tensor(values, requires_grad=True)
    found = codebook(latent)
    floats = np.array(values, dtype=np.float32)
    codes = np.clip(np.floor(np.abs(floats) / np.float32(step) + np.float32(offset)), 1, max_codes)
    wanted = np.where(kept, np.where(floats < 0, -codes, codes) * np.float32(step), 0.0)
    np.testing.assert_array_equal(found.detach().numpy(), wanted.astype(np.float32))
    gradient = torch.arange(1.0, len(values) + 1.0)
    found.backward(gradient)
    np.testing.assert_array_equal(latent.grad.numpy(), np.where(kept, gradient.numpy(), 0.0))


@given(excess=st.floats(0.02, 0.2), share=st.floats(0.1, 1.0), seed=st.integers(0, 5))
@settings(max_examples=15)
def test_the_pull_is_the_formula(excess, share, seed):
    """At the first measurement latent values of codes k >= 2 move towards zero by 4 (0.05 + 0.002) e share
    log2(n_(k-1) / n_k) step, e the excess over 99.8% of the budget; at most six bits count.
    """
    model, before = spread_codes(seed)
    code_budget = round(section_bytes(before) / (1.0 + excess))
    latent = [weight.latent.detach().clone().numpy() for weight in prepared_weights(model)]
    BudgetController(model, code_budget)(0, 3000, share)
    e = section_bytes(before) / code_budget - 1.0 + 0.002
    for weight, codes, old in zip(prepared_weights(model), before, latent, strict=True):
        step, bits = float(weight.codebook.step), bits_by_hand(codes)
        moved = np.abs(old) - np.abs(weight.latent.detach().numpy())
        assert not moved[np.abs(codes) < 2].any()
        for k, saved in bits.items():
            if saved > 0.05:
                wanted = 4.0 * 0.052 * e * share * min(saved, 6.0) * step
                np.testing.assert_allclose(moved[np.abs(codes) == k], wanted, rtol=1e-2, atol=1e-6)


def test_the_pull_is_proportional_and_integral():
    """Each measurement adds 0.002 e to the sum. Within 99.8% of the budget the sum falls, but not below zero."""
    model, before = spread_codes(0)
    size = section_bytes(before)
    controller = BudgetController(model, round(size / 1.1))
    excess = size / round(size / 1.1) - 1.0 + 0.002
    controller(0, 60, 0.0)  # at a share of 0 nothing moves, but codes are measured
    assert controller.state()["pull"] == pytest.approx((0.05 + 0.002) * excess, rel=1e-6)
    controller(20, 60, 0.0)
    assert controller.state()["pull"] == pytest.approx((0.05 + 2 * 0.002) * excess, rel=1e-6)
    assert controller.state()["sum"] == pytest.approx(2 * 0.002 * excess, rel=1e-6)
    roomy = BudgetController(model, 2 * size)
    roomy(0, 60, 0.0)
    assert roomy.state()["pull"] == roomy.state()["sum"] == 0.0


@given(share=st.floats(0.98, 0.995), seed=st.integers(0, 20))
@settings(max_examples=8)
def test_the_codes_of_least_error_per_bit_are_lowered(share, seed):
    """Of the codes k >= 2 of one weight, the lowered ones have least step (2|v| - (2k - 1) step) over log2(n_(k-1) / n_k)."""
    torch.manual_seed(seed)
    model = opq.prepare(nn.Sequential(nn.Linear(60, 60)), ratio=9.0, rounding="deadzone").model
    with torch.no_grad():
        prepared_weights(model)[0].latent.add_(0.03 * torch.randn(60, 60))
    (before,), (weight,) = codes_of(model), prepared_weights(model)
    latent = weight.latent.detach().abs().double().numpy()
    size = section_bytes([before])
    reduce_codes(model, share * size)
    (after,) = codes_of(model)
    step, levels, bits = float(weight.codebook.step), np.abs(before), bits_by_hand(before)
    lowered = before != after
    assert (np.abs(after)[lowered] == levels[lowered] - 1).all()
    bits = {k: saved for k, saved in bits.items() if saved > 0.05}
    usual = np.isin(levels, list(bits))
    error = (latent - (levels - 1) * step) ** 2 - (latent - levels * step) ** 2
    cost = np.maximum(error, -(step**2)) / np.vectorize(lambda k: bits.get(k, 1.0))(levels)
    assert lowered.any()
    assert cost[lowered & usual].max() <= cost[~lowered & usual].min() + 1e-9


@given(offset=st.floats(0.05, 0.95), step=st.floats(0.05, 2.0))
def test_thresholds_start_at_those_of_the_plan(offset, step):
    """The first threshold is max(1 - offset, 1/2) step: that of the plan, but at least half a step."""
    torch.manual_seed(0)
    model = opq.prepare(nn.Sequential(nn.Linear(30, 30)), ratio=4.0, rounding="deadzone").model
    (weight,) = prepared_weights(model)
    with torch.no_grad():
        weight.codebook.step.fill_(step)
        weight.codebook.rounding_offset.fill_(offset)
        weight.latent.copy_(10.0 * step * torch.randn(30, 30))  # so large that no limit on pruning applies
    masks = MaskThresholds(prepared_weights(model))
    masks.begin()
    assert masks.thresholds == [pytest.approx(max(1.0 - offset, 0.5) * step, rel=1e-5)]


def test_a_start_leaves_a_reserve_of_seven_percent():
    """The plan that `finetune` makes takes about 93% of the budget, and all of it without a reserve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    batches = [(torch.randn(8, 100), torch.randint(10, (8,)))]
    for reserve in (opq.TrainingConfig(epochs=1).reserve, 0.0):
        training = opq.TrainingConfig(epochs=1, reserve=reserve)
        finetuned = opq.finetune(copy.deepcopy(model), batches, to_ratio(8.0), training)
        assert finetuned.compressed.plan.predicted_bytes == pytest.approx((1.0 - reserve) * finetuned.budget, rel=0.02)
        assert finetuned.compressed.file_bytes <= finetuned.budget
