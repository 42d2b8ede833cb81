"""Result files that are saved row by row have exactly the rows that their scripts make."""

import json
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def cases_of(result, *columns):
    """The values of these columns, sorted, a tuple per row."""
    rows = json.loads((BENCHMARKS / "results" / f"{result}.json").read_text())["rows"]
    return sorted(tuple(row[column] for column in columns) for row in rows)


def test_every_finetuned_row_has_its_case(script):
    """finetune.json: each network's modes, file ratios and epochs, once."""
    resnets = [(name, *case) for name, cases in script("finetune").CASES.items() for case in cases]
    mobilenet = [("mobilenet", "joint", *case) for case in script("finetune_mobilenet").CASES]
    assert cases_of("finetune", "network", "mode", "asked_ratio", "epochs") == sorted(resnets + mobilenet)


def test_every_mnist_row_has_its_case(script):
    """mnist.json: each network's file ratios with their epochs, once."""
    cases = script("mnist").CASES
    made = [(name, case.ratio, case.sparsifying + case.finetuning) for name in cases for case in cases[name]]
    assert cases_of("mnist", "network", "ratio", "epochs") == sorted(made)


def test_every_allocation_row_has_its_case(script):
    """allocation.json: each network, method and setting, once."""
    methods, label = script("allocation_methods"), script("allocation").label
    made = [
        (name, method, label(setting))
        for name in methods.RATIOS
        for method, (_, settings, _) in methods.METHODS.items()
        for setting in settings(name)
    ]
    assert cases_of("allocation", "network", "method", "setting") == sorted(made)


def test_every_row_of_the_tools_has_its_case(script):
    """peers.json: each network and method that has settings for it, once."""
    peers = script("peers")
    made = [(name, title) for name in peers.NETWORKS for title, method in peers.METHODS.items() if method.searches(name)]
    assert cases_of("peers", "network", "way") == sorted(made)
