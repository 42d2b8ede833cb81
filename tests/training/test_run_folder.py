"""The folder of a run: what it keeps, how a run goes on from it, and which runs it is not for."""

import json
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from interruptions import InterruptionError, interrupting_after
from small_networks import flat, images, make
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import opq
import opq.torch
from opq import TrainingConfig
from opq.training.run_folder import CHECKPOINT, RunFolder


@pytest.mark.parametrize("average", [None, 0.9], ids=["plain", "averaged"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, stop, average):
    """Interrupted after any epoch and started again, a run gives the file of one that was never interrupted."""
    recipe = opq.TrainingConfig(average=average, labels=0.5)

    def run(folder, watch=None):
        model, _ = make("convolutions")
        return opq.finetune(model, images(), epochs=3, ratio=6.0, teacher="dense", recipe=recipe, folder=folder, watch=watch)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupting_after(stop))
    assert len(RunFolder(tmp_path / "parts").load()["history"]) == stop
    torch.manual_seed(1234)  # whatever happened in between
    resumed = run(tmp_path / "parts")
    assert resumed.compressed.data == whole.compressed.data
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    again = run(tmp_path / "parts")  # a finished run is only finished again
    assert again.compressed.data == whole.compressed.data


def test_a_batch_samplers_own_generator_is_begun_anew(tmp_path):
    """However deep in a loader what draws at random lies, a resumed run draws what it would have drawn."""

    def run(folder, watch=None):
        data = images().dataset
        order = RandomSampler(data, generator=torch.Generator().manual_seed(5))
        loader = DataLoader(data, batch_sampler=BatchSampler(order, 16, drop_last=False))
        return opq.finetune(make("convolutions")[0], loader, epochs=3, ratio=6.0, folder=folder, watch=watch)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", interrupting_after(1))
    assert run(tmp_path / "parts").compressed.data == whole.compressed.data


def test_what_watch_returns_is_kept_as_json_has_it(tmp_path):
    """NumPy's and torch's numbers become Python's, so that the run can be resumed; what JSON has no form for is refused."""
    found = {"top1": np.float64(1.5), "count": torch.tensor(3), "name": "a"}
    finetuned = opq.finetune(make("dense")[0], flat(), epochs=1, ratio=6.0, folder=tmp_path, watch=lambda model: found)
    assert {key: finetuned.history[0][key] for key in found} == {"top1": 1.5, "count": 3, "name": "a"}
    assert RunFolder(tmp_path).load()["history"] == list(finetuned.history)
    with pytest.raises(opq.TrainingError, match="watch must return"):
        opq.finetune(make("dense")[0], flat(), epochs=1, ratio=6.0, watch=lambda model: {"weights": object()})


def test_a_folder_is_of_one_start(tmp_path):
    """A run's folder refuses another plan or file; the same one, however it is given, goes on."""
    model, _ = make("dense")
    data = opq.compress(model, ratio=4.0).data
    (tmp_path / "a.opq").write_bytes(data)
    with opq.OpqFile(data) as file:
        for start in (data, tmp_path / "a.opq", file):
            opq.finetune(make("dense")[0], flat(), epochs=1, start=start, folder=tmp_path / "file")
        assert file.entries[0].name in file
        file[file.entries[0].name]  # still open
    with pytest.raises(opq.SourceError, match="another start"):
        opq.finetune(make("dense")[0], flat(), epochs=1, start=opq.compress(model, ratio=5.0).data, folder=tmp_path / "file")
    for rounding, refused in (("plain", False), ("plain", False), ("shaped", True)):
        plan = opq.plan(model, ratio=4.0, rounding=rounding)
        with pytest.raises(opq.SourceError, match="another start") if refused else nullcontext():
            opq.finetune(make("dense")[0], flat(), epochs=1, start=plan, folder=tmp_path / "plan")


def test_a_run_folder_says_what_was_done(tmp_path):
    """Arguments, plan, history and file lie in the folder; another run is not let in."""
    model, _ = make("convolutions")
    finetuned = opq.finetune(model, images(), epochs=2, ratio=6.0, folder=tmp_path, watch=lambda model: {"epochs_seen": 1})
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments["epochs"] == 2
    assert arguments["recipe"]["learning_rate"] == opq.TrainingConfig().learning_rate
    assert opq.Plan.from_json((tmp_path / "plan.json").read_text()) == finetuned.compressed.plan
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == list(finetuned.history)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]) == {"epoch", "loss", "seconds", "epochs_seen"}
    assert (tmp_path / "model.opq").read_bytes() == finetuned.compressed.data
    with pytest.raises(opq.SourceError, match="a run with another seed; choose another folder"):
        opq.finetune(make("convolutions")[0], images(), epochs=2, ratio=6.0, folder=tmp_path, seed=1)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(opq.SourceError, match="not a checkpoint"):
        opq.finetune(make("convolutions")[0], images(), epochs=2, ratio=6.0, folder=tmp_path)


