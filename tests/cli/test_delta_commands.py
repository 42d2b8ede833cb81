"""opq compress --base, expand --base, verify and inspect of deltas; and opq.load with a base."""

from __future__ import annotations

import json

import numpy as np
import pytest
from failures import failure
from safetensors.numpy import load_file, save_file

import opq
import opq.numpy
from opq.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three checkpoints a, b and c of one network, each made from the one before; the current folder."""
    monkeypatch.chdir(tmp_path)
    a = {"w": np.random.default_rng(0).normal(size=(150, 120)).astype(np.float32), "n": np.array(3), "x": np.ones(5)}
    b = {**a, "w": a["w"] * np.float32(1.001), "new": np.zeros((2, 2), dtype=np.float16)}
    c = {"w": np.where(np.arange(120) % 10 == 0, b["w"] * np.float32(1.01), b["w"]), "new": b["new"]}
    for name, tensors in zip("abc", (a, b, c), strict=True):
        save_file(tensors, f"{name}.safetensors", metadata={"step": name})
    return tmp_path


def same(one: str, two: str) -> bool:
    """Whether two checkpoints hold the same tensors bit for bit."""
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(
        (first[name].dtype, first[name].tobytes()) == (second[name].dtype, second[name].tobytes()) for name in first
    )


def test_a_chain_is_expanded(folder, capsys):
    """Two deltas, the second on what the first gives, restore the last checkpoint; in Python too."""
    assert main(["compress", "b.safetensors", "--base", "a.safetensors", "-o", "1.opd"]) == 0
    assert main(["compress", "c.safetensors", "--base", "a.safetensors", "--base", "1.opd", "-o", "2.opd", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])["counts"]
    assert counts == {"base": 1, "difference": 1}
    assert main(["expand", "2.opd", "--base", "a.safetensors", "--base", "1.opd", "-o", "out.safetensors"]) == 0
    assert same("out.safetensors", "c.safetensors")
    found = opq.numpy.load_file("2.opd", base=["a.safetensors", opq.compress("b.safetensors", base="a.safetensors").data])
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in load_file("c.safetensors").items()
    }


def test_a_base_that_was_saved_again_works(folder):
    """The base is named by its tensors: another file, or a dict, of the same tensors is the same base."""
    opq.save("b.safetensors", "1.opd", base="a.safetensors", progress=False)
    np.savez("again.npz", **load_file("a.safetensors"))
    for base in ("again.npz", load_file("a.safetensors")):
        assert opq.numpy.load_file("1.opd", base=base)["w"].tobytes() == load_file("b.safetensors")["w"].tobytes()


def test_the_wrong_base_is_refused(folder, capsys):
    """Another base, none, a delta as the first base, or a base of a complete file: one line each, and no file is written."""
    main(["compress", "b.safetensors", "--base", "a.safetensors", "-o", "1.opd"])
    assert "SHA-256" in failure(capsys, "expand", "1.opd", "--base", "c.safetensors", "-o", "out.safetensors")
    assert "--base" in failure(capsys, "expand", "1.opd", "-o", "out.safetensors")
    assert "first" in failure(capsys, "expand", "1.opd", "--base", "1.opd", "-o", "out.safetensors")
    assert "already" in failure(capsys, "compress", "1.opd", "--base", "a.safetensors", "-o", "2.opd")
    main(["compress", "a.safetensors", "--ratio", "4", "-o", "a.opq"])
    assert "needs no base" in failure(capsys, "expand", "a.opq", "--base", "a.safetensors", "-o", "out.safetensors")
    assert not (folder / "out.safetensors").exists()
    assert "being read" in failure(capsys, "expand", "1.opd", "--base", "a.safetensors", "-o", "a.safetensors", "--force")
    assert "being read" in failure(capsys, "compress", "b.safetensors", "--base", "a.opq", "-o", "a.opq", "--force")


def test_options_that_change_weights_are_refused(folder, capsys):
    """--base keeps every bit, so targets, plans and forms are wrong usage."""
    for more in (["--ratio", "4"], ["--plan", "p.json"], ["--as", "transformers"]):
        assert main(["compress", "b.safetensors", "--base", "a.safetensors", "-o", "1.opd", *more]) == 2
    assert "keeps every bit" in capsys.readouterr().err
    with pytest.raises(TypeError, match="keeps every bit"):
        opq.compress("b.safetensors", base="a.safetensors", ratio=4)


def test_inspect_and_verify_say_what_a_delta_is(folder, capsys):
    """Inspect lists what is not as in the base, and names the base; verify decodes only with the base, and finds damage."""
    main(["compress", "b.safetensors", "--base", "a.safetensors", "-o", "1.opd"])
    capsys.readouterr()
    assert main(["inspect", "1.opd"]) == 0
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert opq.inspect_delta("1.opd").base in shown
    assert "as in the base" not in shown.splitlines()[2]
    assert main(["inspect", "1.opd", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(tensor["bytes"] for tensor in found["tensors"]) + found["header_bytes"] == found["file_bytes"]
    assert main(["verify", "1.opd"]) == 0
    assert "--base" in capsys.readouterr().out
    assert main(["verify", "1.opd", "--base", "a.safetensors"]) == 0
    assert "a delta, valid" in capsys.readouterr().out
    assert "expand it with its base" in failure(capsys, "report", "1.opd", "-o", "page.html")
    data = bytearray((folder / "1.opd").read_bytes())
    data[-1] ^= 1
    (folder / "1.opd").write_bytes(data)
    assert "damaged" in failure(capsys, "verify", "1.opd")


def test_a_file_is_made_again(folder, capsys):
    """A delta between two .opq files of one plan is small, and gives the second file again, byte for byte."""
    plan = opq.plan("a.safetensors", ratio=6)
    opq.compress("a.safetensors", plan).save("a.opq")
    opq.compress({**load_file("a.safetensors"), "w": load_file("c.safetensors")["w"]}, plan).save("c.opq")
    assert main(["compress", "c.opq", "--base", "a.opq", "-o", "c.opd"]) == 0
    assert (folder / "c.opd").stat().st_size < (folder / "c.opq").stat().st_size / 3
    assert main(["expand", "c.opd", "--base", "a.opq", "-o", "again.opq"]) == 0
    assert (folder / "again.opq").read_bytes() == (folder / "c.opq").read_bytes()
    assert main(["expand", "c.opd", "--base", "a.opq", "-o", "dense.safetensors"]) == 0
    opq.expand("c.opq", "expected.safetensors")
    assert same("dense.safetensors", "expected.safetensors")
    main(["compress", "c.opq", "--base", "a.safetensors", "-o", "other.opd"])
    assert "only a delta of a .opq file" in failure(capsys, "expand", "other.opd", "--base", "a.safetensors", "-o", "no.opq")


def test_a_lossless_file_is_made_again_with_its_tensors(folder):
    """A delta between two lossless .opq files gives a valid file with the tensors of the second, in adaptive planes."""
    for name in "ac":
        opq.save(f"{name}.safetensors", f"{name}.opq", lossless=True, speed="fast", progress=False)
    assert main(["compress", "c.opq", "--base", "a.opq", "-o", "c.opd"]) == 0
    assert main(["expand", "c.opd", "--base", "a.opq", "-o", "again.opq"]) == 0
    assert (folder / "again.opq").read_bytes() == opq.compress("c.safetensors", lossless=True, speed="small").data
    opq.expand("again.opq", "out.safetensors")
    assert same("out.safetensors", "c.safetensors")


def test_load_takes_a_base(folder):
    """opq.load gives the tensors of a delta, or fills a network with them; coded weights cannot stay in memory."""
    torch = pytest.importorskip("torch")
    old = torch.nn.Linear(130, 140)
    new = torch.nn.Linear(130, 140)
    new.load_state_dict({name: value * 1.001 for name, value in old.state_dict().items()})
    opq.save(new, "n.opd", base=old, progress=False)
    found = opq.load("n.opd", base=old)
    assert all(torch.equal(found[name], value) for name, value in new.state_dict().items())
    filled = opq.load(torch.nn.Linear(130, 140), "n.opd", base=old)
    assert torch.equal(filled.weight, new.weight)
    with pytest.raises(TypeError, match="base"):
        opq.load(torch.nn.Linear(130, 140), "n.opd", base=old, resident="codes")
