"""Preparing, exporting and converting: what a network is before, between and after."""

import copy
import inspect
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from float16_errors import within_float16
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prepared_networks import check_invariants, masks_and_steps
from safetensors.torch import load_file, save_file
from small_networks import KINDS, make, to_ratio
from torch import nn

import opq
import opq.torch
from opq.quantization.quantizer import fake_quantize
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.scales import steps as steps_at
from opq.training.attach import plain_state_dict, prepared_weights
from opq.training.parametrization import CodebookParametrization

TARGETS = {
    "compensated": {"ratio": 6.0},
    "deadzone": {"ratio": 6.0, "rounding": "deadzone"},
    "two-stage": {"sparsity": 0.6, "bits": 3.0},
    "scaled compensated": {"ratio": 6.0, "scales": "rows"},
    "scaled deadzone": {"ratio": 6.0, "scales": "rows", "rounding": "deadzone"},
}


def copied_state(model):
    """A copy of every tensor of the state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_states(first, second):
    """Whether two state dicts have the same names in the same order, and the same bits."""
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_prepared_network_computes_with_fake_quantized_weights(kind, target):
    """A prepared network computes what it computes with `fake_quantize` of its weights; after `convert` too, bit for bit."""
    model, inputs = make(kind)
    plan = opq.plan(model, **target)
    rounded = copy.deepcopy(model)
    state = rounded.state_dict()
    rounded.load_state_dict(
        {name: fake_quantize(t, plan.layers[name]) if name in plan.layers else t for name, t in state.items()}
    )
    for network in (model, rounded):
        network.eval()
    expected = rounded(inputs)
    prepared = opq.prepare(model, plan, reserve=0.0)
    assert prepared.model is model
    assert prepared.plan == plan
    assert prepared_weights(model)
    assert torch.equal(model(inputs), expected)
    assert prepared.convert() is model
    assert not prepared_weights(model)
    assert torch.equal(model(inputs), expected)
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_target_prepares_as_finetune_does(kind, target):
    """A byte target gives a plan that leaves the reserve free, and the budget of the whole target; "auto" rounds dead zones.

    A target of sparsity and bits gives the plan of `opq.plan`. A config prepares as its keywords do.
    """
    dense, reserve = make(kind)[0], 0.1
    prepared = opq.prepare(make(kind)[0], reserve=reserve, **target)
    rounding = target.get("rounding", "deadzone")
    if "ratio" in target:
        budget = opq.plan(dense, **target).budget
        reduced = {"size": math.floor(budget * (1.0 - reserve)), "rounding": rounding, "scales": target.get("scales", "auto")}
        expected = replace(opq.compress(dense, **reduced).plan, target=prepared.plan.target)
        assert prepared.plan.target == opq.Ratio(target["ratio"])
        assert prepared.encode().file_bytes <= (1.0 - reserve) * budget
    else:
        budget, expected = None, opq.plan(dense, **target)
    assert prepared.plan == expected
    assert prepared.budget == budget
    assert {layer.rounding for layer in prepared.plan.layers.values()} == {rounding}
    config = opq.CompressionConfig(
        target=prepared.plan.target, rounding=target.get("rounding", "auto"), scales=target.get("scales", "auto")
    )
    again = opq.prepare(make(kind)[0], config, reserve=reserve)
    assert again.plan == prepared.plan
    assert equal_states(again.model.state_dict(), prepared.model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_prepared_network_encodes_as_its_plan_compresses(kind, target):
    """Before any training, the file is that of `opq.compress` under the plan."""
    model, _ = make(kind)
    plan = opq.plan(model, **target)
    expected = opq.compress(model, plan)
    prepared = opq.prepare(model, plan, reserve=0.0)
    assert prepared.encode().data == expected.data
    assert prepared.encode().plan == plan
    if kind != "sequences":  # which shares a weight between two names
        assert prepared.code_bytes() == opq.inspect(expected.data).bytes_by_kind["codes"]


@pytest.mark.parametrize("kind", KINDS)
def test_convert_restores_the_names_of_the_network(kind):
    """`convert` restores the names of the state dict in their order, the parameters themselves, and the modules' classes."""
    model, _ = make(kind)
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    prepared = opq.prepare(model, ratio=6.0)
    assert sorted(plain_state_dict(model)) == sorted(names)
    assert {id(parameter) for parameter in model.parameters()} == set(parameters.values())
    prepared.convert()
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert not any("opq" in key for module in model.modules() for key in vars(module))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weight_is_prepared(kind):
    """Every weight of a plan gets a codebook: convolutions of all kinds, linear and recurrent layers, embeddings, attention."""
    model, inputs = make(kind)
    plan = opq.plan(model, ratio=6.0)
    prepared = opq.prepare(model, plan, reserve=0.0)
    assert {name for weight in prepared.weights for name in weight.names} == set(plan.layers)
    model(inputs).square().sum().backward()
    for weight in prepared.weights:
        assert weight.latent.grad is not None, weight.names
        assert (weight.latent.grad[~weight.codebook.mask] == 0).all()
        assert (weight.latent.grad[weight.codebook.mask] != 0).any()


