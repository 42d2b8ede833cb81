"""Finetuning: what never changes, what a run leaves, and that the file is as small as asked."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_networks import flat, images, make
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import opq
import opq.torch
from opq.training.budget.code_reduction import reduce_codes, section_bytes
from opq.training.prepared_model import codebooks, fixed_layers, plain_state_dict
from opq.training.trainer import Training

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


def fixed_facts(model):
    """What must never change: masks and steps of all weights."""
    return {weight.names: (weight.codebook.mask.clone(), float(weight.codebook.step)) for weight in codebooks(model)}


def check_invariants(model, facts):
    for weight in codebooks(model):
        mask, step = facts[weight.names]
        assert torch.equal(weight.codebook.mask, mask)
        assert float(weight.codebook.step) == step
        value = weight.codebook(weight.latent).detach()
        assert (value[~mask] == 0).all()
        codes = weight.codebook.codes(weight.latent)
        assert ((codes != 0) == mask).all()
        assert torch.equal(value, codes.to(torch.float32) * torch.tensor(step))


@given(
    kind=st.sampled_from(["convolutions", "sequences", "dense"]),
    optimizer=optimizers,
    target=st.sampled_from([{"ratio": 6.0}, {"sparsity": 0.7, "bits": 2.5}]),
    narrow=st.booleans(),
    clip=st.sampled_from([None, 0.1, 10.0]),
    steps=st.integers(1, 5),
)
@settings(max_examples=40)
def test_no_optimizer_moves_masks_or_steps(kind, optimizer, target, narrow, clip, steps):
    """Under SGD with momentum and weight decay, AdamW, autocast and clipping: pruned weights stay exactly zero, kept ones in
    their codebook and kept, masks and steps what they were; and `opq verify` proves it of the file.
    """
    model, inputs = make(kind)
    model.train()
    opq.prepare(model, **target)
    facts = fixed_facts(model)
    made = optimizer(model.parameters())
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = model(inputs).float().square().mean()
        made.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        made.step()
    if all(torch.isfinite(weight.latent).all() for weight in codebooks(model)):
        check_invariants(model, facts)
        masks = {name: mask for names, (mask, _) in facts.items() for name in names}
        finite = {name: t for name, t in plain_state_dict(model).items() if torch.isfinite(t).all()}
        layers = {name: layer for name, layer in fixed_layers(model).items() if name in finite}
        with opq.OpqFile(_file_of(finite, layers)) as file:
            for name in layers:
                np.testing.assert_array_equal(file[name].codes != 0, masks[name].numpy())
    else:
        with pytest.raises(opq.WeightError, match="NaN or infinite"):
            opq.convert(model)


def _file_of(state, layers):
    plan = replace(opq.plan({name: state[name] for name in layers}, sparsity=0.5, bits=3.0), layers=layers)
    data = opq.compress(state, plan=plan).data
    opq.verify(data)
    return data


def test_a_finetuned_network_can_be_saved(tmp_path):
    """Its tensors are contiguous, as safetensors and views want them."""
    model, _ = make("convolutions")
    opq.finetune(model, images(), epochs=1, ratio=6.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_evaluation_leaves_every_module_in_its_mode():
    """A batch-norm that was frozen stays so."""
    model, inputs = make("convolutions")
    model.train()
    model.norm.eval()
    opq.evaluate(model, [inputs])
    assert model.training
    assert model.head.training
    assert not model.norm.training


class Bilinear(nn.Module):
    """Wants two inputs."""

    def forward(self, x, y):
        """Their product."""
        return x @ y.T


def test_labels_of_any_integers_are_labels():
    """32 bits do as well as 64."""
    (first, inputs), (second, _) = make("dense"), make("dense")
    labels = torch.arange(6)
    made = [opq.finetune(m, [(inputs, to)], epochs=1, ratio=4.0) for m, to in ((first, labels), (second, labels.int()))]
    assert made[0].compressed.data == made[1].compressed.data
    assert opq.evaluate(first, [(inputs, labels)]) == opq.evaluate(first, [(inputs, labels.short())])


def test_what_a_network_cannot_take_is_told_in_a_line():
    """Inputs of the wrong shape or number, labels beyond the classes, nothing to train, epochs under 0."""
    inputs = torch.randn(16, 3, 8, 8)
    with pytest.raises(opq.TrainingError, match=r"fails on a batch of \(16, 3, 8, 8\)"):
        opq.finetune(make("convolutions")[0], [inputs], epochs=1, ratio=6.0, teacher="dense")
    with pytest.raises(opq.TrainingError, match="labels go from 13 to 13"):
        opq.finetune(make("dense")[0], [(torch.randn(4, 12), torch.full((4,), 13))], epochs=1, ratio=6.0)
    with pytest.raises(opq.TrainingError, match="fails on a batch"):
        opq.evaluate(Bilinear(), [torch.randn(4, 12)])
    with pytest.raises(opq.TrainingError, match="nothing to train"):
        opq.finetune(make("dense")[0].requires_grad_(False), flat(), epochs=1, ratio=4.0)
    with pytest.raises(opq.TrainingError, match="epochs must be 0 or more, got -1"):
        opq.finetune(make("dense")[0], flat(), epochs=-1, ratio=6.0)


@pytest.mark.parametrize("ratio", [4.0, 6.0])
def test_the_byte_target_holds_after_training(ratio):
    """However codes spread, the file is within what was asked, whole, and its values are what the network then holds."""
    model, _ = make("convolutions")
    dense_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    recipe = opq.TrainingConfig(learning_rate=1.0, warm_up=0.0, weight_decay=0.0, clip=1.0)
    finetuned = opq.finetune(model, images(), epochs=4, ratio=ratio, recipe=recipe, reserve=0.0)
    assert finetuned.budget == int(dense_bytes / ratio)
    assert finetuned.compressed.file_bytes <= finetuned.budget
    assert (finetuned.trained_bytes > finetuned.budget) == (finetuned.fit.lowered > 0)
    assert f"{finetuned.budget:,} asked for" in str(finetuned)
    opq.verify(finetuned.compressed.data)
    for name, tensor in opq.torch.load(finetuned.compressed.data).items():
        assert torch.equal(model.state_dict()[name], tensor)


@given(share=st.floats(0.75, 1.1), seed=st.integers(0, 5))
@settings(max_examples=20)
def test_lowering_codes_meets_any_size_in_reach(share, seed):
    """Codes are lowered, never to zero, and no further than it takes; masks, steps and signs stay; else an error says why."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    opq.prepare(model, ratio=6.0)
    before = [weight.codebook.codes(weight.latent) for weight in codebooks(model)]
    values = [weight.latent.detach().clone() for weight in codebooks(model)]
    size = section_bytes([codes.numpy() for codes in before])
    ones = [torch.sign(codes).numpy() for codes in before]
    if section_bytes(ones) > share * size:
        with pytest.raises(opq.TargetError, match="all kept codes are 1 already"):
            reduce_codes(model, share * size)
        return
    fit = reduce_codes(model, share * size)
    after = [weight.codebook.codes(weight.latent) for weight in codebooks(model)]
    assert section_bytes([codes.numpy() for codes in after]) <= share * size
    assert fit.num_kept == sum(int((codes != 0).sum()) for codes in before)
    assert fit.lowered == sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    assert (fit.lowered == 0) == (share >= 1.0)
    for old, new, value, weight in zip(before, after, values, codebooks(model), strict=True):
        assert (torch.sign(old) == torch.sign(new)).all()
        assert (new.abs() <= old.abs()).all()
        assert torch.equal(weight.latent[old == new], value[old == new])


