"""The list of mutants fits the source; `make mutants` shows that tests detect them."""

from __future__ import annotations

import pytest
from run import ROOT, StaleError, check_tests, main, read_list


def test_every_mutant_can_be_made():
    """The text of each is exactly once in its file, the replacement is valid Python, and its tests exist."""
    mutants = read_list()
    assert len(mutants) >= 120
    for mutant in mutants:
        assert mutant.changed_text(ROOT / "src") != (ROOT / "src" / "opq" / mutant.file).read_text()
        check_tests(mutant)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"find": "no such text"}, "has 0 times, not once"),
        ({"find": "= "}, "not once"),
        ({"find": "PARTS = 16", "replace": "PARTS = 16"}, "changes nothing"),
        ({"find": "PARTS = 16", "replace": "PARTS = ("}, "never closed"),
        ({"file": "nowhere.py"}, "there is no nowhere.py"),
    ],
)
def test_a_list_that_no_longer_fits_is_an_error(tmp_path, change, problem):
    """Missing text, a change that changes nothing or is no Python, and a missing file are errors that name the mutant."""
    row = {"name": "a change", "file": "quantization/error_feedback.py", "find": "PARTS = 16", "replace": "PARTS = 8", **change}
    path = tmp_path / "mutants.toml"
    lines = [f"{key} = '{value}'" for key, value in {**row, "why": "reasons"}.items()]
    path.write_text("\n".join(["[[mutant]]", *lines, "tests = ['quantization/test_error_feedback.py']"]))
    (mutant,) = read_list(path)
    with pytest.raises(StaleError, match=f"a change: .*{problem}"):
        mutant.changed_text(ROOT / "src")


def test_a_name_that_no_mutant_has_is_an_error(capsys):
    """Without a mutant to test, the run fails."""
    assert main(["no such mutant"]) == 1
    assert "no such mutant" in capsys.readouterr().out
