#!/usr/bin/env bash
# DiT-XL/2 on all GPUs of one machine.
#
#     runs/train_one_machine.sh DATA RUN [options of tvmatch train]
#
# DATA: latents 4x32x32 (`tvmatch encode`). The same command continues a run that was stopped, killed, or moved to a
# machine with another number of GPUs (the batch, 2048, stays that of all GPUs together).
#
# Expected: on one H200, 145 images/s at 64 samples a micro-step (benchmarks/results/train_step_h200.json); eight would
# give 1,160 at perfect scaling, and 300,000 steps of 2048 in 6.1 days. Two GPUs and more have not been measured yet. One checkpoint takes 15 GiB of disk (float32: weights, target, two averages, two slots of AdamW).
#
# SIGTERM or Ctrl-C ends with a checkpoint and exit code 143 or 130. torchrun waits 30 seconds for that save
# (newer ones have --shutdown-timeout); what is cut short never counts, and the one before is kept.
set -uo pipefail
data=${1:?usage: $0 DATA RUN [options]}
run=${2:?usage: $0 DATA RUN [options]}
shift 2
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
accumulate=$((2048 / (64 * gpus)))

stopped=0
trap 'stopped=143; kill -TERM $launcher' TERM
trap 'stopped=130; kill -INT $launcher' INT
# the two dashes: torchrun would take --run for an abbreviation of an option of its own
torchrun --standalone --nproc-per-node "$gpus" -m -- tvmatch train \
    --run "$run" --data "$data" --network DiT-XL/2 --guidance 2 \
    --steps 300000 --batch-size 2048 --accumulate "$accumulate" --learning-rate 1e-4 --warmup-steps 0 \
    --evaluation-ema 0.999 0.9999 --checkpoint-every 1000 --log-every 50 --sample-every 5000 \
    --strategy "${STRATEGY:-ddp}" "$@" &
launcher=$!
wait $launcher
code=$?
if [ $stopped -ne 0 ]; then # the signal ended that wait; this one is for the save
    wait $launcher
    code=$stopped
fi
exit $code
