"""Preparing and converting: what a network is before, between and after."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_networks import KINDS, make
from torch import nn

import opq
import opq.torch
from opq.quantization.quantizer import fake_quantize
from opq.rate_distortion.plan import LayerPlan
from opq.training.parametrization import Codebook
from opq.training.prepared_model import codebooks, fixed_layers, is_prepared, plain_state_dict


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [{"ratio": 6.0}, {"sparsity": 0.6, "bits": 3.0}], ids=["joint", "paper"])
def test_a_prepared_network_computes_with_fake_quantized_weights(kind, target):
    """Prepared, a network gives what it gives with `fake_quantize` of its weights; converted, it still does, bit for bit."""
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
    assert opq.prepare(model, plan) is model
    assert is_prepared(model)
    assert torch.equal(model(inputs), expected)
    assert opq.convert(model) is model
    assert not is_prepared(model)
    assert torch.equal(model(inputs), expected)
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_names_before_and_after_are_the_networks_own(kind):
    """`convert` gives back the state dict's names in their order, the parameters themselves, and the modules' classes."""
    model, _ = make(kind)
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    opq.prepare(model, ratio=6.0)
    assert sorted(plain_state_dict(model)) == sorted(names)
    assert {id(parameter) for parameter in model.parameters()} == set(parameters.values())
    opq.convert(model)
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert not any("opq" in key for module in model.modules() for key in vars(module))


def test_every_kind_of_weight_is_prepared():
    """Convolutions of all kinds, linear and recurrent layers, embeddings, attention: every weight of a plan has a codebook."""
    for kind in KINDS:
        model, inputs = make(kind)
        plan = opq.plan(model, ratio=6.0)
        opq.prepare(model, plan)
        prepared = codebooks(model)
        assert {name for weight in prepared for name in weight.names} == set(plan.layers)
        model(inputs).square().sum().backward()
        for weight in prepared:
            assert weight.latent.grad is not None, weight.names
            assert (weight.latent.grad[~weight.codebook.mask] == 0).all()
            assert (weight.latent.grad[weight.codebook.mask] != 0).any()


def test_tied_weights_are_one():
    """Weights that modules share have one latent value and one codebook, and are stored once."""
    model, _ = make("sequences")
    opq.prepare(model, ratio=6.0)
    tied = [weight for weight in codebooks(model) if len(weight.names) > 1]
    assert [weight.names for weight in tied] == [("head.weight", "tokens.weight")]
    opq.convert(model)
    assert model.head.weight is model.tokens.weight


def test_the_gradient_passes_straight_through():
    """The gradient of a kept latent value is that of the value it rounds to; that of a pruned one is zero, even where the
    other is infinite.
    """
    mask = torch.tensor([True, False, True, False])
    codebook = Codebook(mask, 0.5, 0.5, torch.tensor(100.0))
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
    """Whatever latent values become: pruned ones are 0, kept ones step * k, 1 <= |k| <= most; zero counts as positive."""
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    most = data.draw(st.integers(1, 30))
    codebook = Codebook(mask, step, offset, torch.tensor(float(most)))
    latent = torch.tensor(values)
    codes = codebook.codes(latent)
    assert ((codes != 0) == mask).all()
    assert (codes.abs() <= most).all()
    assert (torch.sign(codes) == torch.where(latent < 0, -1, 1) * mask).all()
    assert torch.equal(codebook(latent), (codes.to(torch.float32) * torch.tensor(step)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_trains_in_itself(dtype):
    """Values have the weight's dtype and are bit-equal to `fake_quantize`, also when the prepared network is cast later."""
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = nn.Linear(8, 16, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    plan = LayerPlan((16, 8), float(np.float32(0.3)), 0.2, 1 / 3, 0.0, 0.0, 0.0)
    joint = opq.Plan("joint", {"ratio": 8.0}, opq.plan(layer, ratio=4.0).auxiliary, 1.0, 512, 64, {"weight": plan})
    opq.prepare(layer, joint)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.weight, fake_quantize(weight, plan))
    before = layer.parametrizations.weight[0].step.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(layer.parametrizations.weight[0].step, before)
    assert layer.weight.dtype == torch.bfloat16
    mask = layer.parametrizations.weight[0].mask
    assert torch.equal(layer.weight != 0, mask)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_a_starting_point(kind):
    """Prepared from a file, a network has the file's values, masks and steps exactly, and goes back into the same file."""
    model, inputs = make(kind)
    compressed = opq.compress(model, ratio=6.0)
    other, _ = make(kind, seed=1)
    opq.prepare(other, compressed.data)
    with opq.OpqFile(compressed.data) as file:
        for weight in codebooks(other):
            for name in weight.names:
                assert float(weight.codebook.step) == file[name].step
                np.testing.assert_array_equal(weight.codebook.mask.numpy(), file[name].codes != 0)
                np.testing.assert_array_equal(weight.codebook.codes(weight.latent).numpy(), file[name].codes)
    loaded = make(kind, seed=2)[0]
    loaded.load_state_dict(opq.torch.load(compressed.data))
    assert torch.equal(other.eval()(inputs), loaded.eval()(inputs))
    again = opq.compress(plain_state_dict(other), plan=replace(compressed.plan, layers=fixed_layers(other)))
    assert again.data == compressed.data


