#!/bin/sh
# CIFAR-10 (JPEG): the rows of benchmarks/results/finetune.json for one network, by default ResNet-20.
# Needs OPQ_DATA; goes on from the checkpoints in OPQ_RUNS (by default runs/out) when it was stopped.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python benchmarks/finetune.py "${1:-resnet20}"
