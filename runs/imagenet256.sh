#!/usr/bin/env bash
# ImageNet 256 with the paper's settings, from the pictures to samples. Not run here: what it costs is a projection,
# which the first lines print (python3 benchmarks/recipe_cost.py).
#
#   bash runs/imagenet256.sh PICTURES OUT [CALLS]     (PICTURES: ILSVRC2012's training folder, one sub-folder a class,
#                                                     with LOC_synset_mapping.txt copied there as class_names.txt)
#
# CALLS is 1 or 4: the paper trains one network for each, at the guidance scale of its figure
# (w = 2 for 1 call, FID 3.29; w = 1.75 for 4 calls, FID 1.99).
# GPUS: of this machine (default: all). AT_A_TIME: samples that a GPU computes at once; 64 took 78 GiB of an H200.
# With fewer than 32 GPUs a step takes several micro-steps, which are launched and not recorded: not measured, and slower.
set -euo pipefail
PICTURES=$(realpath -m "${1:?give the training folder of ILSVRC2012}")
OUT=$(realpath -m "${2:?give a folder for latents and run}")
CALLS=${3:-1}
[[ ! -d ${CODEC:-} ]] || CODEC=$(realpath "$CODEC") # not a name, as those on the hub are
cd "$(dirname "$0")/.."
if [[ $CALLS != 1 && $CALLS != 4 ]]; then
    echo "CALLS is 1 or 4, as there are recipes for, not '$CALLS'" >&2
    exit 2
fi
RECIPE=imagenet256-$CALLS
GPUS=${GPUS:-$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))')}
AT_A_TIME=${AT_A_TIME:-64}
if ((!GPUS || 2048 % GPUS)); then
    echo "a batch of 2048 cannot be shared alike by $GPUS GPUs: set GPUS to a number that divides it" >&2
    exit 2
fi
ACCUMULATE=1 # micro-steps: the fewest with which a GPU takes at most AT_A_TIME samples at once
while ((2048 / (GPUS * ACCUMULATE) > AT_A_TIME)); do ((ACCUMULATE *= 2)); done

python3 benchmarks/recipe_cost.py "$RECIPE"
LAUNCH="torchrun --standalone --nproc-per-node $GPUS -m -- tvmatch"
$LAUNCH encode "$PICTURES" "$OUT/latents256" --codec ${CODEC:-stabilityai/sd-vae-ft-mse} --image-size 256
OPTIONS=(--recipe "$RECIPE" --data "$OUT/latents256" --run "$OUT/$RECIPE" --accumulate $ACCUMULATE)
python3 runs/complete.py "${OPTIONS[@]}" || $LAUNCH train "${OPTIONS[@]}"
python3 -m tvmatch sample "$OUT/$RECIPE" --nfe "$CALLS" --count 64 --class goldfish --out "$OUT/goldfish.png"
