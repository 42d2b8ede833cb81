#!/bin/sh
# AlexNet, VGG-16, MobileNet-V1 or ResNet-50 adapted to 32x32 images, on CIFAR-10 (JPEG): cifar_shapes.sh NETWORK [OPTIONS]
# It needs a GPU and was not run in full. It needs OPQ_DATA, and resumes from the checkpoints in OPQ_RUNS (by default runs/out).
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-.venv/bin/python}" runs/cifar_shapes.py "$@"
