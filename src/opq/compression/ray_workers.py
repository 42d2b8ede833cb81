"""Compress a checkpoint on a Ray cluster: a task reads a weight, measures or encodes it, and returns statistics or the place
of its bytes.

The driver reduces the statistics to a plan and writes the file. Encoded weights are kept in a folder beside the output, so that
no process holds the file, and so that a run that was killed encodes only what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from opq.atomic_file import write_file
from opq.checkpoints import State, as_state
from opq.checkpoints.file_state import FileState
from opq.codec.file_start import FORMAT_VERSION
from opq.codec.file_writer import encode_named
from opq.codec.section_choice import EncodedWeight
from opq.codec.stored_section import StoredSection
from opq.compression.compress import compress_state
from opq.compression.compressed_model import CompressedModel
from opq.compression.planned_weight import PlannedWeight
from opq.compression.weight_statistics import measure_weight
from opq.config import CompressionConfig
from opq.errors import ClusterError, MissingExtraError, OpqError, OutputError, SourceError
from opq.progress import Progress, show_progress
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.layers import LayerStatistics
from opq.rate_distortion.plan import Plan
from opq.thread_map import limit_threads
from opq.version import __version__

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRIES = 3
"""How often a task is started again after its worker died."""


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a Ray cluster that this process is connected to. Each has one core.

    A worker holds some rows of the weight that it encodes, a byte for each of its elements, and what Python and NumPy take.

    Args:
        folder: Encoded weights are kept here; every machine must see it under this path, as it must see the checkpoint.
        contents: Identifies the checkpoint: `FileState.contents`.
    """

    folder: Path
    contents: str

    def measure(self, state: State, names: Sequence[str]) -> Iterator[LayerStatistics]:
        """As Workers.measure."""
        return _map(partial(measure_weight, state), names, [prod(state.describe(name)[1]) for name in names])

    def encode(self, weights: Mapping[str, PlannedWeight]) -> Iterator[EncodedWeight]:
        """As Workers.encode."""
        if not weights:
            return iter(())
        state = next(iter(weights.values())).state
        encode = partial(_encode_kept, state, self.folder, self.contents)
        plans = [(name, weight.plan) for name, weight in weights.items()]
        return _map(encode, plans, [plan.count for _, plan in plans])


def save_with_ray(
    source: Any,
    path: str | os.PathLike[str],
    request: CompressionConfig | Plan,
    cluster: str,
    *,
    metadata: Mapping[str, str] | None = None,
    key: str | None = None,
    progress: Progress | bool = False,
) -> CompressedModel:
    """Compress a checkpoint into a file on a cluster.

    The folder of encoded weights is removed at the end, unless there was an error or the process was killed.

    Args:
        source: The path of a checkpoint; or its State, opened by an absolute path.
        path: Path of the .opq file; the folder lies beside it. An existing file is replaced.
        request: The config or the plan.
        cluster: "local" for a cluster of this machine's cores, or the address of a running one. If this process is connected to
            a cluster already, that one is used.
        metadata: As in `opq.compress`.
        key: As in `opq.compress`.
        progress: As in `opq.compress`.

    Returns:
        The network, whose weights are read from the file when they are needed.

    Raises:
        SourceError: The checkpoint is not in files that are read in parts.
        OutputError: The folder or the file cannot be written.
        ClusterError: There is no such cluster, or its workers fail.
        MissingExtraError: Ray is not installed.
        OpqError: See `opq.compress`.
    """
    state = as_state(os.path.abspath(source) if isinstance(source, str | os.PathLike) else source, metadata, key)
    if not isinstance(state, FileState):
        raise SourceError("the source", "Ray workers read .safetensors and GGUF files; save it in one, or leave ray out")
    file = Path(os.path.abspath(path))
    folder = file.with_name(f".{file.name}.weights")
    with _connected(cluster), show_progress(progress) as report:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(folder, error.strerror or str(error)) from None
        try:
            compressed = compress_state(state, request, report, RayWorkers(folder, state.contents))
        finally:
            with suppress(OSError):
                folder.rmdir()  # if it is empty
        compressed.save(file)
    shutil.rmtree(folder, ignore_errors=True)
    return _read_from(compressed, file)


def _read_from(compressed: CompressedModel, file: Path) -> CompressedModel:
    """The same network, whose weights are read from the file that it was saved to."""
    layout = compressed.layout
    starts = accumulate(map(len, layout.sections), initial=len(layout.header))
    sections = [
        replace(section, path=file, offset=start) if isinstance(section, StoredSection) else section
        for section, start in zip(layout.sections, starts, strict=False)
    ]
    return replace(compressed, layout=replace(layout, sections=sections))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("compressing on a Ray cluster", "ray") from None
    return ray


@contextmanager
def _connected(cluster: str) -> Iterator[None]:
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    own = {"include_dashboard": False} if cluster == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=cluster, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
        problem = f"no cluster at {cluster!r}: {_line(error)}; give 'local', or the address that `ray start --head` prints"
        raise ClusterError(problem) from None
    try:
        yield
    finally:
        ray.shutdown()


def _map(function: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]) -> Iterator[Result]:
    """Results in the order of the items. The largest items are started first, so that workers finish together."""
    ray = _ray()
    task = ray.remote(_run).options(num_cpus=1, max_retries=_RETRIES)
    shared = ray.put(function)
    order = sorted(range(len(items)), key=sizes.__getitem__, reverse=True)
    pending = {number: task.remote(__version__, shared, items[number]) for number in order}
    try:
        for number in range(len(items)):
            yield _result(pending[number])
            del pending[number]
    finally:
        for reference in pending.values():
            ray.cancel(reference)


def _run(version: str, function: Callable[[Item], Result], item: Item) -> Result:
    """Call a function in a worker."""
    if version != __version__:
        raise ClusterError(f"a worker has opq {__version__}, and this process {version}; install one version on all machines")
    limit_threads(1)
    return function(item)


def _result(reference: Any) -> Any:
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OpqError):
            raise error.cause from None
        raise ClusterError(f"a task failed: {_line(error.cause)}; every machine needs opq[ray] and the checkpoint") from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a worker failed {_RETRIES + 1} times: {_line(error)}; run the command again to go on") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _encode_kept(state: State, folder: Path, contents: str, item: tuple[str, LayerPlan]) -> EncodedWeight:
    """Encode a weight to a file of the folder, unless it is there already."""
    name, plan = item
    identity = json.dumps([__version__, FORMAT_VERSION, contents, name, asdict(plan)])
    path = folder / sha256(identity.encode()).hexdigest()
    if not path.exists():
        _keep(encode_named(name, PlannedWeight(state, name, plan)), path)
    return _kept(path)


def _keep(encoded: EncodedWeight, path: Path) -> None:
    parts = [bytes(part) for part in (encoded.adaptive, encoded.fast) if part is not None]
    rows = [[len(part), stored.checksum, stored.digest.hex()] for part in parts for stored in [StoredSection.of(part, path, 0)]]
    head = json.dumps({"nonzero": encoded.nonzero, "sections": rows}).encode() + b"\n"
    write_file(path, [head, *parts], overwrite=True)


def _kept(path: Path) -> EncodedWeight:
    with path.open("rb") as file:
        head = file.readline()
    found = json.loads(head)
    sizes = [size for size, _, _ in found["sections"]]
    starts = accumulate(sizes, initial=len(head))
    sections = [
        StoredSection(path, start, size, checksum, bytes.fromhex(digest))
        for (size, checksum, digest), start in zip(found["sections"], starts, strict=False)
    ]
    return EncodedWeight(sections[0], sections[1] if len(sections) > 1 else None, found["nonzero"])
