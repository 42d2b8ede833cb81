"""One of the paper's networks, adapted to 32x32 images, trained on CIFAR-10 (JPEG) and finetuned to a small file.

It needs a GPU and was not run in full. On a CPU all four networks run a few steps, with --images 128 and one epoch per
training.

    runs/cifar_shapes.sh NETWORK [--ratio X] [--dense-epochs N] [--epochs N] [--images N]

The ratio is dense bytes over the bytes of the whole file. Its default is the paper's nominal ratio of the network, which does
not count all bytes of a file. The script needs OPQ_DATA. Trainings resume from their checkpoints in OPQ_RUNS (by default
runs/out), where the file goes too.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace

import torch
from harness import runs_folder
from images import Batches, Whole, cifar10
from networks.cifar_shapes import MAKERS
from networks.resnet_cifar import preprocess
from trainings import train

import opq

RATIOS = {"alexnet": 139.0, "vgg16": 196.0, "mobilenet-v1": 23.0, "resnet50": 38.0}
SEED = 0
DENSE = opq.TrainingConfig(epochs=1, seed=SEED, learning_rate=0.05, weight_decay=5e-4, warmup=0.02)
FINETUNING = opq.TrainingConfig(epochs=1, seed=SEED, learning_rate=0.02)
"""Both with the number of epochs of the command line."""


def main() -> int:
    """Train, finetune, save, evaluate; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=MAKERS)
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--dense-epochs", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=50_000, help="fewer for a quick test")
    arguments = parser.parse_args()
    folder = runs_folder() / f"cifar_{arguments.network}_{arguments.images}_{arguments.dense_epochs}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = cifar10("train")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))[: arguments.images]
    loader = Batches(images[chosen], labels[chosen], preprocess)
    pixels, answers = cifar10("test")
    test = Whole(pixels[:: len(images) // arguments.images], answers[:: len(images) // arguments.images], preprocess)

    torch.manual_seed(SEED)
    dense = MAKERS[arguments.network]().to(device)
    train(dense, loader, replace(DENSE, epochs=arguments.dense_epochs), folder / "dense")
    print(f"{arguments.network}: dense {opq.evaluate(dense, test)}", flush=True)
    model = copy.deepcopy(dense)
    ratio = arguments.ratio or RATIOS[arguments.network]
    name = f"ratio_{ratio:g}_{arguments.epochs}"
    finetuned = opq.finetune(
        model,
        loader,
        opq.CompressionConfig(target=opq.Ratio(ratio), auxiliary="uint8", batch_norm="folded"),
        replace(FINETUNING, epochs=arguments.epochs),
        teacher=dense,
        folder=folder / name,
    )
    finetuned.save(folder / f"{name}.opq")
    print(finetuned)
    print(f"{arguments.network}: {opq.evaluate(model, test)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
