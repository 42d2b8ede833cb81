"""The folder of a run: what it holds, how a run resumes from it, and which runs it refuses."""

import json
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from interruptions import InterruptionError, interrupt_after
from small_networks import flat, images, make, to_ratio
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import opq
import opq.torch
from opq import TrainingConfig
from opq.training.run_folder import CHECKPOINT, RunFolder


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "ema_decay"), [(1, None), (2, 0.9)], ids=["plain", "averaged"])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, stop, ema_decay):
    """A run that is interrupted after any epoch and started again gives the file of one that was never interrupted."""
    training = TrainingConfig(epochs=3, ema_decay=ema_decay, label_weight=0.5)

    def run(folder, on_epoch_end=None):
        model, _ = make("convolutions")
        return opq.finetune(model, images(), to_ratio(6.0), training, teacher="dense", folder=folder, on_epoch_end=on_epoch_end)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupt_after(stop))
    assert len(RunFolder(tmp_path / "parts").load()["history"]) == stop
    torch.manual_seed(1234)  # other random numbers were drawn in between
    resumed = run(tmp_path / "parts")
    assert resumed.compressed.data == whole.compressed.data
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    again = run(tmp_path / "parts")  # all epochs of this run are in its checkpoint
    assert again.compressed.data == whole.compressed.data


@pytest.mark.slow
def test_the_generator_of_a_batch_sampler_is_seeded(tmp_path):
    """However deep in a loader a generator is, a resumed run draws the numbers that it would have drawn."""

    def run(folder, on_epoch_end=None):
        data = images().dataset
        order = RandomSampler(data, generator=torch.Generator().manual_seed(5))
        loader = DataLoader(data, batch_sampler=BatchSampler(order, 16, drop_last=False))
        training = TrainingConfig(epochs=3)
        return opq.finetune(make("convolutions")[0], loader, to_ratio(6.0), training, folder=folder, on_epoch_end=on_epoch_end)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupt_after(1))
    assert run(tmp_path / "parts").compressed.data == whole.compressed.data


def run_dense(training=None, start=None, *, model=None, loader=None, **options):
    """Finetune the network of dense layers, by default for one epoch."""
    return opq.finetune(
        make("dense")[0] if model is None else model,
        flat() if loader is None else loader,
        to_ratio(6.0) if start is None else start,
        training or TrainingConfig(epochs=1),
        **options,
    )


def test_what_on_epoch_end_returns_is_kept_as_json(tmp_path):
    """Numbers of NumPy and torch become Python's, so that the run can resume; what JSON cannot hold is refused."""
    found = {"top1": np.float64(1.5), "count": torch.tensor(3), "name": "a"}
    finetuned = run_dense(folder=tmp_path, on_epoch_end=lambda model: found)
    assert {key: finetuned.history[0][key] for key in found} == {"top1": 1.5, "count": 3, "name": "a"}
    assert RunFolder(tmp_path).load()["history"] == list(finetuned.history)
    with pytest.raises(opq.TrainingError, match="on_epoch_end must return"):
        run_dense(on_epoch_end=lambda model: {"weights": object()})


def test_a_folder_belongs_to_one_start(tmp_path):
    """A folder refuses another plan, file or config; the same start resumes, in any form of a file."""
    model, _ = make("dense")
    data = opq.compress(model, ratio=4.0).data
    (tmp_path / "a.opq").write_bytes(data)
    with opq.OpqFile(data) as file:
        for start in (data, tmp_path / "a.opq", file):
            run_dense(start=start, folder=tmp_path / "file")
        assert file.entries[0].name in file
        file[file.entries[0].name]  # still open
    with pytest.raises(opq.SourceError, match=r"different arguments \(.*start"):
        run_dense(start=opq.compress(model, ratio=5.0).data, folder=tmp_path / "file")
    for rounding, refused in (("deadzone", False), ("deadzone", False), ("compensated", True)):
        plan = opq.plan(model, ratio=4.0, rounding=rounding)
        with pytest.raises(opq.SourceError, match=r"different arguments \(.*start") if refused else nullcontext():
            run_dense(start=plan, folder=tmp_path / "plan")
    for ratio, refused in ((4.0, False), (4.0, False), (5.0, True)):
        with pytest.raises(opq.SourceError, match=r"different arguments \(.*start") if refused else nullcontext():
            run_dense(start=to_ratio(ratio), folder=tmp_path / "config")


