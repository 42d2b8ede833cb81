"""A network through NNCodec with its own tuning, which needs labels, for benchmarks/peers.py.

    PEERS/bin/python benchmarks/peers/nncodec_tuned.py NETWORK CHECKPOINT.safetensors FOLDER

A line is [QP, sparsity, epochs]: the package's sparsification if the sparsity is not 0, then its options `lsa` and `fine_tune`.
They train a scale for each output of a layer, biases and batch norms, but not the weights, on FOLDER's calibration inputs and
labels.npy, by Adam at the default rate of `nncodec.nn`. Every fifth image is held out, and the best epoch on those is kept, as
the package does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import before_nncodec  # noqa: F401
import numpy as np
import torch
from modules import Reopened, answer_settings
from nncodec import nnc
from nncodec.framework.applications.utils import evaluation, train
from nncodec.framework.applications.utils.sparsification import apply_unstruct_spars_v2
from nncodec.framework.pytorch_model import np_to_torch, torch_to_numpy
from nncodec.framework.use_case_init import ModelSetting, use_cases
from nncodec.nn import nncargs
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BATCH, HELD_BACK = 64, 5


def compress(
    dense: Callable[[], nn.Module], calibration: Tensor, setting: tuple[int, float, int], folder: Path
) -> tuple[Sequence[Path], Reopened]:
    """Sparsify, tune and save."""
    step, sparsity, epochs = setting
    labels = torch.from_numpy(np.load(folder / "labels.npy"))
    held_back = torch.arange(len(labels)) % HELD_BACK == 0

    def images(root: str, split: str) -> TensorDataset:
        part = ~held_back if split == "train" else held_back
        return TensorDataset(calibration[part], labels[part])

    use_cases["labelled"] = ModelSetting(
        None, evaluation.evaluate_classification_model, train.train_classification_model, images, nn.CrossEntropyLoss()
    )
    model, path = dense(), folder / "network.nnc"
    if sparsity:
        sparse = apply_unstruct_spars_v2(step, torch_to_numpy(model.state_dict()), sparsity, np.int32(nncargs["qp_density"]))
        model.load_state_dict(np_to_torch(sparse))
    nnc.compress_model(
        model,
        bitstream_path=str(path),
        qp=step,
        use_dq=False,
        lsa=True,
        fine_tune=True,
        use_case="labelled",
        dataset_path=str(folder),
        learning_rate=nncargs["lr"],
        epochs=epochs,
        batch_size=BATCH,
        num_workers=0,
        verbose=False,
    )
    reopened = dense()
    own = reopened.state_dict()
    decoded = nnc.decompress(str(path), reconstruct_lsa=True)
    # Counters of batches come back under no name; a network that is only evaluated does not need them.
    known = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    tensors = {name: torch.as_tensor(decoded[name]).reshape(tensor.shape) for name, tensor in known.items()}
    reopened.load_state_dict({**own, **tensors})
    return [path], reopened


if __name__ == "__main__":
    raise SystemExit(answer_settings(compress))
