"""MobileNet-V1 0.75 compressed with a thousand unlabelled images, at the bytes of the real file.

Claim: calibrated on CALIBRATED of a thousand unlabelled images, one of each ImageNet class, it loses little at file ratios of 8
and 10. Other rows show the effect of six epochs of distillation on mixtures of two images.

    python benchmarks/finetune_mobilenet.py
    python benchmarks/finetune_mobilenet.py --only 8:0 10:6

It is evaluated on val1300. The standard error is about 1.1 points, so the agreement should be read with the drop. Rows go into
results/finetune.json; checkpoints go, as for finetune.py, into the folder that OPQ_RUNS names.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import imagenet
import torch
from finetune import SEED, add_row
from harness import NETWORKS, commit_of_run, data_file, runs_folder
from images import Whole
from networks.mobilenet_v1 import MobileNetV1, preprocess
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import opq
import opq.torch

DATA = "val1300, 1,000 unlabelled images"
CASES = ((8, 0), (10, 0), (12, 0), (6, 0), (10, 6), (12, 6))
"""(requested file ratio, epochs)"""
CALIBRATED = 512
DISTILLATION = opq.TrainingConfig(epochs=6, mask_update_epochs=0, reserve=0.01, seed=SEED, learning_rate=0.003, temperature=2.0)
SIZE = 224


class Scaled(Dataset[Tensor]):
    """The images of train1000_256.tar at the network's size, with values in -1..1.

    Args:
        parts: False: the whole images. True: random crops of a quarter to all of the image's area, with its aspect ratio,
            mirrored at random.
    """

    def __init__(self, *, parts: bool) -> None:
        self._images, self._parts = imagenet.unlabelled(), parts

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        image = self._images[index]
        if self._parts:
            side = round(len(image) * float(torch.empty(()).uniform_(0.25, 1.0)) ** 0.5)
            top, left = (int(torch.randint(len(image) - side + 1, ())) for _ in range(2))
            image = image[top : top + side, left : left + side]
            if torch.rand(()) < 0.5:
                image = image.flip(1)
        pixels = (image.permute(2, 0, 1).float() / 255.0 - 0.5) / 0.5
        if len(image) == SIZE:
            return pixels
        return functional.interpolate(pixels[None], (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)[0]


class Mixtures:
    """Batches of 50 random crops of the images of train1000_256.tar, each mixed with another one of its batch.

    The teacher's logits on mixtures carry more information than those on a thousand images (mixup: H. Zhang et al., arXiv
    1710.09412, 2017).
    """

    def __init__(self) -> None:
        self._batches: DataLoader[Tensor] = DataLoader(Scaled(parts=True), 50, shuffle=True, drop_last=True)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        for images in self._batches:
            share = torch.rand(len(images), 1, 1, 1)
            yield share * images + (1.0 - share) * images[torch.randperm(len(images))]


def calibration_images() -> Tensor:
    """CALIBRATED of the images, chosen at random."""
    images = Scaled(parts=False)
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))[:CALIBRATED]
    return torch.stack([images[place] for place in picked.tolist()])


def validation() -> Whole:
    """val1300 with its labels."""
    return Whole(*imagenet.evaluation(), preprocess, 50)


def main() -> None:
    """Make the rows in sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {f"{ratio}:{epochs}": (ratio, epochs) for ratio, epochs in CASES}
    parser.add_argument(
        "--only", nargs="*", choices=list(cases), help="only these rows, RATIO:EPOCHS; 0 epochs: no distillation"
    )
    arguments = parser.parse_args()
    dense = MobileNetV1()
    dense.load_state_dict(load_file(data_file(NETWORKS["mobilenet"])))
    held_out = validation()
    calibration = opq.calibrate(dense.eval(), calibration_images())
    dense_top1 = opq.evaluate(dense, held_out).top1
    print(f"dense: {dense_top1:.2f}", flush=True)
    for name in arguments.only or cases:
        ratio, epochs = cases[name]
        commit = commit_of_run(folder_of(ratio, epochs)) if epochs else None
        start = time.perf_counter()
        made = distilled(dense, calibration, ratio) if epochs else calibration.compress(compression_config(ratio))
        seconds = time.perf_counter() - start
        opq.verify(made.data)
        model = copy.deepcopy(dense)
        model.load_state_dict(opq.torch.load(made.data))
        result = opq.evaluate(model, held_out, dense=dense)
        add_row(
            {
                "network": "mobilenet",
                "data": DATA,
                "mode": "joint",
                "start": "calibrated",
                "file_ratio": made.file_ratio,
                "file_bytes": made.file_bytes,
                "nominal_ratio": opq.inspect(made.data).nominal_ratio,
                "dense_top1": dense_top1,
                "top1": result.top1,
                "epochs": epochs,
                "open_epochs": 0,
                "seconds": seconds,
                "asked_ratio": float(ratio),
                "agreement": result.agreement,
            },
            ["finetune_mobilenet.py", "--only", name],
            commit,
        )


def folder_of(ratio: int, epochs: int) -> Path:
    """The folder of a row's training."""
    return runs_folder() / "mobilenet" / f"joint_{ratio}_{epochs}"


def compression_config(ratio: int) -> opq.CompressionConfig:
    """The config of all rows, at a file ratio."""
    return opq.CompressionConfig(target=opq.Ratio(ratio), auxiliary="float16", batch_norm="folded", batch_norm_eps=1e-3)


def distilled(dense: nn.Module, calibration: opq.Calibration, ratio: int) -> opq.CompressedModel:
    """The file after the epochs of DISTILLATION."""
    finetuned = opq.finetune(
        copy.deepcopy(dense),
        Mixtures(),
        compression_config(ratio),
        DISTILLATION,
        teacher="dense",
        calibration=calibration,
        folder=folder_of(ratio, DISTILLATION.epochs),
    )
    return finetuned.compressed


if __name__ == "__main__":
    main()
