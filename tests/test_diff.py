"""`opq diff`: what changed between two files or checkpoints of one network."""

import json

import numpy as np
import pytest
import safetensors.numpy

import opq
from opq.cli.main import main


def by_name(found):
    return {tensor.name: tensor for tensor in found.tensors}


def test_a_checkpoint_does_not_differ_from_itself(network):
    """All tensors are the same; the table is one line."""
    found = opq.diff(network, network)
    assert found.counts == {"same": len(network)}
    assert str(found) == found.summary()
    assert sum(tensor.stored_bytes[0] for tensor in found.tensors) == sum(array.nbytes for array in network.values())


def test_each_change_is_found(network):
    """Tensors that changed, are gone, are new, or have another shape or dtype are told apart, in natural order."""
    names = sorted(network)
    weight = next(name for name in names if network[name].ndim == 2)
    bias = next(name for name in names if network[name].ndim == 1 and network[name].dtype == np.float32)
    after = dict(network) | {weight: network[weight] * np.float32(1.5), "layer.10": np.ones(3), "layer.9": np.ones(3)}
    after[bias] = network[bias].astype(np.float64)
    gone = next(name for name in names if name not in (weight, bias))
    del after[gone]
    other = next(name for name in names if name not in (weight, bias, gone))
    after[other] = np.zeros((7, 7), np.float32)
    found = opq.diff(network, after)
    tensors = by_name(found)
    assert {name: tensors[name].change for name in (weight, bias, gone, other, "layer.9")} == {
        weight: "changed", bias: "changed", gone: "removed", other: "reshaped", "layer.9": "added",
    }  # fmt: skip
    assert tensors[weight].relative_error == pytest.approx(0.5)
    assert tensors[bias].relative_error == 0.0
    assert tensors[bias].dtypes == ("float32", "float64")
    assert [name for name in tensors if name.startswith("layer.")] == ["layer.9", "layer.10"]
    assert found.counts == {"removed": 1, "added": 2, "reshaped": 1, "changed": 2, "same": len(network) - 4}


def test_files_have_codes_and_steps(network, tmp_path):
    """Two .opq files: the fraction of codes that differ, the steps, and the bytes of both; a checkpoint against its file."""
    one, two = opq.compress(network, ratio=6), opq.compress(network, ratio=8)
    one.save(tmp_path / "one.opq")
    two.save(tmp_path / "two.opq")
    found = opq.diff(tmp_path / "one.opq", tmp_path / "two.opq")
    assert found.file_bytes == (one.file_bytes, two.file_bytes)
    assert found.names == ("one.opq", "two.opq")
    with opq.OpqFile(tmp_path / "one.opq") as first, opq.OpqFile(tmp_path / "two.opq") as second:
        for name in (entry.name for entry in first.entries if entry.is_weight):
            tensor = by_name(found)[name]
            assert tensor.steps == (first[name].codebook.step, second[name].codebook.step)
            assert tensor.codes_changed == np.mean(first[name].codes != second[name].codes)
            assert tensor.stored_bytes[1] == two.layout.weight_bytes()[name]
    inspected = {tensor.name: tensor.bytes for tensor in opq.inspect(tmp_path / "two.opq").tensors}
    assert {tensor.name: tensor.stored_bytes[1] for tensor in found.tensors} == inspected
    dense = by_name(opq.diff(network, tmp_path / "one.opq"))
    back = opq.numpy.load_file(tmp_path / "one.opq")
    for name, array in network.items():
        if dense[name].change == "changed":
            error = np.linalg.norm(back[name].astype(np.float64) - array) / np.linalg.norm(array.astype(np.float64))
            assert dense[name].relative_error == pytest.approx(error)
            assert dense[name].codes_changed is None


def test_zeros_and_odd_dtypes():
    """Booleans and integers have relative errors; what was zero and complex numbers have none; empty tensors are the same."""
    before = {"zero": np.zeros(3), "flag": np.array([True, False]), "wave": np.ones(2, np.complex64), "none": np.zeros((0, 4))}
    after = {"zero": np.ones(3), "flag": np.array([True, True]), "wave": np.zeros(2, np.complex64), "none": np.zeros((0, 4))}
    tensors = by_name(opq.diff(before, after))
    assert (tensors["zero"].change, tensors["zero"].relative_error) == ("changed", None)
    assert tensors["flag"].relative_error == 1.0
    assert tensors["wave"].change == "changed"
    assert tensors["wave"].relative_error is None
    assert tensors["none"].change == "same"


def test_the_command(network, tmp_path, capsys):
    """`opq diff` prints the table within 80 characters, or JSON; mistakes end in one line."""
    safetensors.numpy.save_file(network, tmp_path / "dense.safetensors")
    opq.compress(network, ratio=6).save(tmp_path / "one.opq")
    arguments = ["diff", str(tmp_path / "dense.safetensors"), str(tmp_path / "one.opq")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out == f"{opq.diff(*arguments[1:])}\n"
    assert max(map(len, out.splitlines())) <= 80
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == opq.diff(*arguments[1:]).counts
    assert main(["diff", str(tmp_path / "none"), arguments[2]]) == 1
    assert capsys.readouterr().err.startswith("opq: error: ")


def test_a_report_says_what_changed(network, tmp_path):
    """`since` adds the difference to a report."""
    pytest.importorskip("matplotlib")
    opq.compress(network, ratio=6).save(tmp_path / "one.opq")
    opq.compress(network, ratio=8).save(tmp_path / "two.opq")
    page = opq.report(tmp_path / "two.opq", since=tmp_path / "one.opq").html
    assert "What changed since one.opq" in page
    assert opq.diff(tmp_path / "one.opq", tmp_path / "two.opq").summary() in page
