"""Messages of errors: a mistake in a call ends in an error of this library that names the place, the rule and the value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import opq

INPUTS = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4
CONFIG = opq.CompressionConfig(target=opq.Ratio(2))
TRAINING = opq.TrainingConfig(epochs=1, mask_update_epochs=0)


class Endless(IterableDataset):
    """A data set that does not know its length."""

    def __iter__(self):
        return iter(INPUTS)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: opq.compress(nn.Linear, ratio=2), opq.SourceError, "got the class Linear"),
        (lambda net: opq.compress(None, ratio=2), opq.SourceError, "expected a state dict, .* got NoneType"),
        (lambda net: opq.compress(net, ratio=2, metadata="text"), opq.SourceError, "metadata: expected {text: text}, got str"),
        (lambda net: opq.calibrate("net.pt", INPUTS), TypeError, r"calibrate\(\) takes a torch module, got str"),
        (
            lambda net: opq.calibrate(net, ["text"]),
            opq.CalibrationError,
            "inputs as tensors, got str; with texts, give a tokenizer",
        ),
        (lambda net: opq.calibrate(net, 5), opq.CalibrationError, "tensors or batches of them, got int"),
        (lambda net: opq.calibrate(net, INPUTS.long()), opq.CalibrationError, r"run on inputs of int64 \(16, 32\)"),
        (lambda net: opq.calibrate(net, INPUTS * np.nan), opq.CalibrationError, "inputs must be finite"),
        (lambda net: opq.calibrate(net, shape=32), opq.CalibrationError, "that of one input, positive integers, got 32"),
        (lambda net: opq.prepare("net.pt", ratio=2), TypeError, r"prepare\(\) takes a torch module, got str"),
        (lambda net: opq.prepare(net, 2), TypeError, "keywords such as ratio=8, got int"),
        (lambda net: opq.evaluate("net.pt", []), TypeError, r"evaluate\(\) takes a torch module, got str"),
        (lambda net: opq.evaluate(net, "data"), opq.TrainingError, "a batch must be a tensor, .*, got str"),
        (lambda net: opq.rd_curve(net, ratios=8), opq.TargetError, "ratios must be a list of .* numbers, got 8"),
        (lambda net: opq.compress_to_accuracy(net, [], max_drop="1%"), opq.TargetError, "max_drop must be .*, got '1%'"),
        (lambda net: opq.TrainingConfig(epochs=1, optimizer="adam"), opq.ConfigError, "optimizer must be None, or .* got str"),
        (lambda net: opq.TrainingConfig.from_json('{"format": "opq-training-config-1"}'), opq.ConfigError, "missing field 'ep"),
    ],
)
def test_a_wrong_argument_is_named(network, call, error, message):
    """The message names the argument, what was expected, and what was given."""
    with pytest.raises(error, match=message):
        call(network)


@pytest.mark.parametrize(
    ("loader", "keywords", "error", "message"),
    [
        (DataLoader(Endless()), {"teacher": "dense"}, opq.TrainingError, "loader must have a length"),
        ([(INPUTS, LABELS[:3])], {}, opq.TrainingError, r"labels of torch.int64 and shape \(3,\) are not classes for logits"),
        ([(INPUTS, INPUTS[:, 0])], {}, opq.TrainingError, "labels of torch.float32 .* do not fit outputs"),
        ([(INPUTS, ["cat"] * 16)], {}, opq.TrainingError, "labels must be a tensor, got tuple"),
        ([INPUTS], {"teacher": nn.Identity()}, opq.TrainingError, r"teacher must return outputs of shape \(16, 4\)"),
        ([INPUTS], {"teacher": "resnet"}, TypeError, "as teacher, got 'resnet'"),
        ([INPUTS], {"training": {"epochs": 1}}, TypeError, "takes a TrainingConfig as training, got dict"),
        ([INPUTS], {"calibration": 5}, TypeError, "as calibration, got int"),
        ([(INPUTS, LABELS)], {"on_epoch_end": lambda network: 5}, opq.TrainingError, "must return a mapping .* got int"),
    ],
)
def test_a_wrong_argument_of_finetune_is_named(network, loader, keywords, error, message):
    """Loaders, labels, teachers and settings that do not fit are refused by name."""
    with pytest.raises(error, match=message):
        opq.finetune(network, loader, CONFIG, **{"training": TRAINING, **keywords})


def test_a_source_is_never_replaced_by_its_result(network, tmp_path):
    """Neither save nor expand writes to the file that it reads."""
    checkpoint, file = tmp_path / "net.pt", tmp_path / "net.opq"
    torch.save(network.state_dict(), checkpoint)
    opq.save(checkpoint, file, ratio=2)
    before = checkpoint.read_bytes(), file.read_bytes()
    for write in (lambda: opq.save(checkpoint, checkpoint, ratio=2), lambda: opq.expand(file, file)):
        with pytest.raises(opq.OutputError, match="it is the source that is being read"):
            write()
    with pytest.raises(opq.OutputError, match=r"choose a path that ends in \.safetensors"):
        opq.expand(file, tmp_path / "dense.pt")
    assert (checkpoint.read_bytes(), file.read_bytes()) == before


def test_a_converted_network_is_not_exported(network):
    """After convert there are no codes left to export."""
    prepared = opq.prepare(network, ratio=2)
    prepared.convert()
    with pytest.raises(opq.PlanError, match="the network is converted already"):
        prepared.export()


def test_a_damaged_file_is_named(network, tmp_path):
    """The message has the path if the file was opened by path."""
    file = tmp_path / "net.opq"
    data = opq.save(network, file, ratio=2).data
    file.write_bytes(data[:-10])
    with pytest.raises(opq.FormatError, match=r"net\.opq: sections: .* is it truncated\?"):
        opq.load(file)
    with pytest.raises(opq.FormatError, match=r"file: sections: .* is it truncated\?"):
        opq.OpqFile(data[:-10])


@pytest.mark.parametrize(("content", "reason"), [(b"hello world", "expected safetensors"), (b"PK\x03\x04", "damaged.*save")])
def test_a_file_that_is_no_checkpoint_is_named(content, reason, tmp_path):
    """The message is short, and says what to do."""
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(opq.SourceError, match=rf"net\.pt: .*{reason}") as caught:
        opq.compress(path, ratio=2)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300
