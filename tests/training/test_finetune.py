"""Finetuning: what never changes, what comes out, and that the file is within its bytes."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_networks import STEEP, check_invariants, codes_of, masks_and_steps, optimizers, steps_in
from safetensors.torch import save_file
from small_networks import flat, images, make, to_ratio
from thoroughness import examples
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import opq
import opq.torch
from opq.training.attach import prepared_weights
from opq.training.budget.code_reduction import reduce_codes, section_bytes
from opq.training.trainer import Trainer

ONE = opq.TrainingConfig(epochs=1)


@pytest.mark.slow
@given(
    kind=st.sampled_from(["convolutions", "sequences", "dense"]),
    optimizer=optimizers,
    target=st.sampled_from(
        [
            {"ratio": 6.0},
            {"ratio": 6.0, "rounding": "deadzone"},
            {"sparsity": 0.7, "bits": 2.5},
            {"ratio": 6.0, "scales": "rows"},
        ]
    ),
    narrow=st.booleans(),
    max_grad_norm=st.sampled_from([None, 0.1, 10.0]),
    steps=st.integers(1, 5),
)
@examples(40)
def test_no_optimizer_changes_masks_or_steps(kind, optimizer, target, narrow, max_grad_norm, steps):
    """Under SGD with momentum and weight decay, AdamW, autocast and clipping, pruned weights stay exactly zero, kept ones stay
    nonzero and in their codebook, and masks and steps stay; and `opq.verify` accepts the file, which has the same zeros.
    """
    model, inputs = make(kind)
    is_recurrent = any(isinstance(module, nn.LSTM) for module in model.modules())  # in bfloat16 it requires AVX-512
    model.train()
    prepared = opq.prepare(model, **target)
    fixed = masks_and_steps(model)
    made = optimizer(model.parameters())
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow and not is_recurrent):
            loss = model(inputs).float().square().mean()
        made.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        made.step()
    if not all(torch.isfinite(weight.latent).all() for weight in prepared.weights):
        for attempt in (prepared.convert, prepared.encode, prepared.export):
            with pytest.raises(opq.WeightError, match="NaN or infinite"):
                attempt()
        return
    check_invariants(model, fixed)
    data = prepared.encode().data
    opq.verify(data)
    with opq.OpqFile(data) as file:
        for names, (mask, steps) in fixed.items():
            for name in names:
                assert torch.equal(steps_in(file[name]), steps)
                np.testing.assert_array_equal(file[name].codes != 0, mask.numpy())


def test_a_finetuned_network_can_be_saved(tmp_path):
    """Its tensors are contiguous, as safetensors and views need them."""
    model, _ = make("convolutions")
    opq.finetune(model, images(), to_ratio(6.0), ONE)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_labels_of_any_integer_dtype_train_alike():
    """Labels of 32 bits give the same file as labels of 64 bits."""
    (first, inputs), (second, _) = make("dense"), make("dense")
    labels = torch.arange(6)
    made = [opq.finetune(m, [(inputs, to)], to_ratio(4.0), ONE) for m, to in ((first, labels), (second, labels.int()))]
    assert made[0].compressed.data == made[1].compressed.data


def test_unsuitable_inputs_are_refused():
    """Inputs of the wrong shape, labels that are not classes, and a network without gradients each raise an error."""
    inputs = torch.randn(16, 3, 8, 8)
    with pytest.raises(opq.TrainingError, match=r"fails on a batch of \(16, 3, 8, 8\)"):
        opq.finetune(make("convolutions")[0], [inputs], to_ratio(6.0), ONE, teacher="dense")
    with pytest.raises(opq.TrainingError, match="labels go from 13 to 13"):
        opq.finetune(make("dense")[0], [(torch.randn(4, 12), torch.full((4,), 13))], to_ratio(6.0), ONE)
    with pytest.raises(opq.TrainingError, match="nothing to train"):
        opq.finetune(make("dense")[0].requires_grad_(False), flat(), to_ratio(4.0), ONE)
    for loader in ([], (batch for batch in flat())):
        with pytest.raises(opq.TrainingError, match="length of at least one batch"):
            opq.finetune(make("dense")[0], loader, to_ratio(4.0), ONE)


@pytest.mark.parametrize("shape", [(-1,), (6, 1), (6, 24, 1), (6, 2, 3, 4)])
def test_outputs_that_no_loss_fits_are_refused(shape):
    """Without labels a single class, or images of outputs, are no logits."""
    sizes = (12, 1) if shape == (6, 1) else (12, 24)
    model = nn.Sequential(nn.Linear(*sizes), nn.Flatten(0), nn.Unflatten(0, shape))
    with pytest.raises(opq.TrainingError, match=r"must return logits \(n, classes\)"):
        Trainer(model, [torch.randn(6, 12)], ONE, teacher=copy.deepcopy(model)).run()


def test_a_segmentation_network_trains_on_labels():
    """Cross-entropy takes logits (n, classes, height, width) and labels (n, height, width); wrong labels are named."""
    torch.manual_seed(0)
    x, labels = torch.randn(4, 2, 5, 6), torch.randint(3, (4, 5, 6))
    model = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 3, 1))
    expected = nn.functional.cross_entropy(model(x), labels).item()
    history = Trainer(model, [(x, labels)], ONE).run()
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-2)
    with pytest.raises(opq.TrainingError, match="labels go from 3 to 3, but the network has 3 classes"):
        Trainer(model, [(x, torch.full_like(labels, 3))], ONE).run()
    with pytest.raises(opq.TrainingError, match=r"must return logits \(n, classes\).*\(4, 3, 5, 6\)"):
        Trainer(model, [x], ONE, teacher=copy.deepcopy(model)).run()


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [4.0, 6.0])
def test_the_byte_target_is_met_after_training(ratio):
    """However codes have spread, the file is within the target and valid, and its values are what the network then holds."""
    model, _ = make("convolutions")
    dense_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    finetuned = opq.finetune(model, images(), to_ratio(ratio), opq.TrainingConfig(epochs=4, reserve=0.0, **STEEP))
    assert finetuned.budget == int(dense_bytes / ratio)
    assert finetuned.compressed.file_bytes <= finetuned.budget
    assert (finetuned.trained_bytes > finetuned.budget) == (finetuned.reduction.lowered > 0)
    assert f"under the budget of {finetuned.budget:,} bytes" in str(finetuned)
    opq.verify(finetuned.compressed.data)
    for name, tensor in opq.torch.load(finetuned.compressed.data).items():
        assert torch.equal(model.state_dict()[name], tensor)


@given(share=st.floats(0.75, 1.1), seed=st.integers(0, 5))
@examples(20)
def test_reduced_codes_meet_any_size_in_reach(share, seed):
    """Codes are lowered, never to zero, and only if the size needs it; masks, steps and signs stay. Else there is an error."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    opq.prepare(model, ratio=6.0, rounding="deadzone")
    before = codes_of(model)
    values = [weight.latent.detach().clone() for weight in prepared_weights(model)]
    size = section_bytes(before)
    if section_bytes([np.sign(codes) for codes in before]) > share * size:
        with pytest.raises(opq.TargetError, match="all kept codes are 1 already"):
            reduce_codes(model, share * size)
        return
    fixed = masks_and_steps(model)
    reduction = reduce_codes(model, share * size)
    after = codes_of(model)
    assert section_bytes(after) <= share * size
    assert reduction.num_kept == sum(int((codes != 0).sum()) for codes in before)
    assert reduction.lowered == sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    assert (reduction.lowered == 0) == (share >= 1.0)
    check_invariants(model, fixed)
    for old, new, value, weight in zip(before, after, values, prepared_weights(model), strict=True):
        assert (np.sign(old) == np.sign(new)).all()
        assert (np.abs(new) <= np.abs(old)).all()
        same = torch.from_numpy(old == new)
        assert torch.equal(weight.latent[same], value[same])


