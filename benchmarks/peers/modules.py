"""Shared code of the scripts of tools that compress modules: the network, its inputs, and the answer to every setting."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answering import answer_lines
from networks.makers import MAKERS
from safetensors.torch import load_file
from torch import Tensor, nn

Reopened = Callable[[Tensor], Tensor]
"""The network as it is read from its files: inputs to logits."""

Compress = Callable[[Callable[[], nn.Module], Tensor, Any, Path], tuple[Sequence[Path], Reopened]]
"""(makes the dense network, calibration inputs, setting, folder) -> the files written, and the network in them."""


def answer_settings(compress: Compress) -> int:
    """Answer settings with files and logits; the exit status.

    The command line is NETWORK CHECKPOINT FOLDER; the folder holds inputs.npy and calibration.npy.
    """
    name, checkpoint, place = sys.argv[1:]
    torch.set_num_threads(1)
    folder = Path(place)
    inputs, calibration = (torch.from_numpy(np.load(folder / f"{part}.npy")) for part in ("inputs", "calibration"))

    def dense() -> nn.Module:
        model = MAKERS[name]()
        model.load_state_dict(load_file(checkpoint), strict=False)
        return model.eval()

    def answer(setting: Any) -> dict[str, Any]:
        files, reopened = compress(dense, calibration, setting, folder)
        with torch.no_grad():
            np.save(folder / "logits.npy", torch.cat([reopened(batch) for batch in inputs.split(100)]).numpy())
        return {"files": [str(file) for file in files], "logits": str(folder / "logits.npy")}

    return answer_lines(answer)
