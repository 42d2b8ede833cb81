"""The methods that benchmarks compare do what they are documented to do."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import opq

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def path():
    """Benchmarks import each other by their names."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def loader():
    """Batches that a small network can learn: which of two halves of an input is larger."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 16)
    labels = (inputs[:, :8].sum(1) > inputs[:, 8:].sum(1)).long()
    return list(zip(inputs.split(32), labels.split(32), strict=True))


def network():
    """688 weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))


@given(seed=st.integers(0, 2**32 - 1), lmbda=st.floats(0.0, 1e3), rank=st.integers(1, 4))
def test_the_proximal_step_moves_towards_zero_and_not_beyond(seed, lmbda, rank):
    """No magnitude grows, no sign changes, zeros stay; a larger lambda leaves smaller magnitudes."""
    from sparsifying import proximal_step

    tensor = torch.randn(tuple(range(2, 2 + rank)), generator=torch.Generator().manual_seed(seed))
    curvature = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed + 1)) + 0.1
    less, more = tensor.clone(), tensor.clone()
    proximal_step(less, curvature, lmbda, 0.1)
    proximal_step(more, curvature, 2.0 * lmbda, 0.1)
    assert (less * tensor >= 0.0).all()
    assert (less.abs() <= tensor.abs()).all()
    assert (more.abs() <= less.abs()).all()


@pytest.mark.slow
def test_sparsifying_leaves_about_as_many_as_requested(loader):
    """After the schedule, the number of significant values is within a factor of 1.5 of the requested one."""
    from sparsifying import Sparsifier

    model, wanted = network(), 80
    optimizer = Sparsifier([{"params": list(model.parameters()), "lr": 3e-3, "weight_decay": 0.0}], steps=1200, num_kept=wanted)
    thresholds = [0.2 * float(tensor.detach().abs().mean()) for tensor in model.parameters()]
    for _ in range(1200 // len(loader)):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    left = sum(int((tensor.abs() > minimum).sum()) for tensor, minimum in zip(model.parameters(), thresholds, strict=True))
    assert wanted / 1.5 <= left <= 1.5 * wanted


def test_a_sparse_plan_meets_its_bytes():
    """The file of the plan is within the budget, and close to it."""
    from sparsifying import plan_sparse

    model = network()
    with torch.no_grad():
        model[0].weight[torch.rand_like(model[0].weight) < 0.7] = 0.0
    plan = plan_sparse(model, torch.randn(20, 16), 700)
    assert 0.95 * 700 <= opq.compress(model, plan).file_bytes <= 700


def test_a_sparse_plan_does_not_depend_on_the_global_generator():
    """Network and inputs give the same plan in any state of the generators, so that a resumed run has its plan."""
    from sparsifying import plan_sparse

    model, inputs = network(), torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    plans = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        plans.append(plan_sparse(model, inputs, 700))
    assert plans[0] == plans[1]


def test_the_iterative_procedure_ends_in_codebooks(loader):
    """As many zeros as requested, or more, and every weight a multiple of its step, at most 2^(bits - 1) - 1 of them."""
    from iterative import compress_iteratively

    model = network()
    steps = compress_iteratively(
        model,
        loader,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        sparsity=0.8,
        bits=3,
        pruning_epochs=4,
        quantizing_epochs=2,
    )
    weights = {name: model.get_parameter(name).detach().numpy() for name in steps}
    assert sum(int((weight == 0).sum()) for weight in weights.values()) >= 0.8 * sum(w.size for w in weights.values()) - 1
    for name, weight in weights.items():
        codes = weight / steps[name]
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
        assert np.abs(codes).max() < 3.5


def test_distorted_images_are_images():
    """Distorting keeps shape, dtype and about the mean intensity."""
    from handwriting import distort

    torch.manual_seed(0)
    images = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 8:20, 8:20] = 255
    distorted = distort(images)
    assert (distorted.shape, distorted.dtype) == (images.shape, torch.uint8)
    assert 0.8 < float(distorted.float().mean() / images.float().mean()) < 1.25
    assert (distorted != images).flatten(1).any(1).all()


@given(good=st.lists(st.booleans(), min_size=1, max_size=40), first=st.integers(0, 39))
def test_a_search_ends_if_the_next_few_settings_are_not_within(good, first):
    """The setting found is within, and the next PATIENCE settings are not; no setting is tried twice."""
    from peers import PATIENCE, last_within

    first, tried = min(first, len(good) - 1), []

    def within(setting):
        tried.append(setting)
        return good[setting]

    last = last_within(len(good), first, within)
    assert len(tried) == len(set(tried))
    if last == -1:
        assert not any(good[: first + 1])
        assert set(tried) == set(range(first + 1))
    else:
        assert good[last]
        assert not any(good[last + 1 : last + 1 + PATIENCE])
        assert set(range(last + 1, min(last + 1 + PATIENCE, len(good)))) <= set(tried)


def test_a_unified_codebook_is_that_of_a_two_stage_plan():
    """Channel-wise, the ablation's plan is opq's own two-stage plan; layer-wise, all channels have one largest code."""
    from ablations import by_two_stage, two_stage_plan

    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 0, 16)[:, None]
    state = {"weight": scales * torch.randn(16, 400, generator=generator)}
    unified, flat = (two_stage_plan(state, 4.0, channel_wise=channel_wise) for channel_wise in (True, False))
    assert unified.layers["weight"] == opq.plan(state, sparsity=0.4, bits=4.0).layers["weight"]
    assert len(set(unified.layers["weight"].max_codes)) > 4
    assert len(set(flat.layers["weight"].max_codes)) == 1
    budget = 3000
    assert 0.99 * budget <= by_two_stage(state, budget, channel_wise=True).file_bytes <= budget


def test_stored_weights_are_what_comes_back():
    """Stored integers and codebooks give the weights that are read back: few values, and the requested share of zeros."""
    import allocation_methods

    generator = np.random.default_rng(0)
    tensors = {"weight": generator.laplace(size=(8, 500)).astype(np.float32), "bias": np.ones(8, np.float32)}
    network = SimpleNamespace(tensors=tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation_methods, "network_of", lambda name: network)
        stored, back = allocation_methods.pruned_integers("any", 0.5, 6)
        np.testing.assert_allclose(stored["weight"] * stored["weight.scale"], back["weight"])
        assert np.abs(stored["weight"]).max() == 31
        coded, means = allocation_methods.codebooks("any", 0.5, 31)
    np.testing.assert_array_equal(coded["weight.values"][coded["weight"]].reshape(8, 500), means["weight"])
    assert len(np.unique(means["weight"])) <= 32
    assert (means["weight"] == 0).mean() == pytest.approx(0.5, abs=0.01)
    error, plain = (float(np.square(value["weight"] - tensors["weight"]).mean()) for value in (means, back))
    assert error < 2.0 * plain
    for result in (stored, back, coded, means):
        np.testing.assert_array_equal(result["bias"], tensors["bias"])
