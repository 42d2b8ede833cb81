"""What the command line says of itself: help, near misses, completion, and the keys of its JSON."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest
from click.shell_completion import BashComplete
from safetensors.numpy import save_file

from opq.cli import main
from opq.cli.main import COMMANDS, _opq

SCREEN = (80, 40)
"""Columns and lines of a terminal."""


@pytest.fixture
def help_of(monkeypatch, capsys):
    """Makes the help of a command on a screen."""
    monkeypatch.setenv("COLUMNS", str(SCREEN[0]))

    def make(name, option="--help"):
        assert main([name, option]) == 0
        return capsys.readouterr().out

    return make


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(name, help_of):
    """Each help has an example, and fits a screen of 80 columns and 40 lines."""
    lines = help_of(name).splitlines()
    assert max(map(len, lines)) <= SCREEN[0]
    assert len(lines) <= SCREEN[1]
    assert any("Example: opq" in line for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name, help_of):
    """Each option is described by --help, or named there and described by --help-all."""
    command = import_module(f"opq.cli.{name}").command
    options = {option.opts[-1] for option in command.params if isinstance(option, click.Option)}
    short = help_of(name)
    assert options == set(re.findall(r"--[a-z][a-z-]*", short.partition("\nOptions:")[2])) & options
    if "--help-all" in options:
        described = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_of(name, "--help-all"), re.MULTILINE)
        assert options <= set(described)


def test_opq_alone_says_what_to_do_first(capsys):
    """Without arguments: three commands to begin with, and all commands, on one screen. They are real commands."""
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= SCREEN[1]
    first = [line.split()[1] for line in lines if line.startswith("    opq ")]
    assert first == ["compress", "inspect", "expand"]
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("comprss model.safetensors", "Did you mean 'compress'?"),
        ("inspekt model.opq", "Did you mean 'inspect'?"),
        ("zip model.opq", "The commands are compress, calibrate,"),
        ("compress model.safetensors --ratoi 8", "'--ratio'"),
        ("expand model.opq --ouput x", "Did you mean '--output'?"),
        ("finetune torchvision:resnet18 --epoch 8", "'--epochs'"),
    ],
)
def test_near_misses_are_suggested(wrong, right, capsys):
    """A misspelt command or option is an error that names the nearest one."""
    assert main(wrong.split()) == 2
    assert right in capsys.readouterr().err


def test_a_shell_completes_commands_and_options():
    """Completion offers commands, options that --help only names, and choices."""

    def offered(*words):
        *before, last = words
        return {item.value for item in BashComplete(_opq, {}, "opq", "_OPQ_COMPLETE").get_completions(before, last)}

    assert offered("c") == {"compress", "calibrate"}
    assert {"--ratio", "--rounding"} <= offered("compress", "--r")
    assert offered("compress", "--rounding", "tr") == {"trellis"}


def json_keys():
    """{command: its keys} of docs/options.md."""
    path = Path(__file__).parents[2] / "docs" / "options.py"
    specification = importlib.util.spec_from_file_location("options_page", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return {command: keys.split() for command, keys in module.JSON_KEYS.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        "plan net.safetensors --ratio 8",
        "plan net.safetensors --curve",
        "compress net.safetensors --ratio 8 -o new.opq",
        "inspect net.opq",
        "inspect net.opq --compare",
        "verify net.opq",
        "expand net.opq -o new.safetensors",
        "diff net.safetensors net.opq",
    ],
)
def test_json_has_the_documented_keys(arguments, tmp_path, monkeypatch, capsys):
    """With --json a command prints one JSON value and nothing else. Its keys are those of docs/options.md."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    save_file({"w": rng.normal(size=(60, 50)).astype("f4"), "b": np.zeros(50, "f4")}, "net.safetensors")
    assert main(["compress", "net.safetensors", "--ratio", "6", "-o", "net.opq"]) == 0
    capsys.readouterr()
    assert main([*arguments.split(), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    command, *rest = arguments.split()
    option = next((word for word in rest if word in ("--curve", "--compare")), "")
    documented = next(keys for name, keys in json_keys().items() if name.split(" (")[0] == f"{command} {option}".strip())
    for value in found if isinstance(found, list) else [found]:
        assert set(value) == set(documented)
    assert printed.err == ""


def test_an_invalid_file_is_json_too(tmp_path, capsys):
    """`verify --json` of an invalid file prints its documented keys, says why on stderr too, and ends with 1."""
    path = tmp_path / "net.opq"
    path.write_bytes(b"PK\3\4 something else")
    assert main(["verify", str(path), "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert set(found) == set(json_keys()["verify (of an invalid file)"])
    assert found["valid"] is False
    assert "opq compress makes a .opq file" in found["error"]
    assert found["error"] in printed.err


def test_every_command_has_json():
    """Each command takes --json, and docs/options.md lists its keys."""
    assert {command.split()[0] for command in json_keys()} == set(COMMANDS)
    for name in COMMANDS:
        options = {option for parameter in import_module(f"opq.cli.{name}").command.params for option in parameter.opts}
        assert "--json" in options, name