@given(share=st.floats(0.1, 0.9), scale=st.sampled_from([10.0, 1e3, 1e6]), seed=st.integers(0, 5))
@settings(max_examples=8)
def test_lowering_far_codes_takes_no_more_than_it_must(share, scale, seed):
    """Codes of any size, however much too many bytes they take: what is left fills nine tenths of the bytes asked for."""
    torch.manual_seed(seed)
    model = opq.prepare(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), ratio=6.0)
    with torch.no_grad():
        for weight in codebooks(model):
            weight.latent.mul_(scale)
    codes = [weight.codebook.codes(weight.latent).numpy() for weight in codebooks(model)]
    fewest, most = section_bytes([np.sign(array) for array in codes]), section_bytes(codes)
    room = fewest + share * (most - fewest)
    reduce_codes(model, room)
    size = section_bytes([weight.codebook.codes(weight.latent).numpy() for weight in codebooks(model)])
    assert 0.9 * room <= size <= room


def test_a_teacher_needs_no_labels():
    """Unlabelled inputs and the dense network are enough; without either, an error says what is missing."""
    model, _ = make("convolutions")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = opq.TrainingConfig(learning_rate=0.2)
    finetuned = opq.finetune(model, images(labelled=False), epochs=6, ratio=8.0, teacher="dense", recipe=recipe)
    losses = [row["loss"] for row in finetuned.history]
    assert losses[-1] < 0.9 * losses[0]
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(opq.TrainingError, match="there are no labels to learn from"):
        opq.finetune(make("convolutions")[0], images(labelled=False), epochs=1, ratio=6.0)


def test_a_file_keeps_its_masks_and_steps():
    """Finetuned from a file, weights move, and masks, steps and the file's size stay."""
    dense, _ = make("convolutions")
    start = opq.compress(dense, ratio=6.0)
    model, _ = make("convolutions")
    finetuned = opq.finetune(
        model, images(), epochs=2, start=start.data, teacher="dense", recipe=opq.TrainingConfig(learning_rate=0.5)
    )
    assert finetuned.budget == start.file_bytes
    assert finetuned.compressed.file_bytes <= start.file_bytes
    with opq.OpqFile(start.data) as old, opq.OpqFile(finetuned.compressed.data) as new:
        moved = 0
        for name in start.plan.layers:
            assert new[name].step == old[name].step
            np.testing.assert_array_equal(new[name].codes != 0, old[name].codes != 0)
            moved += int((new[name].codes != old[name].codes).sum())
        assert moved


