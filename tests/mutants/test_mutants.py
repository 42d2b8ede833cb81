"""The list of mutants fits the source; that tests notice them is what `make mutants` shows."""

from __future__ import annotations

import pytest
from run import ROOT, StaleError, check_tests, main, read_list


def test_every_mutant_can_be_made():
    """What each looks for stands exactly once in its file, what replaces it is Python, and its tests are there."""
    mutants = read_list()
    assert len(mutants) >= 45
    for mutant in mutants:
        assert mutant.broken(ROOT / "src") != (ROOT / "src" / "opq" / mutant.file).read_text()
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
def test_a_list_that_no_longer_fits_is_told(tmp_path, change, problem):
    """Text that has moved, a break that breaks nothing or is no Python, and a file that is gone are errors by name."""
    row = {"name": "a break", "file": "quantization/shaping.py", "find": "PARTS = 16", "replace": "PARTS = 8", **change}
    path = tmp_path / "mutants.toml"
    lines = [f"{key} = '{value}'" for key, value in {**row, "why": "reasons"}.items()]
    path.write_text("\n".join(["[[mutant]]", *lines, "tests = ['quantization/test_shaping.py']"]))
    (mutant,) = read_list(path)
    with pytest.raises(StaleError, match=f"a break: .*{problem}"):
        mutant.broken(ROOT / "src")


def test_a_name_that_no_mutant_has_is_an_error(capsys):
    """Nothing was tried out, so nothing was shown."""
    assert main(["no such mutant"]) == 1
    assert "no such mutant" in capsys.readouterr().out
