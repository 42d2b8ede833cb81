"""SOURCE of compress and plan as the name of a network: its published weights, those of --weights, or the factory's own."""

import json
import urllib.error

import pytest
from failures import failure

import opq
from opq.cli import main
from opq.cli.model_options import chosen_weights

torch = pytest.importorskip("torch")
models = pytest.importorskip("opq.zoo.models")

NETWORK = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(30, 30), nn.BatchNorm1d(30, eps=0.01), nn.Linear(30, 30)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.randn(8, 9))

def make():
    return Tied()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current folder, with the code of a network."""
    (tmp_path / "network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def published(torchvision, monkeypatch):
    """The weights of a network of each library, {name: network}, which are served in place of downloads."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    networks = {
        "torchvision:squeezenet1_1": torchvision.models.squeezenet1_1(),
        "timm:test_resnet": timm.create_model("test_resnet"),
    }
    served = {name.partition(":")[0]: network.state_dict() for name, network in networks.items()}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: served["torchvision"])
    for loader in ("load_state_dict_from_hf", "load_state_dict_from_url"):
        monkeypatch.setattr(f"timm.models._builder.{loader}", lambda *_, **__: served["timm"])
    return networks


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_a_name_is_the_network_with_its_published_weights(work, published, name, capsys):
    """The file and the plan are those of the network in Python, with its buffers and the eps of its batch norms."""
    options = {"batch_norm": "folded"} if name.startswith("timm") else {}
    arguments = ["--ratio", "8", *(["--batch-norm", "folded"] if options else [])]
    assert main(["compress", name, *arguments, "-o", "a.opq"]) == 0
    assert (work / "a.opq").read_bytes() == opq.compress(published[name], ratio=8, **options).data
    capsys.readouterr()
    assert main(["plan", name, *arguments, "--json"]) == 0
    assert opq.Plan.from_json(capsys.readouterr().out) == opq.plan(published[name], ratio=8, **options)


def test_the_weights_of_a_factory_are_its_own(work, capsys):
    """A factory's network is compressed as it is returned, with the same random weights each time; --curve plans it too."""
    for file in ("a.opq", "b.opq"):
        assert main(["compress", "network.py:make", "--ratio", "3", "-o", file]) == 0
    assert (work / "a.opq").read_bytes() == (work / "b.opq").read_bytes()
    with opq.OpqFile("a.opq") as file:
        assert {entry.name for entry in file.entries if entry.storage == "codes"} == {"first.weight", "second.weight"}
    capsys.readouterr()
    assert main(["plan", "network.py:make", "--curve", "--json"]) == 0
    points = opq.rd_curve(models.open_network("network.py:make", seed=0))
    assert json.loads(capsys.readouterr().out) == [vars(point) for point in points]


def test_weights_are_a_checkpoint_of_the_network(work):
    """--weights takes a checkpoint or a .opq file, in which a tied weight needs one of its names; the module says the rest."""
    network = models.open_network("network.py:make", seed=3)
    state = {name: tensor for name, tensor in network.state_dict().items() if name != "second.weight"}
    torch.save(state, "a.pt")
    options = ["--ratio", "3", "--batch-norm", "folded"]
    assert main(["compress", "network.py:make", "--weights", "a.pt", *options, "-o", "a.opq"]) == 0
    assert (work / "a.opq").read_bytes() == opq.compress(network, ratio=3, batch_norm="folded").data
    assert main(["compress", "network.py:make", "--weights", "a.opq", "--ratio", "3.5", "-o", "b.opq"]) == 0
    assert (work / "b.opq").read_bytes() == opq.compress(opq.load(network, "a.opq"), ratio=3.5).data


