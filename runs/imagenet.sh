#!/bin/sh
# One of the paper's networks on ImageNet, as imagenet_*.sh call it: imagenet.sh MODEL WEIGHTS SPARSITY BITS
# It was not run in full, for lack of ImageNet and a GPU. On ten images, with random weights, all four networks run.
#
# IMAGENET   a folder with train/ and val/, each with a folder per class
# OUT        the folder of the file, the checkpoints and the evaluation; by default runs/out
# EPOCHS, BATCH, WORKERS, RATE   8, 256, 8 and 0.01 by default
# WEIGHTS    instead of the published ones: a checkpoint, or "none" for random ones, as a quick test
# OPQ        the opq command; by default that of the Makefile's environment
set -eu
model=$1 weights=${WEIGHTS:-$2} sparsity=$3 bits=$4
: "${IMAGENET:?set it to a folder with train/ and val/}"
opq=${OPQ:-.venv/bin/opq}
out=${OUT:-runs/out}
name=imagenet_$(echo "$model" | tr ':' '_')

mkdir -p "$out"
$opq finetune "$model" --weights "$weights" --data "$IMAGENET" --sparsity "$sparsity" --bits "$bits" --epochs "${EPOCHS:-8}" \
    --batch "${BATCH:-256}" --workers "${WORKERS:-8}" --learning-rate "${RATE:-0.01}" --run "$out/$name" --force -o "$out/$name.opq"
$opq inspect "$out/$name.opq" | tail -n 3
$opq evaluate "$model" "$out/$name.opq" --weights "$weights" --data "$IMAGENET" --batch "${BATCH:-256}" --workers "${WORKERS:-8}"
