"""Calibration inputs of any structure, as batches: tensors, tuples, mappings, loaders, texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opq.calibration.context_length import context_length
from opq.errors import CalibrationError

Batch = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of the network."""

SHARE, MOST, FEWEST = 8, 64, 16
"""One of SHARE inputs is held out, at most MOST; of fewer than FEWEST inputs none is, and all of them are compared on."""

TEXT_LENGTH = 512
"""The largest number of tokens of a text, if the network takes as many."""

_LABELS = frozenset(("label", "labels", "target", "targets"))


def batches_of(model: nn.Module, inputs: Any, tokenizer: Callable[..., Any] | None = None) -> list[Batch]:
    """Batches of a network's arguments, on the CPU.

    Args:
        model: The network. Its `forward` says how many positional arguments it needs.
        inputs: An array or tensor (samples, ...), floating point or token ids; a mapping of the network's keyword arguments, of
            such tensors; a tuple of its positional arguments; or an iterable of batches, each one of these or (inputs, labels).
            Labels are dropped: what is behind the arguments that the network needs, and the keys "label", "labels", "target"
            and "targets". With a tokenizer: texts.
        tokenizer: Called with a text and `truncation` and `max_length`, it returns a mapping with "input_ids", as the
            tokenizers of transformers do.

    Returns:
        At least one batch with at least one sample.

    Raises:
        CalibrationError: The inputs are anything else, are empty, or hold NaN or infinite values.
    """
    needed = _needed_arguments(model)
    if tokenizer is not None:
        batches = _tokenized(inputs, tokenizer, context_length(model, TEXT_LENGTH))
    elif isinstance(inputs, Tensor | np.ndarray | Mapping) or _is_arguments(inputs, needed):
        batches = [_batch(inputs, needed)]
    elif isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable):
        raise CalibrationError(f"inputs must be tensors or batches of them, got {type(inputs).__name__}")
    else:
        batches = [_batch(item, needed) for item in inputs]
    batches = [batch for batch in batches if size_of(batch)]
    if not batches:
        raise CalibrationError("inputs must hold at least one sample, got none")
    for tensor in (tensor for batch in batches for tensor in tensors_of(batch)):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CalibrationError("inputs must be finite, got NaN or infinite values; check the preprocessing")
    return batches


def split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The batches to calibrate on, and those to compare on: the last samples.

    Args:
        batches: At least one sample in all.
    """
    total = sum(map(size_of, batches))
    if total < FEWEST:
        return list(batches), list(batches)
    left = min(total // SHARE, MOST)
    used: list[Batch] = []
    held_out: list[Batch] = []
    for batch in reversed(batches):
        count = size_of(batch)
        taken = min(left, count)
        left -= taken
        if taken:
            held_out.insert(0, _samples(batch, count - taken, count))
        if taken < count:
            used.insert(0, _samples(batch, 0, count - taken))
    return used, held_out


def portions(batches: Iterable[Batch], size: int) -> list[Batch]:
    """The same samples in batches of at most `size`."""
    return [
        _samples(batch, start, min(start + size, size_of(batch)))
        for batch in batches
        for start in range(0, size_of(batch), size)
    ]


def groups_of(batches: Sequence[Batch], most: int) -> list[list[Batch]]:
    """Groups with about equally many samples, in order; large batches are divided, small ones share a group.

    Args:
        batches: At least one sample in all.
        most: A group has at most the number of samples over this, rounded up; so there are fewer than twice as many groups.
    """
    share = -(-sum(map(size_of, batches)) // most)
    groups: list[list[Batch]] = []
    room = 0
    for batch in portions(batches, share):
        if room < size_of(batch):
            groups.append([])
            room = share
        groups[-1].append(batch)
        room -= size_of(batch)
    return groups


def joined(batches: Sequence[Batch], count: int) -> Batch:
    """About `count` samples as one batch: as many of the first batches as have the first one's shapes."""
    first = tensors_of(batches[0])
    chosen: list[Batch] = []
    for batch in batches:
        tensors = tensors_of(batch)
        alike = len(tensors) == len(first) and all(
            one.ndim and one.shape[1:] == two.shape[1:] for one, two in zip(tensors, first, strict=True)
        )
        if not alike or sum(map(size_of, chosen)) >= count:
            break
        chosen.append(batch)
    if len(chosen) < 2:
        return _samples(batches[0], 0, count)
    parts = iter([torch.cat(list(group)) for group in zip(*map(tensors_of, chosen), strict=True)])
    whole: Batch = mapped(lambda _: next(parts), chosen[0])
    return _samples(whole, 0, count)


def size_of(batch: Batch) -> int:
    """Number of samples: the length of the first tensor with dimensions."""
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.ndim), 0)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, tuple | list) else []


def describe(batch: Batch) -> str:
    """The dtypes and shapes of a batch, for messages."""
    return ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in tensors_of(batch))


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested tuples, lists and mappings with a function of each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(function, part) for key, part in value.items()}
    return type(value)(mapped(function, part) for part in value) if type(value) in (tuple, list) else value


def _samples(batch: Batch, start: int, stop: int) -> Batch:
    """Samples of a batch. Tensors of another length, which all samples share, are kept whole."""
    count = size_of(batch)
    cut: Batch = mapped(lambda tensor: tensor[start:stop] if tensor.ndim and len(tensor) == count else tensor, batch)
    return cut


def _needed_arguments(model: nn.Module) -> int:
    """The number of positional arguments without a default that `forward` takes, at least 1."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters), 1)


def _is_arguments(inputs: Any, needed: int) -> bool:
    """Whether a tuple holds the arguments of one call, not batches."""
    return isinstance(inputs, tuple) and 1 < needed <= len(inputs) and all(isinstance(part, Tensor) for part in inputs)


def _batch(item: Any, needed: int) -> Batch:
    """A batch as a loader returns it, as arguments without labels, on the CPU."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(item, Mapping) or hasattr(item, "keys"):  # transformers' BatchEncoding has keys, and is no Mapping
        keywords = {key: item[key] for key in item.keys() if key not in _LABELS}  # noqa: SIM118
    elif isinstance(item, tuple | list):
        arguments = tuple(item[:needed])
    else:
        arguments = (item,)
    batch: Batch = mapped(lambda tensor: tensor.detach().cpu(), _as_tensors((arguments, keywords)))
    if not tensors_of(batch):
        got = type(item[0]).__name__ if isinstance(item, tuple | list) and item else type(item).__name__
        raise CalibrationError(f"batches must hold the network's inputs as tensors, got {got}; with texts, give a tokenizer")
    return batch


def _as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Mapping):
        return {key: _as_tensors(part) for key, part in value.items()}
    return type(value)(_as_tensors(part) for part in value) if type(value) in (tuple, list) else value


def _tokenized(texts: Any, tokenizer: Callable[..., Any], length: int) -> list[Batch]:
    """One batch for each text, so that nothing is padded."""
    batches: list[Batch] = []
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise CalibrationError(f"with a tokenizer, inputs must be texts, got {type(text).__name__}")
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        batches.append(((torch.as_tensor(ids, dtype=torch.int64).reshape(1, -1),), {}))
    return [batch for batch in batches if batch[0][0].numel()]
