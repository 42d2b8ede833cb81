"""What commands write, and what they leave: outputs that are inputs, reserved names, other formats, signals and pipes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from failures import failure

import opq
from opq.atomic_file import write_file
from opq.cli import main, plan


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small .opq file and its checkpoint, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    tensors = {"w": np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)}
    opq.save(tensors, "n.opq", ratio=4, progress=False)
    opq.expand("n.opq", "n.safetensors")
    return tmp_path


def test_expand_refuses_a_name_that_its_format_reserves(folder, capsys):
    """A tensor named __metadata__ is refused, and no file is written: safetensors could not read it."""
    opq.save({"__metadata__": np.zeros(3, dtype=np.float32)}, "m.opq", lossless=True, progress=False)
    assert "__metadata__" in failure(capsys, "expand", "m.opq", "-o", "m.safetensors")
    assert not (folder / "m.safetensors").exists()


def test_expand_refuses_the_suffix_of_another_format(folder, capsys):
    """`-o x.pt` is refused: it would be a .safetensors file that torch.load does not read."""
    for suffix in (".pt", ".bin", ".H5", ".keras", ".gguf", ".onnx"):
        assert suffix.lower() in failure(capsys, "expand", "n.opq", "-o", f"x{suffix}")
        assert not (folder / f"x{suffix}").exists()


def test_an_output_that_is_an_input_is_refused(folder, capsys):
    """No command replaces a file that an option reads, even with --force."""
    (folder / "c.json").write_text(opq.CompressionConfig(target=opq.Ratio(4)).to_json())
    for command in ("compress", "plan"):
        given = (command, "n.safetensors", "--config", "c.json", "-o", "c.json", "--force")
        assert "being read" in failure(capsys, *given)
    assert main(["plan", "n.safetensors", "--ratio", "4", "-o", "p.json"]) == 0
    capsys.readouterr()
    assert "being read" in failure(capsys, "compress", "n.safetensors", "--plan", "p.json", "-o", "p.json", "--force")


def test_a_plot_replaces_the_old_one_as_a_whole(folder, monkeypatch):
    """A picture is drawn in memory and written as every other file, so that a full disk leaves the old one."""
    pytest.importorskip("matplotlib")
    written = []
    monkeypatch.setattr(plan, "write_file", lambda path, data, overwrite: written.append((path, data[:4])))
    assert main(["plan", "n.safetensors", "--curve", "--plot", "p.png"]) == 0
    assert written == [("p.png", b"\x89PNG")]


def test_an_interrupted_command_has_the_status_of_shells(folder, capsys, monkeypatch):
    """After Ctrl-C: one line, and exit status 130."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(opq, "verify", interrupt)
    assert main(["verify", "n.opq"]) == 130
    assert capsys.readouterr().err.strip() == "opq: error: interrupted"


def test_loops_of_links_end_in_one_line(folder, capsys):
    """A symbolic link to itself as source or output is an error in one line."""
    (folder / "loop").symlink_to("loop")
    failure(capsys, "inspect", "loop")
    failure(capsys, "expand", "n.opq", "-o", "loop", "--force")
    with pytest.raises(opq.OutputError):
        write_file("loop", b"", overwrite=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_are_refused(folder, capsys):
    """A FIFO as source or output is an error at once: opening it would wait."""
    os.mkfifo("pipe")
    failure(capsys, "inspect", "pipe")
    failure(capsys, "expand", "n.opq", "-o", "pipe", "--force")


def test_a_closed_stdout_is_an_error_in_one_line(folder, capsys, monkeypatch):
    """Without a stdout nothing can be printed: one line on stderr, exit status 1."""
    monkeypatch.setattr("sys.stdout", None)
    assert main(["verify", "n.opq"]) == 1
    assert capsys.readouterr().err == "opq: error: stdout is closed\n"