def test_shared_weights_are_one():
    """A weight that modules share has one latent value and one codebook, and is still shared after `convert`."""
    model, _ = make("sequences")
    prepared = opq.prepare(model, ratio=6.0)
    shared = [weight for weight in prepared.weights if len(weight.names) > 1]
    assert [weight.names for weight in shared] == [("head.weight", "tokens.weight")]
    prepared.convert()
    assert model.head.weight is model.tokens.weight


def test_the_gradient_passes_straight_through():
    """The gradient of a kept latent value is that of its rounded value; that of a pruned one is zero, even if the other is
    infinite.
    """
    mask = torch.tensor([True, False, True, False])
    codebook = CodebookParametrization(mask, 0.5, 0.5, torch.tensor(100.0))
    latent = torch.tensor([0.3, 5.0, -1.9, 0.0], requires_grad=True)
    values = codebook(latent)
    assert values.tolist() == [0.5, 0.0, -2.0, 0.0]
    values.backward(torch.tensor([3.0, torch.inf, -2.0, 1.0]))
    assert latent.grad.tolist() == [3.0, 0.0, -2.0, 0.0]


@given(
    st.lists(st.floats(-50.0, 50.0, width=32), min_size=1, max_size=20),
    st.floats(0.015625, 4.0, width=32),
    st.floats(0.0, 1.0),
    st.data(),
)
def test_kept_weights_stay_kept_and_in_their_codebook(values, step, offset, data):
    """Whatever latent values become, pruned ones are 0, kept ones their step * k, 1 <= |k| <= max_codes; zero is positive."""
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    max_codes = data.draw(st.integers(1, 30))
    rows = data.draw(st.none() | st.lists(st.integers(-16, 16), min_size=len(values), max_size=len(values)))
    codebook = CodebookParametrization(mask, step, offset, torch.tensor(float(max_codes)), rows)
    steps = torch.tensor([step] * len(values) if rows is None else steps_at(step, rows, None)[:, 0])
    latent = torch.tensor(values)
    codes = codebook.codes(latent)
    assert ((codes != 0) == mask).all()
    assert (codes.abs() <= max_codes).all()
    assert (torch.sign(codes) == torch.where(latent < 0, -1, 1) * mask).all()
    assert torch.equal(codebook(latent), codes.to(torch.float32) * steps)