@given(share=st.floats(0.1, 0.9), scale=st.sampled_from([10.0, 1e3, 1e6]), seed=st.integers(0, 5))
@settings(max_examples=8)
def test_reduced_codes_fill_the_size(share, scale, seed):
    """Codes of any magnitude are lowered no further than the size needs: they fill nine tenths of it."""
    torch.manual_seed(seed)
    model = opq.prepare(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), ratio=6.0, rounding="deadzone").model
    with torch.no_grad():
        for weight in prepared_weights(model):
            weight.latent.mul_(scale)
    codes = codes_of(model)
    smallest, largest = section_bytes([np.sign(array) for array in codes]), section_bytes(codes)
    code_bytes = smallest + share * (largest - smallest)
    reduce_codes(model, code_bytes)
    assert 0.9 * code_bytes <= section_bytes(codes_of(model)) <= code_bytes


@pytest.mark.slow
def test_a_teacher_needs_no_labels():
    """Unlabelled inputs and the dense network are enough; without a teacher, an error says that labels are missing."""
    model, _ = make("convolutions")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = opq.TrainingConfig(epochs=6, learning_rate=0.2)
    finetuned = opq.finetune(model, images(labelled=False), to_ratio(8.0), training, teacher="dense")
    losses = [row["loss"] for row in finetuned.history]
    assert losses[-1] < 0.9 * losses[0]
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(opq.TrainingError, match="there are no labels to learn from"):
        opq.finetune(make("convolutions")[0], images(labelled=False), to_ratio(6.0), ONE)


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["none", "rows"])
def test_a_file_keeps_its_masks_and_steps(scales):
    """In a finetuning from a file weights change, but masks and steps stay, and the file grows by no byte; there is no plan."""
    dense, _ = make("convolutions")
    start = opq.compress(dense, ratio=6.0, scales=scales)
    model, _ = make("convolutions")
    training = opq.TrainingConfig(epochs=2, learning_rate=0.5)
    finetuned = opq.finetune(model, images(), start.data, training, teacher="dense")
    assert finetuned.budget == start.file_bytes
    assert finetuned.compressed.file_bytes <= start.file_bytes
    assert finetuned.compressed.plan is None
    with opq.OpqFile(start.data) as old, opq.OpqFile(finetuned.compressed.data) as new:
        moved = 0
        for name in start.plan.layers:
            assert torch.equal(steps_in(new[name]), steps_in(old[name]))
            np.testing.assert_array_equal(new[name].codes != 0, old[name].codes != 0)
            moved += int((new[name].codes != old[name].codes).sum())
        assert moved