def test_a_prepared_network_is_finetuned_as_it_is():
    """A network that the user prepared keeps that plan, and is converted at the end; its own dense form must be given."""
    model, inputs = make("dense")
    opq.prepare(model, ratio=4.0)
    facts = fixed_facts(model)
    loader = DataLoader(TensorDataset(inputs, torch.arange(len(inputs))), batch_size=3)
    finetuned = opq.finetune(model, loader, epochs=1)
    assert finetuned.budget is None
    assert not codebooks(model)
    with opq.OpqFile(finetuned.compressed.data) as file:
        for (name,), (mask, step) in facts.items():
            assert file[name].step == step
            np.testing.assert_array_equal(file[name].codes != 0, mask.numpy())
    opq.prepare(model, ratio=4.0)
    with pytest.raises(opq.TrainingError, match="give its dense form as the teacher"):
        opq.finetune(model, loader, epochs=1, teacher="dense")


@pytest.mark.parametrize("where", ["mapping", "tuple"])
def test_batches_come_as_loaders_give_them(where):
    """Tuples of inputs and labels, and mappings of keyword arguments with "labels", train alike; logits may be an attribute."""

    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 10)

        def forward(self, inputs):
            return Output(self.layer(inputs))

    torch.manual_seed(0)
    model, inputs, labels = Model(), torch.randn(8, 12), torch.arange(8)
    batch = {"inputs": inputs, "labels": labels} if where == "mapping" else (inputs, labels)
    history = Training(model, [batch], 3, opq.TrainingConfig(learning_rate=0.1)).run()
    assert history[-1]["loss"] < history[0]["loss"]
    evaluation = opq.evaluate(model, [batch])
    assert (evaluation.inputs, evaluation.agreement) == (8, None)
    assert evaluation.top1 == pytest.approx(100.0 * float((model(inputs).logits.argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("open_epochs", [0, 2])
@pytest.mark.parametrize("count", [48, 480])
def test_a_diverged_training_says_so(mask_update_epochs, count):
    """A loss or weights that are no numbers end the run with one line, in the middle of an epoch or at its end."""
    model, _ = make("convolutions")
    recipe = opq.TrainingConfig(learning_rate=1e20, warm_up=0.0, clip=None)
    with pytest.raises(opq.TrainingError, match="lower the learning rate"):
        opq.finetune(model, images(count), epochs=3, mask_update_epochs=mask_update_epochs, ratio=6.0, recipe=recipe)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("warm_up", 2.0),
        ("labels", 1.5),
        ("temperature", 0.0),
    ],
)
def test_a_recipe_is_checked(field, value):
    """Numbers out of range are refused, by name."""
    with pytest.raises(opq.TrainingError, match=field):
        opq.TrainingConfig(**{field: value})


def test_the_rate_rises_and_falls():
    """The learning rate rises over the warm-up, reaches 1, and then falls to nearly zero, never below."""
    recipe = opq.TrainingConfig(warm_up=0.1)
    rates = [recipe.rate_at(step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.0 < rates[-1] < 0.01


def test_agreement_is_with_the_dense_network():
    """Percentages are of inputs; five best count where there are more than five classes; modes are left as they were."""
    model, inputs = make("dense")
    dense, _ = make("dense", seed=1)
    labels = torch.randint(10, (6,))
    model.train()
    found = opq.evaluate(model, [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])], dense=dense)
    ours, theirs = model(inputs), dense(inputs)
    assert found.inputs == 6
    assert found.agreement == pytest.approx(100.0 * float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    assert found.top5 == pytest.approx(100.0 * sum(int(labels[k] in ours[k].topk(5).indices) for k in range(6)) / 6)
    assert model.training
    with pytest.raises(opq.TrainingError, match="labels go from 3 to 10, and the network tells 10 classes, 0 to 9"):
        opq.evaluate(model, [(inputs[:2], torch.tensor([3, 10]))])
    with pytest.raises(opq.TrainingError, match="no inputs"):
        opq.evaluate(model, [])


def test_a_budget_without_room_for_codes_is_refused_before_anything_trains():
    """Fewer bytes than the file takes beside its codes cannot be met: an error says how many those are, and no step is done."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=4)
    done = []

    def asked(budget):
        with pytest.raises(opq.TargetError, match="beside its codes") as caught:
            opq.finetune(model, images(), epochs=1, start=plan, budget=budget, progress=lambda *step: done.append(step))
        opq.convert(model)
        return int(re.search("takes ([0-9,]+) beside", str(caught.value)).group(1).replace(",", ""))

    beside = asked(500)
    assert asked(beside) == beside > 500
    assert not done


def test_options_that_come_too_late_are_refused():
    """Where masks and steps are given, a target or what is fixed would not be heeded: an error, before anything trains."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=4)
    with pytest.raises(opq.TargetError, match="fixed already"):
        opq.finetune(model, images(), epochs=1, start=plan, ratio=12)
    with pytest.raises(opq.TargetError, match="fixed already"):
        opq.finetune(model, images(), epochs=1, start=opq.compress(model, plan=plan).data, ratio=12)
    with pytest.raises(opq.TargetError, match="fixed already"):
        opq.finetune(opq.prepare(model, plan), images(), epochs=1, ratio=12)
