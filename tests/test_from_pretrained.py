"""Folders with coded weights behind transformers' from_pretrained: `opq.save_pretrained`, `opq.transformers`."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import opq  # noqa: E402
import opq.transformers  # noqa: E402
from opq.cli.main import main  # noqa: E402
from opq.reporting import coded_folder  # noqa: E402

pytestmark = pytest.mark.usefixtures("torchvision")

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 200}

CONFIGS = {
    "bert": lambda: (transformers.AutoModel, transformers.BertConfig(**SMALL)),
    "bert, masked": lambda: (transformers.AutoModelForMaskedLM, transformers.BertConfig(**SMALL)),
    "gpt2": lambda: (
        transformers.AutoModelForCausalLM,
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=200, bos_token_id=0, eos_token_id=0),
    ),
    "llama, tied": lambda: (
        transformers.AutoModelForCausalLM,
        transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0),
    ),
    "llama in bfloat16": lambda: (
        transformers.AutoModelForCausalLM,
        transformers.LlamaConfig(**SMALL, tie_word_embeddings=False, dtype="bfloat16", bos_token_id=0, eos_token_id=0),
    ),
    "mixtral": lambda: (  # its checkpoints have a weight for each expert, and its module one for all
        transformers.AutoModelForCausalLM,
        transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, bos_token_id=0, eos_token_id=0),
    ),
    "vit": lambda: (
        transformers.AutoModelForImageClassification,
        transformers.ViTConfig(image_size=32, patch_size=8, **{k: v for k, v in SMALL.items() if k != "vocab_size"}),
    ),
}


def make_folder(kind, path):
    """Save a network of random weights as transformers does; its class."""
    auto, config = CONFIGS[kind]()
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(path)
    return auto


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, torchvision, tmp_path_factory):
    """(class of the network, the path of the folders `dense` and `coded` and of the file network.opq)."""
    path = tmp_path_factory.mktemp("case")
    auto = make_folder(request.param, path / "dense")
    compressed = opq.compress(path / "dense", ratio=4, progress=False)
    compressed.save(path / "network.opq")
    opq.save_pretrained(compressed, path / "coded", like=path / "dense")
    return auto, path


def load(auto, folder):
    """(network, what from_pretrained says of names)."""
    network, said = auto.from_pretrained(folder, output_loading_info=True)
    return network, {kind: names for kind, names in said.items() if names}


def expected(auto, path):
    """The state dict of the network with the tensors of the .opq file, as from_pretrained loads a dense folder."""
    opq.expand(path / "network.opq", path / "expanded", like=path / "dense")
    return auto.from_pretrained(path / "expanded").state_dict()


def assert_equal(state, other):
    """Assert that two state dicts are equal, bit for bit."""
    assert state.keys() == other.keys()
    for name, tensor in other.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def test_from_pretrained_gives_the_tensors_of_the_file(case):
    """A network of coded weights has the tensors of its .opq file; no name is missing or unexpected, and tied ones are tied."""
    auto, path = case
    network, said = load(auto, path / "coded")
    assert said == {}
    assert_equal(network.state_dict(), expected(auto, path))
    dense = auto.from_pretrained(path / "dense")
    assert len({id(p) for p in network.parameters()}) == len({id(p) for p in dense.parameters()})


def test_weights_are_small_on_disk(case):
    """The .safetensors file takes the bytes of the .opq file, and a header of a few hundred for each tensor."""
    _, path = case
    tensors = len(opq.OpqFile((path / "network.opq").read_bytes()))
    size = (path / "coded" / "model.safetensors").stat().st_size
    assert size <= (path / "network.opq").stat().st_size * 1.6 + 350 * tensors


def test_save_pretrained_keeps_the_files(case, tmp_path, caplog):
    """A loaded network that is saved again has the same coded weights, byte for byte, also those that it merged (experts)."""
    auto, path = case
    network, _ = load(auto, path / "coded")
    network.save_pretrained(tmp_path)
    with transformers_open(path / "coded") as one, transformers_open(tmp_path) as two:
        assert set(one.keys()) == set(two.keys())
        assert all(torch.equal(one.get_tensor(name), two.get_tensor(name)) for name in one.keys())  # noqa: SIM118
    assert "saved dense" not in caplog.text
    again, said = load(auto, tmp_path)
    assert said == {}
    assert_equal(again.state_dict(), network.state_dict())


def transformers_open(folder):
    """The open .safetensors file of a folder."""
    import safetensors

    return safetensors.safe_open(folder / "model.safetensors", framework="pt")


def test_changed_weights_are_saved_as_they_are(tmp_path, caplog):
    """Weights that training changed are saved dense, with a warning that names one, and load with their new values."""
    auto = make_folder("bert", tmp_path / "dense")
    compressed = opq.compress(tmp_path / "dense", ratio=4, progress=False)
    opq.save_pretrained(compressed, tmp_path / "coded", like=tmp_path / "dense")
    network = auto.from_pretrained(tmp_path / "coded")
    with torch.no_grad():
        network.encoder.layer[1].output.dense.weight += 0.01
    network.save_pretrained(tmp_path / "again")
    assert "encoder.layer.1.output.dense.weight is saved dense" in caplog.text
    assert_equal(auto.from_pretrained(tmp_path / "again").state_dict(), network.state_dict())


def test_experts_are_saved_again(tmp_path, caplog):
    """Weights of experts stay coded without the head, in another dtype, and when one of them changes, which is dense."""
    make_folder("mixtral", tmp_path / "dense")
    compressed = opq.compress(tmp_path / "dense", ratio=4, progress=False)
    opq.save_pretrained(compressed, tmp_path / "coded", like=tmp_path / "dense")
    network = transformers.AutoModel.from_pretrained(tmp_path / "coded", dtype=torch.bfloat16)
    network.save_pretrained(tmp_path / "again")
    assert "saved dense" not in caplog.text
    with transformers_open(tmp_path / "again") as file:
        names = {name for name in file.keys() if ".experts." in name}  # noqa: SIM118
    assert len(names) == 2 * 3 * 3
    assert all(name.endswith(":opq") for name in names)
    with torch.no_grad():
        network.layers[1].mlp.experts.down_proj[2] += 0.5
    network.save_pretrained(tmp_path / "third")
    assert "layers.1.block_sparse_moe.experts.2.w2.weight is saved dense, as 0 others: they changed" in caplog.text
    assert_equal(transformers.AutoModel.from_pretrained(tmp_path / "third").state_dict(), network.state_dict())


def test_another_dtype(tmp_path):
    """`dtype` gives the dtype of all tensors, as for dense folders."""
    auto = make_folder("bert", tmp_path / "dense")
    opq.save_pretrained(opq.compress(tmp_path / "dense", ratio=4, progress=False), tmp_path / "coded", like=tmp_path / "dense")
    half = auto.from_pretrained(tmp_path / "coded", dtype=torch.float16).state_dict()
    full = auto.from_pretrained(tmp_path / "coded").state_dict()
    assert_equal(half, {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in full.items()})


def test_a_network_is_compressed_when_it_is_loaded(case, tmp_path):
    """`quantization_config=OpqConfig(ratio=4)` compresses a dense network, and save_pretrained writes the coded weights."""
    auto, path = case
    network = auto.from_pretrained(path / "dense", quantization_config=opq.transformers.OpqConfig(ratio=4))
    network.save_pretrained(tmp_path)
    dense = (path / "dense" / "model.safetensors").stat().st_size
    assert (tmp_path / "model.safetensors").stat().st_size < dense / 2
    again, said = load(auto, tmp_path)
    assert said == {}
    assert_equal(again.state_dict(), network.state_dict())
    with pytest.raises(opq.TargetError):
        auto.from_pretrained(path / "dense", quantization_config=opq.transformers.OpqConfig())
    with pytest.raises(TypeError, match="did you mean 'ratio'"):
        auto.from_pretrained(path / "dense", quantization_config=opq.transformers.OpqConfig(rato=4))


def test_dequantize_makes_an_ordinary_network(tmp_path):
    """After `dequantize` a network is saved dense, without a quantization_config."""
    auto = make_folder("llama, tied", tmp_path / "dense")
    opq.save_pretrained(opq.compress(tmp_path / "dense", ratio=4, progress=False), tmp_path / "coded", like=tmp_path / "dense")
    network = auto.from_pretrained(tmp_path / "coded")
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.dequantize().save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert_equal(auto.from_pretrained(tmp_path / "plain").state_dict(), state)


def test_shards(tmp_path, monkeypatch):
    """Large networks have several .safetensors files and an index."""
    monkeypatch.setattr(coded_folder, "LARGEST_SHARD", 20_000)
    auto = make_folder("llama, tied", tmp_path / "dense")
    compressed = opq.compress(tmp_path / "dense", ratio=4, progress=False)
    folder = opq.save_pretrained(compressed, tmp_path / "coded", like=tmp_path / "dense")
    files = sorted(path.name for path in (tmp_path / "coded").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) == folder.shards > 1
    network, said = load(auto, tmp_path / "coded")
    assert said == {}
    compressed.save(tmp_path / "network.opq")
    assert_equal(network.state_dict(), expected(auto, tmp_path))


def test_files_of_an_earlier_network_are_removed(tmp_path, monkeypatch):
    """A folder that is written again, with more or fewer .safetensors files, loads the new network."""
    auto = make_folder("llama, tied", tmp_path / "dense")
    for largest, ratio in ((20_000, 4), (10**9, 6), (15_000, 5)):
        monkeypatch.setattr(coded_folder, "LARGEST_SHARD", largest)
        compressed = opq.compress(tmp_path / "dense", ratio=ratio, progress=False)
        folder = opq.save_pretrained(compressed, tmp_path / "coded", like=tmp_path / "dense")
        assert len(list((tmp_path / "coded").glob("*.safetensors"))) == folder.shards
        compressed.save(tmp_path / "network.opq")
        assert_equal(load(auto, tmp_path / "coded")[0].state_dict(), expected(auto, tmp_path))


def test_the_command_line(tmp_path, capsys):
    """`opq compress FOLDER --as transformers` writes the folder of `save_pretrained`; mistakes end in one line."""
    auto = make_folder("bert", tmp_path / "dense")
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: mit\n---\n\n# A network\n")
    arguments = ["compress", str(tmp_path / "dense"), "--ratio", "4", "--as", "transformers", "-o", str(tmp_path / "coded")]
    assert main([*arguments, "--quality", "accuracy 91.0, dense 91.2"]) == 0
    assert "x smaller than" in capsys.readouterr().out
    card = (tmp_path / "coded" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n\n# A network\n")
    assert "Quality: accuracy 91.0, dense 91.2" in card
    assert 'model = BertModel.from_pretrained("THIS' in card
    files = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "coded")}
    assert 0.9 * files["dense"] / 4 < files["coded"] <= files["dense"] / 4
    assert load(auto, tmp_path / "coded")[1] == {}
    assert main(arguments) == 1
    assert "it has files; use --force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 1
    card = (tmp_path / "coded" / "README.md").read_text()
    assert card.count("## Compression") == 1
    assert "Quality: not measured." in card
    assert main([*arguments[:3], "1000", *arguments[4:], "--force"]) == 1
    assert "out of reach" in capsys.readouterr().err
    again = [str(tmp_path / "coded") if word == str(tmp_path / "dense") else word for word in arguments]
    again[-1] = str(tmp_path / "third")
    assert main(again) == 1
    assert "its weights are quantized (quant_method 'opq'); compress the original network" in capsys.readouterr().err


def test_damaged_files_are_refused(tmp_path):
    """A changed byte of a weight is an error that names the weight."""
    auto = make_folder("bert", tmp_path / "dense")
    opq.save_pretrained(opq.compress(tmp_path / "dense", ratio=4, progress=False), tmp_path / "coded", like=tmp_path / "dense")
    path = tmp_path / "coded" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises((RuntimeError, opq.FormatError)):
        auto.from_pretrained(tmp_path / "coded")