def test_a_folder_holds_what_was_done(tmp_path):
    """A folder has the arguments, the plan, the history and the file; a run with another training is refused."""
    model, _ = make("convolutions")
    training = TrainingConfig(epochs=2)
    finetuned = opq.finetune(
        model, images(), to_ratio(6.0), training, folder=tmp_path, on_epoch_end=lambda model: {"epochs_seen": 1}
    )
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments["training"] == training.describe()
    assert arguments["training"]["epochs"] == 2
    assert arguments["training"]["learning_rate"] == training.learning_rate
    assert opq.CompressionConfig.from_dict(arguments["start"]) == to_ratio(6.0)
    assert opq.Plan.from_json((tmp_path / "plan.json").read_text()) == finetuned.compressed.plan
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == list(finetuned.history)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]) == {"epoch", "loss", "top1", "seconds", "epochs_seen"}
    assert (tmp_path / "model.opq").read_bytes() == finetuned.compressed.data
    for other in ({"epochs": 2, "seed": 1}, {"epochs": 3}, {"epochs": 2, "reserve": 0.1}):
        name = list(other)[-1]
        with pytest.raises(opq.SourceError, match=rf"different arguments \(training\.{name}\); use a new folder"):
            opq.finetune(make("convolutions")[0], images(), to_ratio(6.0), TrainingConfig(**other), folder=tmp_path)
    with pytest.raises(opq.SourceError, match=r"different arguments \(.*budget"):
        opq.finetune(make("convolutions")[0], images(), to_ratio(6.0), training, budget=4000, folder=tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(opq.SourceError, match="not a checkpoint"):
        opq.finetune(make("convolutions")[0], images(), to_ratio(6.0), training, folder=tmp_path)


def test_a_folder_belongs_to_one_network(tmp_path):
    """Another network of the same shapes is refused, with a config and with a plan; the same one, loaded again, resumes."""
    plan = opq.plan(make("dense")[0], ratio=4.0)
    for name, start in (("config", to_ratio(4.0)), ("plan", plan)):
        first, again = (run_dense(start=start, folder=tmp_path / name) for _ in range(2))
        assert again.compressed.data == first.compressed.data
        with pytest.raises(opq.SourceError, match=r"different arguments \(.*network.*\): .* or use a new folder"):
            run_dense(start=start, model=make("dense", seed=1)[0], folder=tmp_path / name)


def test_a_run_that_failed_before_its_first_checkpoint_binds_nothing(tmp_path):
    """A call that fails at its plan, its loss or in its first epoch leaves the folder to a corrected one, whose bytes are those
    of a new folder; calibrated codes of the failed run are not kept.
    """
    whole = run_dense(folder=tmp_path / "whole").compressed.data
    calibration = opq.calibrate(make("dense")[0], flat()[0][0])
    config = opq.CompressionConfig(target=opq.Ratio(6.0), exclude=("no.such.weight",))
    for error, failing in (
        (opq.SelectionError, {"start": config}),
        (opq.TrainingError, {"loss": "mse"}),
        (InterruptionError, {"start": to_ratio(3.0), "calibration": calibration, "on_epoch_end": interrupt_after(0)}),
    ):
        with pytest.raises(error):
            run_dense(folder=tmp_path / "parts", **failing)
    assert run_dense(folder=tmp_path / "parts").compressed.data == whole


def test_a_repeated_run_needs_the_network_of_its_start(tmp_path):
    """Finetuning changes a network, so that the same call refuses it; built again, it gives the file of the finished run."""
    model, _ = make("dense")
    first = run_dense(model=model, teacher="dense", folder=tmp_path)
    with pytest.raises(opq.SourceError, match=r"\(network, teacher\): the network has other values .* build it again"):
        run_dense(model=model, teacher="dense", folder=tmp_path)
    assert run_dense(teacher="dense", folder=tmp_path).compressed.data == first.compressed.data


def test_a_resumed_and_a_finished_run_say_so(tmp_path, caplog):
    """One message says after which epoch a run resumes, or that it is finished; a new run has neither."""
    caplog.set_level("INFO", "opq")
    training = TrainingConfig(epochs=2)
    for expected in ([], ["resumes after epoch 1 of 2"], ["is finished already; its result is used"]):
        caplog.clear()
        interrupted = not expected
        with pytest.raises(InterruptionError) if interrupted else nullcontext():
            run_dense(training, folder=tmp_path, on_epoch_end=interrupt_after(1) if interrupted else None)
        messages = [message for message in caplog.messages if message.startswith("the run")]
        assert messages == [f"the run in {tmp_path} {what}" for what in expected]


def test_a_folder_belongs_to_the_settings_of_a_loader(tmp_path):
    """Of a loader the folder knows what the caller says about it, and names what differs."""
    run_dense(loader_settings={"mean": (0.5,), "size": 28}, folder=tmp_path)
    run_dense(loader_settings={"mean": (0.5,), "size": 28}, folder=tmp_path)
    with pytest.raises(opq.SourceError, match=r"different arguments \(loader\.mean\)"):
        run_dense(loader_settings={"mean": (0.25,), "size": 28}, folder=tmp_path)


def test_a_run_from_a_file_does_not_depend_on_the_values_of_the_network(tmp_path):
    """If a file is the start, the network may hold anything, unless it is the teacher too."""
    data = opq.compress(make("dense")[0], ratio=4.0).data
    for seed in (0, 1):
        run_dense(start=data, model=make("dense", seed)[0], folder=tmp_path / "alone")
    run_dense(start=data, teacher="dense", folder=tmp_path / "taught")
    with pytest.raises(opq.SourceError, match=r"different arguments \(.*teacher"):
        run_dense(start=data, model=make("dense", 1)[0], teacher="dense", folder=tmp_path / "taught")


def test_a_prepared_network_resumes(tmp_path):
    """Training changes the values of a prepared network, so the folder identifies it by its steps, and refuses other steps."""

    def prepared(ratio):
        return opq.prepare(make("dense")[0], ratio=ratio)

    training = TrainingConfig(epochs=2)
    whole = opq.finetune(prepared(4.0), flat(), training=training, folder=tmp_path / "whole")
    model = prepared(4.0)
    with pytest.raises(InterruptionError):
        opq.finetune(model, flat(), training=training, folder=tmp_path / "parts", on_epoch_end=interrupt_after(1))
    assert opq.finetune(model, flat(), training=training, folder=tmp_path / "parts").compressed.data == whole.compressed.data
    with pytest.raises(opq.SourceError, match=r"different arguments \(.*network"):
        opq.finetune(prepared(3.0), flat(), training=training, folder=tmp_path / "parts")


def teachers():
    """No teacher, networks and a function, which all give different logits."""
    first, second = make("dense", seed=3)[0].eval(), make("dense", seed=4)[0].eval()

    def function(inputs):
        return first(inputs) + 1.0

    return {"none": None, "dense": "dense", "first": first, "second": second, "function": function}


def test_a_folder_belongs_to_one_teacher_calibration_optimizer_and_loader(tmp_path):
    """A run with any other different argument that affects the result is refused."""
    batches, start = flat(), to_ratio(3.0)
    fixed = TrainingConfig(epochs=1, mask_update_epochs=0)
    adams = [TrainingConfig(epochs=1, optimizer=partial(torch.optim.AdamW, betas=betas)) for betas in ((0.9, 0.99), (0.2, 0.5))]
    variants = {
        "teacher": [{"teacher": teacher} for teacher in teachers().values()],
        "calibrated": [{}, {"calibration": opq.calibrate(make("dense")[0], batches[0][0])}],
        "training": [{"training": training} for training in adams],
    }
    for key, options in variants.items():
        for place, option in enumerate(options):
            folder = tmp_path / f"{key}_{place}"
            run_dense(start=start, folder=folder, **{"training": fixed, **option})
            with pytest.raises(opq.SourceError, match=rf"different arguments \(.*{key}"):
                run_dense(start=start, folder=folder, **{"training": fixed, **options[place - 1]})
    run_dense(fixed, start, folder=tmp_path)
    with pytest.raises(opq.SourceError, match=r"different arguments \(.*batches"):
        run_dense(fixed, start, loader=batches[:2], folder=tmp_path)


@pytest.mark.slow
def test_an_interrupted_network_resumes_in_the_same_process(tmp_path):
    """An interrupted dense network is restored, so that the same call resumes the run and ends with its bytes."""
    model, _ = make("convolutions")
    start, training = to_ratio(6.0), TrainingConfig(epochs=3)
    whole = opq.finetune(make("convolutions")[0], images(), start, training, folder=tmp_path / "whole")
    with pytest.raises(InterruptionError):
        opq.finetune(model, images(), start, training, folder=tmp_path / "parts", on_epoch_end=interrupt_after(1))
    resumed = opq.finetune(model, images(), start, training, folder=tmp_path / "parts")
    assert resumed.compressed.data == whole.compressed.data