def test_a_file_may_come_open_by_path_or_as_bytes(tmp_path):
    """Each gives the same file, and an open one stays open."""
    start = opq.compress(make("dense")[0], ratio=4.0)
    start.save(tmp_path / "start.opq")
    expected = opq.finetune(make("dense")[0], flat(), start.data, ONE).compressed.data
    for path in (tmp_path / "start.opq", str(tmp_path / "start.opq")):
        assert opq.finetune(make("dense")[0], flat(), path, ONE).compressed.data == expected
    with opq.OpqFile(start.data) as file:
        assert opq.finetune(make("dense")[0], flat(), file, ONE).compressed.data == expected
        assert file["0.weight"].shape == (24, 12)


def test_a_prepared_network_keeps_its_masks_steps_and_budget():
    """It is finetuned under its own plan and converted at the end; its dense form must be given if that is the teacher."""
    model, inputs = make("dense")
    prepared = opq.prepare(model, ratio=4.0, metadata={"author": "a"})
    fixed = masks_and_steps(model)
    loader = DataLoader(TensorDataset(inputs, torch.arange(len(inputs))), batch_size=3)
    finetuned = opq.finetune(prepared, loader, training=ONE, metadata={"data": "b"})
    assert finetuned.budget == prepared.budget == prepared.plan.budget
    assert finetuned.compressed.file_bytes <= finetuned.budget
    assert finetuned.compressed.plan == prepared.plan
    assert not prepared_weights(model)
    with opq.OpqFile(finetuned.compressed.data) as file:
        assert file.metadata == {"author": "a", "data": "b"}
        for (name,), (mask, steps) in fixed.items():
            assert torch.equal(steps_in(file[name]), steps)
            np.testing.assert_array_equal(file[name].codes != 0, mask.numpy())
    again = opq.prepare(model, ratio=4.0)
    with pytest.raises(opq.TrainingError, match="give its dense form as the teacher"):
        opq.finetune(again, loader, training=ONE, teacher="dense")


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"sparsity": 0.6, "bits": 3.0}, {"ratio": 6.0}])
def test_a_budget_replaces_the_target(target):
    """`budget` bounds the file, also if the target does not limit the bytes; without either the file has any size."""
    plan = opq.plan(make("convolutions")[0], **target)
    free = opq.finetune(make("convolutions")[0], images(), plan, ONE)
    assert free.budget == plan.budget
    budget = free.compressed.file_bytes - 60
    held = opq.finetune(make("convolutions")[0], images(), plan, ONE, budget=budget)
    assert held.compressed.file_bytes <= held.budget == budget


