"""The examples of training with other people's loops, each run for an epoch."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.filterwarnings("ignore")  # what Lightning and Transformers warn of is theirs
@pytest.mark.parametrize(("name", "needs"), [("plain", "sklearn"), ("lightning", "lightning"), ("trainer", "transformers")])
def test_examples_run(name, needs, monkeypatch, capsys):
    """A plain loop, Lightning, and the Hugging Face Trainer train a prepared network without change, into the asked bytes."""
    pytest.importorskip("sklearn")
    pytest.importorskip(needs)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = runpy.run_path(str(EXAMPLES / f"finetune_{name}.py"))
    monkeypatch.setattr(sys.modules["digits"], "EPOCHS", 2)
    example["main"](1)
    lines = capsys.readouterr().out.splitlines()
    dense = float(next(line for line in lines if line.startswith("dense: top-1")).split()[-1])
    result = next(line for line in lines if line.startswith("finetuned: top-1"))
    assert float(result.split()[2].rstrip(";")) > dense - 10.0
    assert float(result.partition("file ratio ")[2].rstrip(",").split(",")[0]) >= 30.0
