"""Every network of the zoo is compressed and loaded back, alone and, if it is one of transformers, in a folder."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

import pytest
import torch
from float16_errors import within_float16
from zoo_list import NETWORKS, TRANSFORMERS, Network

import opq
import opq.torch
from opq.checkpoints import as_state
from opq.checkpoints.folded_state import FoldedBatchNormState

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]
LARGEST_CHANGE = 0.01
"""Largest relative change of outputs at the fine ratio of a network."""
LARGEST_ROUNDING = 2.0**-8
"""Largest relative change of outputs by folding batch norms and rounding vectors to float16."""


def words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def ties(network: torch.nn.Module) -> set[frozenset[str]]:
    """The names of the state dict that share memory, in groups."""
    groups = defaultdict(set)
    for name, tensor in network.state_dict().items():
        groups[tensor.data_ptr(), tensor.shape].add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def weights_of(network: torch.nn.Module) -> set[str]:
    """Names of the parameters of floating point with two dimensions above 1 and at least 64 elements.

    All of them are quantized, since no parameter of the zoo has as few distinct values as a mask.
    """
    parameters = [item for item in network.named_parameters(remove_duplicate=False) if item[1].is_floating_point()]
    return {name for name, tensor in parameters if sum(size > 1 for size in tensor.shape) >= 2 and tensor.numel() >= 64}


def may_be_rounded(network: torch.nn.Module, name: str) -> bool:
    """Whether a tensor that is no weight is a parameter, or a statistic of a batch norm, of float32 or float64."""
    if network.state_dict()[name].dtype not in (torch.float32, torch.float64):
        return False
    is_buffer = name in dict(network.named_buffers(remove_duplicate=False))
    return not is_buffer or name.endswith(("running_mean", "running_var"))


def dense_bytes(network: torch.nn.Module, weights: Collection[str]) -> int:
    """Bytes of the state dict; a weight that has several names counts once."""
    state = network.state_dict()
    repeats = {name for names in ties(network) for name in sorted(names)[1:] if name in weights}
    return sum(tensor.nbytes for name, tensor in state.items() if name not in repeats)


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Fail if outputs are not bit for bit the same."""
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def change(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative change of an output, in Euclidean norm."""
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).double().norm() / other.double().norm()) for one, other in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_quantized(name, tmp_path):
    """A network that loads a file gives the outputs of the original network with the file's tensors, bit for bit.

    The file has the bytes asked for, or up to 0.5% less. Tensors keep names, dtypes and shapes, and none is NaN. Buffers and
    integers are bit for bit the same. Parameters that are no weights have the error of float16; so have the vectors of batch
    norms, which are folded before. Both hardly change the outputs. Tied weights stay tied.
    """
    network: Network = NETWORKS[name]
    original, fresh = network.make(0), network.make(1)
    before, source, tied = network.outputs(original), original.state_dict(), ties(original)
    assert bool(tied) == network.tied

    compressed = opq.compress(original, ratio=network.ratio)
    compressed.save(tmp_path / "network.opq")
    weights, exact = set(compressed.plan.layers), set(compressed.plan.exact)
    assert weights == weights_of(original)
    assert exact == set(source) - weights
    budget = dense_bytes(original, weights) / network.ratio
    assert 0.995 * budget <= (tmp_path / "network.opq").stat().st_size <= budget

    tensors = opq.load(tmp_path / "network.opq")
    assert set(tensors) == set(source)
    for key, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (source[key].dtype, source[key].shape)
        assert not tensor.isnan().any()
    folded = FoldedBatchNormState(as_state(original), None)
    rounded = {key for key in exact if may_be_rounded(original, key)}
    assert [key for key in exact - rounded if not torch.equal(words(tensors[key]), words(source[key]))] == []
    assert [key for key in rounded if not within_float16(tensors[key], folded[key])] == []

    assert_equal(network.outputs(original), before)  # compression does not change the network
    original.load_state_dict({**source, **{key: tensors[key] for key in weights}})
    unrounded = network.outputs(original)
    original.load_state_dict(tensors)
    assert opq.load(fresh, tmp_path / "network.opq") is fresh
    assert ties(fresh) == tied
    loaded = fresh.state_dict()
    assert [key for key in tensors if not torch.equal(words(loaded[key]), words(tensors[key]))] == []
    after = network.outputs(fresh)
    assert_equal(after, network.outputs(original))
    assert 0.0 < change(after, before) < math.inf
    assert change(after, unrounded) < LARGEST_ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_hardly_change_at_a_fine_ratio(name):
    """Nothing is quantized that the outputs depend on more than on the weights."""
    network: Network = NETWORKS[name]
    original, fresh = network.make(0), network.make(1)
    fresh.load_state_dict(opq.torch.load(opq.compress(original, ratio=network.fine).data))
    before, after = network.outputs(original), network.outputs(fresh)
    assert change(network.outputs(network.make(1)), before) > 0.2  # another network gives other outputs
    assert change(after, before) < LARGEST_CHANGE


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_comes_back(name, tmp_path):
    """A folder of save_pretrained, compressed and expanded to another folder, is one that from_pretrained reads.

    Its outputs are those of the file's tensors, loaded by from_pretrained or by opq.load, and near those of the original.
    """
    network: Network = TRANSFORMERS[name]
    original = network.make(0)
    original.save_pretrained(tmp_path / "dense")
    opq.save(tmp_path / "dense", tmp_path / "network.opq", ratio=network.fine)
    opq.expand(tmp_path / "network.opq", tmp_path / "quantized", like=tmp_path / "dense")

    kind = type(original)
    expanded, information = kind.from_pretrained(tmp_path / "quantized", output_loading_info=True)
    assert not any(information.values())
    assert {tensor.dtype for tensor in expanded.parameters()} == {tensor.dtype for tensor in original.parameters()}
    assert ties(expanded) == ties(original)
    after = network.outputs(expanded.eval())
    quantized = kind.from_pretrained(None, config=original.config, state_dict=opq.load(tmp_path / "network.opq"))
    assert_equal(after, network.outputs(quantized.eval()))
    if name != "mixtral":  # whose folder has tensors of single experts, unlike the network
        assert_equal(after, network.outputs(opq.load(network.make(1), tmp_path / "network.opq")))
    assert 0.0 < change(after, network.outputs(original)) < LARGEST_CHANGE
