"""Every result names its command, commit, processor and date, for the file or for each of its rows."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import opq

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_names_its_origin(path):
    """Commands call an existing script, without paths as arguments; commits are given and have no uncommitted changes."""
    result = json.loads(path.read_text())
    for made in [result] if "command" in result else result["rows"]:
        python, file, *arguments = shlex.split(made["command"])
        assert python == "python"
        assert Path(file).parts == ("benchmarks", Path(file).name)
        assert (BENCHMARKS / Path(file).name).is_file()
        assert not [argument for argument in arguments if argument.startswith(("/", ".", "~"))]
        assert set(made["commit"]) <= set("0123456789abcdef")
        assert made["date"]
    assert result["machine"]["processor"]
    assert result["versions"]["python"]


def test_a_row_replaces_the_one_of_its_case(script, monkeypatch, tmp_path):
    """Rows saved one by one are sorted, one per case, each with its command, and the given commit or the process's."""
    harness = script("harness")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def keep(name, top1, **more):
        harness.keep_row("any", {"name": name, "top1": top1}, ["name"], lambda row: row["name"], seed=0, **more)

    keep("b", 1.0, command=["any.py", "--way", "b c"], commit="abc1234")
    keep("a", 2.0, command=["any.py"])
    keep("b", 3.0, command=["any.py", "--way", "b c"], commit="def5678")
    rows = harness.kept_rows("any")
    assert [(row["name"], row["top1"]) for row in rows] == [("a", 2.0), ("b", 3.0)]
    assert [row["command"] for row in rows] == ["python benchmarks/any.py", "python benchmarks/any.py --way 'b c'"]
    assert [row["commit"] for row in rows] == [harness.COMMIT, "def5678"]


def test_a_run_keeps_the_commit_that_started_it(script, monkeypatch, tmp_path):
    """A run that later code resumes still names the commit that started it."""
    harness = script("harness")
    first = harness.commit_of_run(tmp_path / "run")
    monkeypatch.setattr(harness, "COMMIT", "another")
    assert harness.commit_of_run(tmp_path / "run") == first != "another"


def test_a_training_is_of_one_network_and_config(script, tmp_path):
    """The folder of a training is refused for another network or config; for the same ones nothing is trained again."""
    train = script("trainings").train
    loader = [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))]

    def run(seed, rate, epochs=1):
        torch.manual_seed(seed)
        model = nn.Linear(3, 2)
        return model, train(model, loader, opq.TrainingConfig(epochs=epochs, learning_rate=rate), tmp_path)

    first, history = run(0, 0.1)
    again, same = run(0, 0.1)
    assert same == history
    assert torch.equal(again.weight, first.weight)
    for changed, arguments in (("network", (1, 0.1)), ("training", (0, 0.2)), ("training", (0, 0.1, 2))):
        with pytest.raises(opq.SourceError, match=rf"\b{changed}\b"):
            run(*arguments)