@pytest.mark.parametrize("scales", [{}, {"rows": (3, -5) * 8}, {"rows": (3, -5) * 8, "columns": (1, 0, -9, 7) * 2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_training_keeps_the_dtype_of_a_weight(dtype, scales):
    """Values have the weight's dtype and equal `fake_quantize` bit for bit, also if the prepared network is cast later."""
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = nn.Linear(8, 16, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer_plan = LayerPlan((16, 8), float(np.float32(0.3)), 0.2, 1 / 3, 0.0, 0.0, **scales)
    plan = replace(opq.plan(layer, ratio=4.0), layers={"weight": layer_plan})
    opq.prepare(layer, plan, reserve=0.0)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.weight, fake_quantize(weight, layer_plan))
    before = layer.parametrizations.weight[0].steps.clone()
    layer.to(torch.bfloat16)
    assert layer.parametrizations.weight[0].steps.dtype == before.dtype == torch.float32
    assert torch.equal(layer.parametrizations.weight[0].steps, before)
    assert layer.weight.dtype == torch.bfloat16
    mask = layer.parametrizations.weight[0].mask
    assert torch.equal(layer.weight != 0, mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"auxiliary": "exact"}, {}, {"auxiliary": "uint8", "batch_norm": "folded"}, {"scales": "rows"}],
    ids=["exact", "float16", "uint8 folded", "scaled"],
)
def test_a_file_is_a_start(kind, options):
    """Prepared from a file, a network has the file's values, masks, steps and metadata exactly. It encodes to the same bytes if
    auxiliary tensors lose nothing by being stored again, and in any case exports to no more.
    """
    model, inputs = make(kind)
    model.train()(inputs)  # batch norms have statistics of their own
    compressed = opq.compress(model, ratio=6.0, metadata={"author": "a"}, **options)
    other, _ = make(kind, seed=1)
    prepared = opq.prepare(other, compressed.data)
    assert prepared.plan is None
    assert prepared.budget == compressed.file_bytes
    with opq.OpqFile(compressed.data) as file:
        assert prepared.metadata == file.metadata == {"author": "a"}
        for weight in prepared.weights:
            for name in weight.names:
                assert float(weight.codebook.step) == file[name].codebook.step
                assert repr(weight.codebook.codebook()) == repr(file[name].codebook)
                np.testing.assert_array_equal(weight.codebook.mask.numpy(), file[name].codes != 0)
                np.testing.assert_array_equal(weight.codebook.codes(weight.latent).numpy(), file[name].codes)
    loaded = make(kind, seed=2)[0]
    loaded.load_state_dict(opq.torch.load(compressed.data))
    assert torch.equal(other.eval()(inputs), loaded.eval()(inputs))
    assert prepared.encode().plan is None
    assert prepared.export().file_bytes <= compressed.file_bytes
    if "batch_norm" not in options:
        assert prepared.encode().data == prepared.export().data == compressed.data


@pytest.mark.slow
@given(
    kind=st.sampled_from(KINDS),
    target=st.sampled_from(list(TARGETS.values())),
    growth=st.floats(1.0, 1.25),
    batches=st.booleans(),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=30)
def test_an_export_is_within_the_budget_and_changes_nothing(kind, target, growth, batches, seed, data):
    """`export` leaves the network prepared, and its tensors and the modes of its modules unchanged, bit for bit. The file is
    within the budget. It reads back as the network's own values, vectors with the error of float16, or, if codes were lowered,
    with the same masks and steps.
    """
    model, inputs = make(kind, seed)
    prepared = opq.prepare(model, **target)
    with torch.no_grad():
        for weight in prepared.weights:
            weight.latent.mul_(growth)
    for module in model.modules():
        module.training = data.draw(st.booleans())
    budget = data.draw(st.sampled_from([prepared.budget, None, prepared.encode().file_bytes - 40]))
    prepared = replace(prepared, budget=budget)
    fixed, before, values = masks_and_steps(model), copied_state(model), plain_state_dict(model)
    modes = [module.training for module in model.modules()]
    try:
        compressed, trained_bytes, reduction = prepared.export_with_report([inputs] if batches else None)
    except opq.TargetError:
        assume(False)
    finally:
        assert prepared_weights(model)
        assert equal_states(model.state_dict(), before)
        assert [module.training for module in model.modules()] == modes
        check_invariants(model, fixed)
    assert budget is None or compressed.file_bytes <= budget
    assert trained_bytes == prepared.encode().file_bytes
    assert (reduction.lowered > 0) == (budget is not None and trained_bytes > budget)
    assert prepared.export([inputs] if batches else None).data == compressed.data
    opq.verify(compressed.data)
    loaded = opq.torch.load(compressed.data)
    assert set(loaded) == set(values)
    codebooks = {name: weight.codebook for weight in prepared.weights for name in weight.names}
    for name, tensor in loaded.items():
        if name not in codebooks:
            is_same = within_float16 if tensor.dtype == torch.float32 else torch.equal
            assert (reduction.lowered and batches) or is_same(tensor, values[name]), name
        elif not reduction.lowered:
            assert torch.equal(tensor, values[name]), name
        else:
            assert torch.equal(tensor != 0, codebooks[name].mask)
            assert (tensor.abs() <= values[name].abs()).all()
            assert torch.equal(torch.sign(tensor), torch.sign(values[name]))


def test_a_failed_export_changes_nothing():
    """If the codes cannot be brought into the budget, the network is unchanged too."""
    model, inputs = make("convolutions")
    prepared = opq.prepare(model, ratio=6.0, budget=100)
    before, modes = copied_state(model), [module.training for module in model.modules()]
    with pytest.raises(opq.TargetError):
        prepared.export([inputs])
    assert equal_states(model.state_dict(), before)
    assert [module.training for module in model.modules()] == modes


def test_training_continues_after_an_export():
    """A loop that exports after each step ends with the same file as one that exports once."""

    def train(exports):
        model, inputs = make("convolutions")
        prepared = opq.prepare(model, ratio=6.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            if exports:
                prepared.export([inputs])
        return prepared.export([inputs]).data

    assert train(True) == train(False)


def test_the_state_of_a_prepared_network_can_be_loaded():
    """The state dict of a prepared network loads into another one that was prepared under the same plan."""
    model, inputs = make("dense")
    plan = opq.plan(model, ratio=6.0)
    opq.prepare(model, plan, reserve=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other, _ = make("dense", seed=3)
    opq.prepare(other, plan, reserve=0.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), model(inputs))


def test_what_cannot_be_prepared_is_refused():
    """A plan or a file of another network, a network prepared twice, and NaN each raise an error."""
    model, _ = make("dense")
    plan = opq.plan(model, ratio=6.0)
    other, _ = make("convolutions")
    with pytest.raises(opq.PlanError, match=r"it has a layer '0.weight', which the network lacks"):
        opq.prepare(other, plan, reserve=0.0)
    assert not prepared_weights(other)
    with pytest.raises(opq.SourceError, match="it is not of this network"):
        opq.prepare(other, opq.compress(model, ratio=6.0).data)
    prepared = opq.prepare(model, plan, reserve=0.0)
    with pytest.raises(opq.PlanError, match="prepared already"):
        opq.prepare(model, plan, reserve=0.0)
    with torch.no_grad():
        prepared.weights[0].latent[0, 0] = torch.nan
    for attempt in (prepared.convert, prepared.encode, prepared.export, prepared.code_bytes):
        with pytest.raises(opq.WeightError, match="NaN"):
            attempt()
    assert prepared_weights(model)


def test_a_start_and_keywords_do_not_go_together():
    """Keywords together with a start, an unknown keyword, and a missing target each raise an error that names the problem."""
    model, _ = make("dense")
    for start in (opq.plan(model, ratio=6.0), to_ratio(6.0), opq.compress(model, ratio=6.0).data):
        with pytest.raises(TypeError, match=r"prepare\(\) takes a start or keywords, got both a start and 'ratio'"):
            opq.prepare(model, start, ratio=3.0)
    with pytest.raises(TypeError, match=r"prepare\(\) got an unexpected keyword argument 'ratoi'; did you mean 'ratio'\?"):
        opq.prepare(model, ratoi=3.0)
    with pytest.raises(opq.TargetError, match="exactly one target"):
        opq.prepare(model)
    with pytest.raises(opq.ConfigError, match="rounding must be one of"):
        opq.prepare(model, ratio=3.0, rounding="plain")
    assert not prepared_weights(model)


def test_a_prepared_model_is_frozen_and_prints_its_size():
    """Its fields cannot be set; its text has the number of weights and the budget."""
    prepared = opq.prepare(make("dense")[0], ratio=4.0, budget=1234)
    with pytest.raises(FrozenInstanceError):
        prepared.budget = 5
    assert "2 weights" in repr(prepared)
    assert "1,234 bytes" in repr(prepared)
    names = ["model", "start", "calibration", "budget", "reserve", "metadata", "progress", "options"]
    assert list(inspect.signature(opq.prepare).parameters) == names


def test_shared_weights_are_saved_once(tmp_path):
    """The state dict of a prepared network has a shared weight under one name, so that safetensors writes it. It loads into a
    network prepared alike, on its own or inside of another, and into copies. After `convert` the network has all of its names.
    """
    (model, inputs), (other, _) = make("sequences"), make("sequences", seed=1)
    names = list(model.state_dict())
    plan = opq.plan(model, ratio=6.0)
    first, second = opq.prepare(model, plan, reserve=0.0), opq.prepare(other, plan, reserve=0.0)
    save_file(model.state_dict(), tmp_path / "prepared.safetensors")
    for loaded in (copy.deepcopy(other), nn.Sequential(copy.deepcopy(other)), other):
        prefix = "0." if isinstance(loaded, nn.Sequential) else ""
        state = load_file(tmp_path / "prepared.safetensors")
        loaded.load_state_dict({prefix + name: tensor for name, tensor in state.items()})
        assert torch.equal(loaded.eval()(inputs), model.eval()(inputs))
    for prepared in (first, second):
        network = prepared.convert()
        assert list(network.state_dict()) == names
        network.load_state_dict(network.state_dict())


def test_a_refused_network_is_unchanged():
    """If a plan or a file does not fit, no weight changes."""
    model, _ = make("dense")
    plan = opq.plan(model, ratio=4.0)
    wrong = replace(plan, layers={**plan.layers, "absent.weight": next(iter(plan.layers.values()))})
    clustered = make("dense", seed=1)[0]
    with torch.no_grad():
        clustered[0].weight.copy_(torch.tensor([-0.3, 0.1, 0.7, 1.0])[torch.randint(4, (24, 12))])
    before = copied_state(model)
    for start, error in ((wrong, opq.PlanError), (opq.compress(clustered, lossless=True).data, opq.WeightError)):
        with pytest.raises(error):
            opq.prepare(model, start)
        assert not prepared_weights(model)
        assert equal_states(model.state_dict(), before)


def test_weights_that_modules_rewrite_are_refused():
    """A weight that is parametrized already, or that its embedding rescales, would not stay in its codebook."""
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 24)))
    with pytest.raises(opq.PlanError, match="parametrized already"):
        opq.prepare(normed, ratio=4.0)
    with pytest.raises(opq.PlanError, match="max_norm"):
        opq.prepare(nn.Sequential(nn.Embedding(30, 16, max_norm=1.0)), ratio=4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_network_can_be_copied_at_any_time(kind):
    """Before and after a forward pass, a copy computes the same, and trains and converts on its own."""
    model, inputs = make(kind)
    prepared = opq.prepare(model, ratio=6.0)
    for _ in range(2):
        copied = copy.deepcopy(prepared)
        copied.model.eval(), model.eval()
        outputs = copied.model(inputs)
        assert torch.equal(outputs, model(inputs))
    outputs.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    copied.convert()
    assert not prepared_weights(copied.model)
    assert prepared_weights(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_finetuning_that_fails_leaves_the_network_unchanged(kind):
    """Values, names, their order and modes are those of before, and the network can be finetuned at once."""
    model, inputs = make(kind)
    model.eval()
    next(iter(model.children())).train()
    before = copy.deepcopy(model)
    training = opq.TrainingConfig(epochs=1)
    with pytest.raises(opq.TrainingError, match="no labels"):
        opq.finetune(model, [inputs], to_ratio(4.0), training)
    assert equal_states(model.state_dict(), before.state_dict())
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in before.named_parameters()]
    opq.finetune(model, [inputs], to_ratio(4.0), training, teacher="dense")


def test_the_network_may_be_its_own_teacher():
    """`teacher=model` is the same as "dense": the network as it is before training."""
    (first, inputs), (second, _) = make("dense"), make("dense")
    training = opq.TrainingConfig(epochs=2)
    named = opq.finetune(first, [inputs], to_ratio(4.0), training, teacher="dense")
    itself = opq.finetune(second, [inputs], to_ratio(4.0), training, teacher=second)
    assert itself.compressed.data == named.compressed.data
    assert itself.history[0]["loss"] > 0.0


def test_the_calibration_of_another_network_is_refused():
    """A calibration of another network is refused, because its values would replace those of this network."""
    (model, inputs), (other, _) = make("dense"), make("dense", seed=1)
    with pytest.raises(opq.PlanError, match="the calibration is of another network"):
        opq.finetune(model, [inputs], to_ratio(3.0), opq.TrainingConfig(epochs=1), calibration=opq.calibrate(other, inputs))


@pytest.mark.parametrize("options", [{"ratio": 4.0}, {"lossless": True}])
def test_a_prepared_network_is_not_compressed(options):
    """Latent values and codebooks are no checkpoint: the network must be converted first."""
    model, _ = make("convolutions")
    prepared = opq.prepare(model, ratio=4.0)
    for source in (model, model.state_dict()):
        with pytest.raises(opq.SourceError, match=r"prepared for training; call convert\(\)"):
            opq.compress(source, **options)
    opq.verify(opq.compress(prepared.convert(), **options).data)