def test_a_folder_is_of_one_network(tmp_path):
    """Another network of the same shapes is refused, whether a plan is made or given; the same one, loaded anew, goes on."""
    plan = opq.plan(make("dense")[0], ratio=4.0)
    for name, start in (("made", {"ratio": 4.0}), ("given", {"start": plan})):
        first, again = (opq.finetune(make("dense")[0], flat(), epochs=1, folder=tmp_path / name, **start) for _ in range(2))
        assert again.compressed.data == first.compressed.data
        with pytest.raises(opq.SourceError, match="another network; choose another folder"):
            opq.finetune(make("dense", seed=1)[0], flat(), epochs=1, folder=tmp_path / name, **start)


def test_a_file_brings_the_values_that_a_run_begins_with(tmp_path):
    """With a file to start at, the network may hold anything, but where it is the teacher as well."""
    data = opq.compress(make("dense")[0], ratio=4.0).data
    for seed in (0, 1):
        opq.finetune(make("dense", seed)[0], flat(), epochs=1, start=data, folder=tmp_path / "alone")
    opq.finetune(make("dense")[0], flat(), epochs=1, start=data, teacher="dense", folder=tmp_path / "taught")
    with pytest.raises(opq.SourceError, match="another teacher"):
        opq.finetune(make("dense", 1)[0], flat(), epochs=1, start=data, teacher="dense", folder=tmp_path / "taught")


def test_a_prepared_network_goes_on_where_a_run_left_it(tmp_path):
    """Its values have moved when the run was interrupted; the folder knows it by its steps, and refuses others."""

    def prepared(ratio):
        return opq.prepare(make("dense")[0], ratio=ratio)

    whole = opq.finetune(prepared(4.0), flat(), epochs=2, folder=tmp_path / "whole")
    model = prepared(4.0)
    with pytest.raises(InterruptionError):
        opq.finetune(model, flat(), epochs=2, folder=tmp_path / "parts", watch=interrupting_after(1))
    assert opq.finetune(model, flat(), epochs=2, folder=tmp_path / "parts").compressed.data == whole.compressed.data
    with pytest.raises(opq.SourceError, match="another network"):
        opq.finetune(prepared(3.0), flat(), epochs=2, folder=tmp_path / "parts")


def teachers():
    """Networks, functions and none, which teach differently."""
    first, second = make("dense", seed=3)[0].eval(), make("dense", seed=4)[0].eval()

    def function(inputs):
        return first(inputs) + 1.0

    return {"none": None, "dense": "dense", "first": first, "second": second, "function": function}


def test_a_folder_is_of_one_teacher_calibration_optimizer_and_loader(tmp_path):
    """Whatever else a run may learn from differently makes it another run."""
    batches = flat()
    adams = [TrainingConfig(optimizer=partial(torch.optim.AdamW, betas=betas)) for betas in ((0.9, 0.99), (0.2, 0.5))]
    variants = {
        "teacher": [{"teacher": teacher} for teacher in teachers().values()],
        "calibrated": [{}, {"calibration": opq.calibrate(make("dense")[0], batches[0][0])}],
        "recipe": [{"recipe": recipe} for recipe in adams],
    }
    for key, options in variants.items():
        for place, option in enumerate(options):
            folder = tmp_path / f"{key}_{place}"
            opq.finetune(make("dense")[0], batches, epochs=1, ratio=3.0, folder=folder, mask_update_epochs=0, **option)
            other = options[place - 1]
            with pytest.raises(opq.SourceError, match=f"another {key}"):
                opq.finetune(make("dense")[0], batches, epochs=1, ratio=3.0, folder=folder, mask_update_epochs=0, **other)
    opq.finetune(make("dense")[0], batches, epochs=1, ratio=3.0, folder=tmp_path)
    with pytest.raises(opq.SourceError, match="another batches"):
        opq.finetune(make("dense")[0], batches[:2], epochs=1, ratio=3.0, folder=tmp_path)


def test_an_interrupted_network_goes_on_in_the_same_process(tmp_path):
    """Interrupted, a dense network is what it was, so that the same call takes the run up again and ends with its bytes."""
    model, _ = make("convolutions")
    whole = opq.finetune(make("convolutions")[0], images(), epochs=3, ratio=6.0, folder=tmp_path / "whole")
    with pytest.raises(InterruptionError):
        opq.finetune(model, images(), epochs=3, ratio=6.0, folder=tmp_path / "parts", watch=interrupting_after(1))
    resumed = opq.finetune(model, images(), epochs=3, ratio=6.0, folder=tmp_path / "parts")
    assert resumed.compressed.data == whole.compressed.data
