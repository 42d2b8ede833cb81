"""The interface of benchmarks/zoo_networks: weights are exchanged for one measurement and then dense again."""

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture
def network(script, monkeypatch, tmp_path):
    """A linear language model of five tokens, on four random texts."""
    monkeypatch.setenv("OPQ_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5))
    texts = torch.randint(5, (4, 50), generator=generator).split(2)
    return script("zoo_networks.language_model").LanguageModel("toy", module, texts)


def test_the_module_is_dense_after_each_measurement(network):
    """After a measurement with other weights, or one that fails, the module has its dense weights bit for bit."""
    dense = {name: tensor.clone() for name, tensor in network.source().items()}
    network.measure({name: tensor + 1.0 for name, tensor in dense.items()})
    with pytest.raises(RuntimeError):
        network.measure({"0.weight": dense["0.weight"] + 1.0})
    assert all(torch.equal(tensor, dense[name]) for name, tensor in network.source().items())


def test_measurements_repeat(network):
    """The dense weights given as a state measure what the dense network does; so does a second measurement."""
    dense = {name: tensor.clone() for name, tensor in network.source().items()}
    assert network.measure(dense) == network.measure() == network.measure(dense)
    assert network.assess(dense).change == network.assess(dense).change_error == 0.0


def test_other_weights_have_outputs_of_their_own(network):
    """Uniform predictions have the perplexity of the vocabulary, without error; a changed dense network is measured anew."""
    uniform = {name: torch.zeros_like(tensor) for name, tensor in network.source().items()}
    measured = network.assess(uniform)
    assert measured.value == pytest.approx(5.0)
    assert measured.standard_error == pytest.approx(0.0, abs=1e-6)
    assert measured.change == pytest.approx(5.0 - network.measure())
    network.module.load_state_dict(uniform)
    assert type(network)("toy", network.module, network.batches).measure() == pytest.approx(5.0)
