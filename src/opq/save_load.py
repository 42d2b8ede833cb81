"""One line to save a network, one line to load it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from opq.atomic_file import refuse_existing, refuse_same
from opq.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

    from opq.compression.compressed_model import CompressedModel
    from opq.config import CompressionConfig, CompressionOptions
    from opq.progress import Progress
    from opq.rate_distortion.plan import Plan

Path = str | os.PathLike[str]
Resident = Literal["tensors", "codes"]


def save(
    source: Any,
    path: Path,
    config: CompressionConfig | Plan | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    key: str | None = None,
    base: Any = None,
    progress: Progress | bool = True,
    ray: str | None = None,
    overwrite: bool = True,
    **options: Unpack[CompressionOptions],
) -> CompressedModel:
    """Compress a network into a file.

        opq.save(model, "model.opq", ratio=20)

    Args:
        source: A torch module, a state dict of torch tensors or NumPy arrays, or the path of a checkpoint.
        path: Path of the .opq file.
        config: A CompressionConfig or a Plan. None: the config is made from `options`.
        metadata: {text: text} to keep in the file if the source has no metadata.
        key: The key of the state dict in a source that has several, such as "params_ema".
        base: What the network was made from, as in `opq.compress`: the file is then a delta.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each tensor.
        ray: Measure and encode weights on a Ray cluster: its address, or "local" for one of this machine's cores. The source is
            then a checkpoint in .safetensors or GGUF files. Every machine sees it, and the folder of `path`, under the same
            path. The file is the same. A run that was killed goes on where it was.
        overwrite: Whether to replace an existing file.
        options: The fields of a config as keywords.

    Returns:
        The compressed network, which prints as its sizes.

    Raises:
        OutputError: The file cannot be written, is the source, or exists and `overwrite` is False.
        ClusterError: There is no such cluster, or its workers fail.
        OpqError: See `opq.compress`.
    """
    from opq.checkpoints.opq_state import parts_of
    from opq.compression.compress import compress, request_of
    from opq.compression.ray_workers import save_with_ray

    for read in (source, *parts_of(base)):
        if isinstance(read, str | os.PathLike):
            refuse_same(read, path)
    if not overwrite:
        refuse_existing(path)
    if ray is not None:
        if base is not None:
            raise TypeError("save() takes base or ray, got both")
        return save_with_ray(source, path, request_of(config, options), ray, metadata=metadata, key=key, progress=progress)
    compressed = compress(source, config, metadata=metadata, key=key, base=base, progress=progress, **options)
    compressed.save(path)
    return compressed


@overload
def load(
    target: torch.nn.Module,
    path: Path,
    *,
    base: Any = None,
    device: Any = "cpu",
    strict: bool = True,
    max_bytes: int | None = None,
    resident: Resident = "tensors",
) -> torch.nn.Module: ...


@overload
def load(
    target: Path,
    path: None = None,
    *,
    base: Any = None,
    device: Any = "cpu",
    strict: bool = True,
    max_bytes: int | None = None,
) -> dict[str, torch.Tensor]: ...


def load(
    target: torch.nn.Module | Path,
    path: Path | None = None,
    *,
    base: Any = None,
    device: Any = "cpu",
    strict: bool = True,
    max_bytes: int | None = None,
    resident: Resident = "tensors",
) -> torch.nn.Module | dict[str, torch.Tensor]:
    """Load a file into a network, or as a state dict. Without PyTorch use `opq.numpy.load_file`.

        opq.load(model, "model.opq")            # into the network, which is returned
        tensors = opq.load("model.opq")         # {name: torch.Tensor}

    With `resident="codes"` the weights of the network stay entropy coded in memory. A module that uses one gets a tensor that
    is decoded for it, of the same bits. Memory holds one at a time, those of shared layers until the pass of the network ends,
    and of embeddings only the rows that are looked up. Outputs are the same, each pass takes longer, and weights have no
    gradients. The network may be on the meta device, so that its weights never are in memory at once.

    Args:
        target: The network; or the file, to get its tensors.
        path: The file, if `target` is a network.
        base: Of a delta, what it was made from, as in `opq.compress`; it is read, and checked by its digest.
        device: Device of the loaded tensors.
        strict: Whether the file and the network must have the same names.
        max_bytes: Largest allowed number of dense bytes. Default: 64 MiB plus 4096 times the file's size.
        resident: What stays in memory: "tensors", or "codes" of weights of at least 4,096 elements.

    Raises:
        SourceError: The file cannot be read, or the base is another one than that of the delta.
        FormatError: It is not a complete, valid file.
        RuntimeError: Raised by PyTorch if the file belongs to another network.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        from opq import torch as opq_torch
    except MissingExtraError:
        raise MissingExtraError("opq.load (opq.numpy.load_file does not)", "torch") from None
    if resident not in ("tensors", "codes"):
        raise ValueError(f"resident must be 'tensors' or 'codes', got {resident!r}")
    if isinstance(target, str | os.PathLike):
        if resident == "codes":
            raise TypeError("load() with resident='codes' takes a network and a file; got a file alone")
        if path is not None:
            raise TypeError("load() takes a network and a file, or a file alone; got two files")
        return opq_torch.load_file(target, device, base=base, max_bytes=max_bytes)
    if path is None:
        raise TypeError("load() takes a network and a file, or a file alone; got no file")
    if resident == "codes":
        if base is not None:
            raise TypeError("load() with resident='codes' takes a complete file; got a base")
        from opq.resident import load_coded

        return load_coded(target, path, device, strict=strict, max_bytes=max_bytes)
    opq_torch.load_model(target, path, strict, device, base=base, max_bytes=max_bytes)
    return target
