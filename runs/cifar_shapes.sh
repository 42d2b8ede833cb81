#!/bin/sh
# AlexNet, VGG-16, MobileNet-V1 or ResNet-50 in the shape for 32x32 images, on CIFAR-10 (JPEG): cifar_shapes.sh NETWORK [OPTIONS]
# Not run here: it wants a GPU. Needs OPQ_DATA; goes on from the checkpoints in OPQ_RUNS (by default runs/out).
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-.venv/bin/python}" runs/cifar_shapes.py "$@"
