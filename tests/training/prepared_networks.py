"""Prepared networks for tests, and what training must never change about them."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import opq
from opq.rate_distortion.scales import steps_like
from opq.training.attach import current_codes, prepared_weights

STEEP = {"learning_rate": 1.0, "warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0}
"""Settings of a training that moves many codes in a few steps."""

optimizers = st.one_of(
    st.builds(
        lambda lr, momentum, decay: partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=decay),
        st.floats(1e-4, 3.0),
        st.floats(0.0, 0.99),
        st.floats(0.0, 0.5),
    ),
    st.builds(
        lambda lr, decay: partial(torch.optim.AdamW, lr=lr, weight_decay=decay), st.floats(1e-5, 0.5), st.floats(0.0, 0.5)
    ),
)
"""Makers of optimizers."""


def spread_codes(seed):
    """A prepared network whose codes have grown by half, and those codes."""
    torch.manual_seed(seed)
    model = opq.prepare(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), ratio=14.0, rounding="deadzone").model
    with torch.no_grad():
        for weight in prepared_weights(model):
            weight.latent.mul_(1.5)
    return model, codes_of(model)


def codes_of(model):
    """The codes of all prepared weights as they are now."""
    return current_codes(prepared_weights(model))


def masks_and_steps(model):
    """{names: (mask, steps)} of all prepared weights, which training must not change."""
    return {weight.names: (weight.codebook.mask.clone(), weight.codebook.steps.clone()) for weight in prepared_weights(model)}


def steps_in(tensor):
    """The steps of a weight of a file, float32, shaped to broadcast with it."""
    codebook = tensor.codebook
    scales = getattr(codebook, "rows", None), getattr(codebook, "columns", None)
    return torch.from_numpy(np.asarray(steps_like(codebook.step, *scales, tensor.shape), dtype=np.float32))


def check_invariants(model, fixed):
    """Masks and steps are those of `fixed`; pruned weights are 0, kept ones nonzero multiples of their steps."""
    for weight in prepared_weights(model):
        mask, steps = fixed[weight.names]
        assert torch.equal(weight.codebook.mask, mask)
        assert torch.equal(weight.codebook.steps, steps)
        value = weight.codebook(weight.latent).detach()
        assert (value[~mask] == 0).all()
        codes = weight.codebook.codes(weight.latent)
        assert ((codes != 0) == mask).all()
        assert torch.equal(value, codes.to(torch.float32) * steps)
