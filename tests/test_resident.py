"""Networks whose weights stay coded in memory: `opq.load(network, file, resident="codes")`."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import opq  # noqa: E402
from opq import resident  # noqa: E402
from opq.torch import decode_tensor  # noqa: E402


class Tied(nn.Module):
    """A language model whose head is its embedding, and whose block runs twice."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(200, 64)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)
        self.head = nn.Linear(64, 200, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.block(self.block(self.tokens(ids))))


class Recurrent(nn.Module):
    """A recurrent layer in a module."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(48, 64, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


NETWORKS = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.Conv2d(64, 80, 3), nn.Flatten(), nn.Linear(320, 60)),
        lambda: torch.randn(2, 3, 8, 8),
    ),
    "tied, shared and attention": (Tied, lambda: torch.randint(0, 200, (3, 9))),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(2, 5, 48)),
    "gru": (lambda: Recurrent(nn.GRU), lambda: torch.randn(2, 5, 48)),
    "cross attention": (lambda: nn.Transformer(64, 4, 1, 1, 128, batch_first=True), lambda: torch.randn(2, 5, 64)),
}


def run(network, x):
    with torch.no_grad():
        return network(x, x) if isinstance(network, nn.Transformer) else network(x)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request, tmp_path_factory):
    """(a function that makes the network, an input, the path of its file)."""
    make, make_input = NETWORKS[request.param]
    torch.manual_seed(0)
    network = make().eval()
    path = tmp_path_factory.mktemp("case") / "n.opq"
    opq.save(network, path, ratio=6, progress=False)
    return make, make_input(), path


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_outputs_are_those_of_the_loaded_network(case, device):
    """A network of coded weights has the outputs of the loaded one, bit for bit, in each pass, also if it began on meta."""
    make, x, path = case
    expected = run(opq.load(make(), path).eval().requires_grad_(False), x)  # torch has other paths for gradients
    with torch.device(device):
        network = make()
    coded = opq.load(network, path, resident="codes").eval()
    for _ in range(2):
        assert torch.equal(run(coded, x), expected)


def test_no_large_weight_is_a_parameter(case):
    """No weight of at least 4,096 elements is left in memory, and none stays after a pass."""
    make, x, path = case
    coded = opq.load(make(), path, resident="codes").eval()
    run(coded, x)
    assert max(parameter.numel() for parameter in coded.parameters()) < 4096
    held = [weight.weights for module in coded.modules() for weight in module.__dict__.get("_opq_coded", {}).values()]
    assert held
    assert all(not store._held and store._latest is None and not store._alive for store in held)


def test_the_state_dict_has_all_tensors(case):
    """The state dict is that of the loaded network, bit for bit, and loads into another one."""
    make, _, path = case
    coded = opq.load(make(), path, resident="codes")
    state, expected = coded.state_dict(), opq.load(make(), path).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    make().load_state_dict(state)


def test_shared_layers_are_decoded_once_a_pass(tmp_path, monkeypatch):
    """From the second pass on, each weight is decoded once a pass, although a layer runs twice."""
    opq.save(Tied(), tmp_path / "n.opq", ratio=6, progress=False)
    coded = opq.load(Tied(), tmp_path / "n.opq", resident="codes").eval()
    decoded = []
    monkeypatch.setattr(resident, "decode_tensor", lambda file, name: (decoded.append(name), decode_tensor(file, name))[1])
    run(coded, torch.zeros(1, 3, dtype=torch.int64))
    decoded.clear()
    run(coded, torch.zeros(1, 3, dtype=torch.int64))
    assert len(decoded) == len(set(decoded)) > 4


def test_embeddings_decode_only_rows(tmp_path, monkeypatch):
    """A look-up gives the rows of the loaded embedding, for indices of any shape, and decodes no whole weight."""
    opq.save(nn.Sequential(nn.Embedding(500, 40)), tmp_path / "n.opq", ratio=5, progress=False)
    coded = opq.load(nn.Sequential(nn.Embedding(500, 40)), tmp_path / "n.opq", resident="codes")
    dense = opq.load(nn.Sequential(nn.Embedding(500, 40)), tmp_path / "n.opq")
    monkeypatch.setattr(resident, "decode_tensor", None)
    for indices in (torch.tensor(3), torch.tensor([499, 0, 499]), torch.zeros(2, 0, 3, dtype=torch.int64), torch.arange(500)):
        assert torch.equal(coded(indices), dense(indices))
    for indices in (torch.tensor([-1, 3]), torch.tensor([3, 500])):
        with pytest.raises(IndexError, match=r"0.weight: indices must be at least 0 and below 500"):
            coded(indices)


def test_copies_share_the_codes(case):
    """A deep copy of a network has its outputs."""
    make, x, path = case
    coded = opq.load(make(), path, resident="codes").eval()
    assert torch.equal(run(copy.deepcopy(coded), x), run(coded, x))


def test_the_users_mistakes(tmp_path):
    """Other names and shapes, a file alone, other words, and buffers that only the network has are refused."""
    path = tmp_path / "n.opq"
    opq.save(nn.Sequential(nn.Linear(80, 90)), path, ratio=5, progress=False)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1.bias", "1.weight"'):
        opq.load(nn.Sequential(nn.Linear(80, 90), nn.Linear(90, 90)), path, resident="codes")
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0.bias", "0.weight"'):
        opq.load(nn.Sequential(nn.ReLU()), path, resident="codes")
    with pytest.raises(
        RuntimeError, match=r"0.weight must have shape \(90, 90\) as in the network, and the file's has \(90, 80\)"
    ):
        opq.load(nn.Sequential(nn.Linear(90, 90)), path, resident="codes")
    with pytest.raises(TypeError, match="got a file alone"):
        opq.load(path, resident="codes")
    with pytest.raises(ValueError, match="resident must be 'tensors' or 'codes', got 'code'"):
        opq.load(nn.Sequential(nn.Linear(80, 90)), path, resident="code")
    with pytest.raises(opq.SourceError):
        opq.load(nn.Sequential(nn.Linear(80, 90)), tmp_path / "none.opq", resident="codes")
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(80, 90))
        network.register_buffer("places", torch.zeros(3), persistent=False)
    with pytest.raises(RuntimeError, match="places is on the meta device"):
        opq.load(network, path, resident="codes")


def test_rows_of_a_weight_in_many_pieces(tmp_path, monkeypatch):
    """Rows of a weight that is decoded in several pieces are those of the whole weight."""
    monkeypatch.setattr("opq.codec.weight_section._PIECE", 4000)
    opq.save(nn.Sequential(nn.Embedding(500, 40)), tmp_path / "n.opq", ratio=5, progress=False)
    coded = opq.load(nn.Sequential(nn.Embedding(500, 40)), tmp_path / "n.opq", resident="codes")
    dense = opq.load(nn.Sequential(nn.Embedding(500, 40)), tmp_path / "n.opq")
    for indices in (torch.tensor([99, 100, 101]), torch.tensor([450]), torch.arange(0, 500, 7)):
        assert torch.equal(coded(indices), dense(indices))
