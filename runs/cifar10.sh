#!/usr/bin/env bash
# CIFAR-10 from scratch, in pixels and in one phase: DiT-S/2, 10,000 steps of 512.
#
#   bash runs/cifar10.sh OUT [DATA]       (DATA: hf:uoft-cs/cifar10, or an .npz with images and labels)
#
# What it gives has not been measured. 6,957 steps of these settings after 5 minutes of flow matching (cifar10_1gpu.sh, which ends
# by the clock) gave FID-50k 9.07, 6.54 and 5.89 in 1, 2 and 4 calls at w = 2.
set -euo pipefail
OUT=$(realpath -m "${1:?give a folder for the run}")
DATA=${2:-hf:uoft-cs/cifar10?split=train&image=img&label=label}
[[ $DATA == hf:* ]] || DATA=$(realpath -m "$DATA")
cd "$(dirname "$0")/.."

python3 benchmarks/recipe_cost.py cifar10
OPTIONS=(--recipe cifar10 --data "$DATA" --image-size 32 --run "$OUT")
python3 runs/complete.py "${OPTIONS[@]}" || python3 -m tvmatch train "${OPTIONS[@]}"
python3 -m tvmatch sample "$OUT" --nfe 1 --w 2 --count 100 --out "$OUT/one_call.png"
