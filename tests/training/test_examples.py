"""The examples of training loops, each run for one epoch."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of Lightning and Transformers
@pytest.mark.parametrize(("name", "needs"), [("plain", "sklearn"), ("lightning", "lightning"), ("trainer", "transformers")])
def test_examples_run(name, needs, monkeypatch, capsys):
    """A plain loop, Lightning, and the Hugging Face Trainer train a prepared network, whose file meets the target."""
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
    assert float(re.search(r"([0-9.]+)x smaller", result).group(1)) >= 30.0