@pytest.mark.slow
def test_a_config_is_a_plan_with_dead_zones_and_a_reserve():
    """From a config, rounding "auto" is "deadzone"; the plan leaves the reserve free, and has the config's own target."""
    for rounding, expected in (("auto", "deadzone"), ("deadzone", "deadzone"), ("compensated", "compensated")):
        start = to_ratio(6.0, rounding=rounding)
        plan = opq.finetune(make("convolutions")[0], images(), start, ONE).compressed.plan
        assert {layer.rounding for layer in plan.layers.values()} == {expected}
        assert plan.target == start.target
        budget = math.floor(plan.dense_bytes / 6.0)
        narrower = opq.compress(make("convolutions")[0], size=math.floor(0.93 * budget), rounding=expected).plan
        assert plan.layers == narrower.layers


@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_batches_may_be_mappings_or_tuples(form):
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
    batch = {"inputs": inputs, "labels": labels} if form == "mapping" else (inputs, labels)
    history = Trainer(model, [batch], opq.TrainingConfig(epochs=3, learning_rate=0.1)).run()
    assert history[-1]["loss"] < history[0]["loss"]
    evaluation = opq.evaluate(model, [batch])
    assert (evaluation.inputs, evaluation.agreement) == (8, None)
    assert evaluation.top1 == pytest.approx(100.0 * float((model(inputs).logits.argmax(1) == labels).float().mean()))


@pytest.mark.slow
@pytest.mark.parametrize("mask_update_epochs", [0, 2])
@pytest.mark.parametrize("count", [48, 480])
def test_a_diverged_training_is_an_error(mask_update_epochs, count):
    """A loss or weights that are NaN or infinite end the run with one line, within an epoch or at its end."""
    model, _ = make("convolutions")
    training = opq.TrainingConfig(
        epochs=3, mask_update_epochs=mask_update_epochs, learning_rate=1e20, warmup=0.0, max_grad_norm=None
    )
    with pytest.raises(opq.TrainingError, match="lower the learning rate"):
        opq.finetune(model, images(count), to_ratio(6.0), training)


def test_a_budget_that_leaves_no_bytes_for_codes_is_refused_before_training():
    """The error gives the bytes of the file without its codes; no step is made, and the network is unchanged."""
    model, _ = make("convolutions")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = opq.plan(model, ratio=4)
    steps = []

    def named(budget):
        with pytest.raises(opq.TargetError, match="everything except the codes") as caught:
            opq.finetune(model, images(), plan, ONE, budget=budget, progress=lambda *step: steps.append(step))
        return int(re.search("except the codes takes ([0-9,]+)", str(caught.value)).group(1).replace(",", ""))

    others = named(500)
    assert named(others) == others > 500
    assert not [stage for stage, *_ in steps if stage.startswith("epoch")]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_keywords_are_a_config():
    """The fields of a CompressionConfig as keywords give the file of the config."""
    settings = {"exclude": ("head.*",), "auxiliary": "float16"}
    config = opq.CompressionConfig(target=opq.Ratio(3), **settings)
    by_config = opq.finetune(make("convolutions")[0], images(), config, ONE)
    by_keywords = opq.finetune(make("convolutions")[0], images(), training=ONE, ratio=3, **settings)
    assert by_keywords.compressed.data == by_config.compressed.data


def test_starts_that_contradict_are_refused():
    """A prepared network accepts no start, its module alone is refused, a dense one needs a target, but not a lossless one."""
    model, _ = make("convolutions")
    plan = opq.plan(model, ratio=4)
    with pytest.raises(opq.TargetError, match="exactly one target must be given"):
        opq.finetune(model, images(), training=ONE)
    with pytest.raises(TypeError, match=r"finetune\(\) takes a start or keywords, got both a start and 'ratio'"):
        opq.finetune(model, images(), plan, ONE, ratio=4)
    with pytest.raises(TypeError, match=r"finetune\(\) got an unexpected keyword argument 'fodler'; did you mean 'folder'"):
        opq.finetune(model, images(), plan, ONE, fodler="run")
    with pytest.raises(opq.TargetError, match="lossless"):
        opq.finetune(model, images(), opq.CompressionConfig(target=opq.Lossless()), ONE)
    prepared = opq.prepare(model, plan, reserve=0.0)
    with pytest.raises(opq.PlanError, match="leave ratio out"):
        opq.finetune(prepared, images(), training=ONE, ratio=4)
    for start in (plan, to_ratio(12.0), opq.compress(make("convolutions")[0], ratio=4.0).data):
        with pytest.raises(opq.PlanError, match="leave start and calibration out"):
            opq.finetune(prepared, images(), start, ONE)
    for start in (plan, to_ratio(12.0), None):
        with pytest.raises(opq.PlanError, match=r"give what opq\.prepare returned"):
            opq.finetune(model, images(), start, ONE)
