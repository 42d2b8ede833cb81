"""One of the paper's networks, in its shape for 32x32 images, trained on CIFAR-10 (JPEG), then finetuned to a small file.

Not run here: it wants a GPU. On a processor all four go through a step or two, with --images 128 and an epoch of each training.

    runs/cifar_shapes.sh NETWORK [--ratio X] [--dense-epochs N] [--epochs N] [--images N]

The ratio is that of dense bytes over the whole file's, by default the paper's nominal ratio of the network, which counts less
than a file. Needs OPQ_DATA; trainings go on from their checkpoints in OPQ_RUNS (by default runs/out), where the file goes too.
"""

from __future__ import annotations

import argparse
import copy

import torch
from harness import runs_folder
from images import Batches, Whole, cifar10
from networks.cifar_shapes import MAKERS
from networks.resnet_cifar import preprocess
from trainings import train

import opq

RATIOS = {"alexnet": 139.0, "vgg16": 196.0, "mobilenet-v1": 23.0, "resnet50": 38.0}
DENSE_RECIPE = opq.TrainingConfig(learning_rate=0.05, weight_decay=5e-4, warm_up=0.02)
RECIPE = opq.TrainingConfig(learning_rate=0.02)
SEED = 0


def main() -> int:
    """Train, finetune, save, evaluate; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=MAKERS)
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--dense-epochs", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=50_000, help="fewer, to try it out")
    asked = parser.parse_args()
    folder = runs_folder() / f"cifar_{asked.network}_{asked.images}_{asked.dense_epochs}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = cifar10("train")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))[: asked.images]
    loader = Batches(images[chosen], labels[chosen], preprocess)
    pixels, answers = cifar10("test")
    test = Whole(pixels[:: len(images) // asked.images], answers[:: len(images) // asked.images], preprocess)

    torch.manual_seed(SEED)
    dense = MAKERS[asked.network]().to(device)
    train(dense, loader, asked.dense_epochs, DENSE_RECIPE, folder / "dense", seed=SEED)
    print(f"{asked.network}: dense {opq.evaluate(dense, test)}", flush=True)
    model = copy.deepcopy(dense)
    ratio = asked.ratio or RATIOS[asked.network]
    name = f"ratio_{ratio:g}_{asked.epochs}"
    finetuned = opq.finetune(
        model,
        loader,
        epochs=asked.epochs,
        ratio=ratio,
        teacher=dense,
        recipe=RECIPE,
        auxiliary="8bit",
        batch_norm="canonical",
        seed=SEED,
        folder=folder / name,
    )
    finetuned.save(folder / f"{name}.opq")
    print(finetuned)
    print(f"{asked.network}: {opq.evaluate(model, test)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