def test_the_state_of_a_prepared_network_can_be_loaded():
    """The state dict of a prepared network, as a training loop saves it, goes into another one prepared under the same plan."""
    model, inputs = make("dense")
    plan = opq.plan(model, ratio=6.0)
    opq.prepare(model, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other, _ = make("dense", seed=3)
    opq.prepare(other, replace(plan, layers=fixed_layers(model)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), model(inputs))


def test_what_cannot_be_prepared_is_refused():
    """A plan of another network, a network prepared twice, a file of another one, a diverged training: each says so."""
    model, _ = make("dense")
    plan = opq.plan(model, ratio=6.0)
    other, _ = make("convolutions")
    with pytest.raises(opq.PlanError, match=r"it has a layer '0.weight', which the network lacks"):
        opq.prepare(other, plan)
    assert not is_prepared(other)
    with pytest.raises(opq.SourceError, match="it is not of this network"):
        opq.prepare(other, opq.compress(model, ratio=6.0).data)
    with pytest.raises(opq.TargetError, match="give either the plan or options"):
        opq.prepare(model, plan, ratio=3.0)
    opq.prepare(model, plan)
    with pytest.raises(opq.PlanError, match="prepared already"):
        opq.prepare(model, plan)
    with torch.no_grad():
        codebooks(model)[0].latent[0, 0] = torch.nan
    with pytest.raises(opq.WeightError, match="training has led to NaN"):
        opq.convert(model)
    assert is_prepared(model)


def test_tied_weights_are_saved_once(tmp_path):
    """A prepared network's state dict has a shared weight under one name, so that safetensors writes it; it loads into one
    prepared alike, on its own or inside of another, and in its copies; converted, the network has all of its names.
    """
    (model, inputs), (other, _) = make("sequences"), make("sequences", seed=1)
    names = list(model.state_dict())
    plan = opq.plan(model, ratio=6.0)
    opq.prepare(model, plan)
    opq.prepare(other, replace(plan, layers=fixed_layers(model)))
    save_file(model.state_dict(), tmp_path / "prepared.safetensors")
    for loaded in (copy.deepcopy(other), nn.Sequential(copy.deepcopy(other)), other):
        prefix = "0." if isinstance(loaded, nn.Sequential) else ""
        state = load_file(tmp_path / "prepared.safetensors")
        loaded.load_state_dict({prefix + name: tensor for name, tensor in state.items()})
        assert torch.equal(loaded.eval()(inputs), model.eval()(inputs))
    for network in (model, other):
        assert list(opq.convert(network).state_dict()) == names
        network.load_state_dict(network.state_dict())


def test_a_refused_network_is_as_it_was():
    """Whatever is wrong with a plan or a file, not one weight is touched before that is found."""
    model, _ = make("dense")
    plan = opq.plan(model, ratio=4.0)
    wrong = replace(plan, layers={**plan.layers, "absent.weight": next(iter(plan.layers.values()))})
    clustered = make("dense", seed=1)[0]
    with torch.no_grad():
        clustered[0].weight.copy_(torch.tensor([-0.3, 0.1, 0.7, 1.0])[torch.randint(4, (24, 12))])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for start, error in ((wrong, opq.PlanError), (opq.compress(clustered, lossless=True).data, opq.WeightError)):
        with pytest.raises(error):
            opq.prepare(model, start)
        assert not is_prepared(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_weights_that_others_rewrite_are_refused():
    """A weight that is parametrized already, or that its embedding rescales as it runs, would not be in its codebook."""
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 24)))
    with pytest.raises(opq.PlanError, match="parametrized already"):
        opq.prepare(normed, ratio=4.0)
    with pytest.raises(opq.PlanError, match="max_norm"):
        opq.prepare(nn.Sequential(nn.Embedding(30, 16, max_norm=1.0)), ratio=4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_network_can_be_copied_at_any_time(kind):
    """Before and after it has run, a copy computes the same, and trains on its own."""
    model, inputs = make(kind)
    opq.prepare(model, ratio=6.0)
    for _ in range(2):
        copied = copy.deepcopy(model)
        copied.eval(), model.eval()
        outputs = copied(inputs)
        assert torch.equal(outputs, model(inputs))
    outputs.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    opq.convert(copied)
    assert is_prepared(model)


def test_a_shaped_plan_is_trained_from_what_it_rounds_to():
    """Prepared under a shaped plan, a network computes with the values of that plan's file; its own plans are plain."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=3)
    assert all(layer.shaped for layer in plan.layers.values())
    compressed = opq.torch.load(opq.compress(model, plan=plan).data)
    opq.prepare(model, plan)
    opq.convert(model)
    for name in plan.layers:
        assert torch.equal(model.state_dict()[name], compressed[name])
    other, _ = make("convolutions")
    opq.prepare(other, ratio=3)
    wanted = opq.plan(make("convolutions")[0], ratio=3, rounding="plain")
    rounded = opq.torch.load(opq.compress(make("convolutions")[0], plan=wanted).data)
    opq.convert(other)
    for name in wanted.layers:
        assert torch.equal(other.state_dict()[name], rounded[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_finetuning_that_fails_leaves_the_network_as_it_was(kind):
    """Values, names, modes and their order are those of before, and the network can be finetuned at once."""
    model, inputs = make(kind)
    model.eval()
    next(iter(model.children())).train()
    before = copy.deepcopy(model)
    with pytest.raises(opq.TrainingError, match="no labels"):
        opq.finetune(model, [inputs], epochs=1, ratio=4.0)
    assert list(model.state_dict()) == list(before.state_dict())
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in before.named_parameters()]
    opq.finetune(model, [inputs], epochs=1, ratio=4.0, teacher="dense")


def test_the_network_may_be_its_own_teacher():
    """`teacher=model` is what "dense" is: the network as it comes, not as it becomes."""
    (first, inputs), (second, _) = make("dense"), make("dense")
    named = opq.finetune(first, [inputs], epochs=2, ratio=4.0, teacher="dense")
    itself = opq.finetune(second, [inputs], epochs=2, ratio=4.0, teacher=second)
    assert itself.compressed.data == named.compressed.data
    assert itself.history[0]["loss"] > 0.0


def test_the_calibration_of_another_network_is_refused():
    """Its values would take the place of this one's."""
    (model, inputs), (other, _) = make("dense"), make("dense", seed=1)
    with pytest.raises(opq.PlanError, match="the calibration is of another network"):
        opq.finetune(model, [inputs], epochs=0, ratio=3.0, calibration=opq.calibrate(other, inputs))


@pytest.mark.parametrize("options", [{"ratio": 4.0}, {"lossless": True}])
def test_a_prepared_network_is_not_compressed_as_it_stands(options):
    """Latent values and codebooks are no network: it is converted first."""
    model, _ = make("convolutions")
    opq.prepare(model, ratio=4.0)
    for source in (model, model.state_dict()):
        with pytest.raises(opq.SourceError, match=r"prepared for training: opq\.convert"):
            opq.compress(source, **options)
    opq.verify(opq.compress(opq.convert(model), **options).data)