def test_weights_of_another_network_are_named(work, capsys):
    """The error names what the file lacks, what the network lacks, or of what shapes differ."""
    torch.save({"first.weight": torch.zeros(30, 30), "other": torch.zeros(3)}, "a.pt")
    torch.save({"first.weight": torch.zeros(30, 31)}, "b.pt")
    options = ("--ratio", "4", "-o", "c.opq")
    error = failure(capsys, "compress", "network.py:make", "--weights", "a.pt", *options)
    assert "a.pt belongs to another network: the file lacks 'first.bias' and " in error
    assert "the network lacks 'other'" in error
    error = failure(capsys, "compress", "network.py:make", "--weights", "b.pt", *options)
    assert "b.pt belongs to another network: shapes differ in 'first.weight'\n" in error


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), ConnectionError("no\nroute"), OSError("no route"), KeyError("no")]
)
@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_a_failed_download_is_one_line(work, published, monkeypatch, capsys, name, error):
    """Whatever a library raises, the line names the network, its weights and the reason, and says what to do."""

    def fail(*_, **__):
        raise error

    for place in (
        "torchvision.models._api.load_state_dict_from_url",
        "timm.models._builder.load_state_dict_from_hf",
        "timm.models._builder.load_state_dict_from_url",
    ):
        monkeypatch.setattr(place, fail)
    found = failure(capsys, "compress", name, "--ratio", "4", "-o", "a.opq")
    assert f"no network '{name}': its weights cannot be downloaded ({type(error).__name__}: " in found
    assert "give a checkpoint" in found


def test_networks_of_any_kind_are_sources(torchvision):
    """No preprocessing is needed to compress, so a network need not be a classifier; to evaluate it must be one."""
    name = "torchvision:raft_small"
    assert len(models.open_network(name).state_dict()) > 100
    with pytest.raises(opq.ModelError, match="it must be an image classifier; its preprocessing in torchvision is OpticalFlow"):
        models.open_model(name)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("network.py:absent", 1, "there is no 'absent' in network.py"),
        ("no_such_package:make", 1, "No module named 'no_such_package'"),
        ("torchvision:no_such_network", 1, "Unknown model no_such_network"),
        ("timm:no_such_network", 1, "Unknown model (no_such_network)"),
        ("torchvision:resnet18 --weights V7", 1, "weights must be one of IMAGENET1K_V1, DEFAULT, got 'V7'"),
        ("timm:test_resnet --weights no_such_tag", 1, "no_such_tag"),
        ("network.py:make --weights DEFAULT", 1, "weights must be an existing file, got 'DEFAULT'"),
        ("network.py:", 1, "MODEL must be torchvision:NAME"),
        ("network.py:make --key a", 2, "--key requires a checkpoint as SOURCE"),
        ("network.py --weights a.pt", 2, "--weights requires a network as SOURCE"),
    ],
)
def test_wrong_names_are_explained(work, torchvision, capsys, arguments, status, message):
    """Each is an error that names what is wrong."""
    pytest.importorskip("timm")
    for command in (["compress", "-o", "a.opq"], ["plan"]):
        assert message in failure(capsys, *command, *arguments.split(), "--ratio", "4", status=status)


def test_a_file_comes_before_a_network(work):
    """A checkpoint whose name has a colon is read as the file that it is."""
    torch.save({"w": torch.randn(20, 20)}, "network.py:make")
    assert main(["compress", "network.py:make", "--ratio", "3", "-o", "a.opq"]) == 0
    with opq.OpqFile("a.opq") as file:
        assert [entry.name for entry in file.entries] == ["w"]


@pytest.mark.parametrize(
    ("model", "given", "chosen"),
    [
        ("torchvision:resnet18", None, "DEFAULT"),
        ("timm:resnet18", None, "pretrained"),
        ("network.py:make", None, None),
        ("torchvision:resnet18", "none", None),
        ("torchvision:resnet18", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("network.py:make", "weights.pt", "weights.pt"),
    ],
)
def test_published_weights_are_the_default(model, given, chosen):
    """All commands load the published weights of a named network; "none" leaves the initial ones."""
    assert chosen_weights(model, given) == chosen
