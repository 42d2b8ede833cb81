"""A network pruned by magnitude and quantized to 8 bits by NNCF, saved as OpenVINO's files, for benchmarks/peers.py.

    PEERS/bin/python benchmarks/peers/nncf_network.py NETWORK CHECKPOINT.safetensors FOLDER

A line is [sparsity, whether batch-norm statistics are adapted]: `nncf.prune` by one threshold for the network if the sparsity
is not 0, `nncf.batch_norm_adaptation`, and `nncf.quantize` (post-training, weights and activations), all with the calibration
inputs. The evaluated network is the one that OpenVINO reads from its .xml and .bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nncf
import openvino
import torch
from modules import Reopened, answer_settings
from torch import Tensor, nn


def compress(
    dense: Callable[[], nn.Module], calibration: Tensor, setting: tuple[float, bool], folder: Path
) -> tuple[Sequence[Path], Reopened]:
    """Prune, quantize and save."""
    sparsity, adapts = setting
    model, batches = dense(), list(calibration.split(10))
    if sparsity:
        mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
        model = nncf.prune(model, mode=mode, ratio=sparsity, examples_inputs=calibration[:1])
        if adapts:
            model = nncf.batch_norm_adaptation(model, calibration_dataset=nncf.Dataset(batches))
        model = nncf.strip(model.eval(), strip_format=nncf.StripFormat.IN_PLACE, example_input=calibration[:1])
    model = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    path = folder / "network.xml"
    converted = openvino.convert_model(model, example_input=calibration[:1])
    converted.reshape([-1, *calibration.shape[1:]])
    openvino.save_model(converted, path)
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", settings)
    return [path, path.with_suffix(".bin")], lambda inputs: torch.from_numpy(compiled(inputs.numpy())[0])


if __name__ == "__main__":
    raise SystemExit(answer_settings(compress))
