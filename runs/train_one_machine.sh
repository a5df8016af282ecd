#!/usr/bin/env bash
# DiT-XL/2 on all GPUs of one machine.
#
#     runs/train_one_machine.sh DATA RUN [options of tvmatch train]
#
# DATA: latents 4x32x32 (`tvmatch encode`). The same command continues a run that was stopped, killed, or moved to a
# machine with another number of GPUs (the batch, 2048, stays that of all GPUs together).
#
# Expected: a step of 64 samples a GPU that is recorded as a CUDA graph gives 177 images/s on one H200, and two GPUs 1.92
# times one of their machine (docs/engine.md, docs/distributed.md). Steps are recorded only without accumulation, so from
# 32 GPUs on, with --graphs on. On fewer, as here, each step takes several launched micro-steps: not measured, and
# slower, for the host then takes about as long as the GPU. Eight GPUs at 177 images/s would need 5.0 days for 300,000 steps
# of 2048. One checkpoint takes 15 GiB of disk (float32: weights, target, two averages, two slots of AdamW).
#
# SIGTERM or Ctrl-C ends with a checkpoint and exit code 143 or 130; where no new checkpoint came of it, with torchrun's
# own code. torchrun waits 30 seconds for that save (newer ones have --shutdown-timeout); what is cut short never
# counts, and the one before is kept.
set -uo pipefail
data=${1:?usage: $0 DATA RUN [options]}
run=${2:?usage: $0 DATA RUN [options]}
shift 2
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
if ((!gpus || 2048 % gpus)); then
    echo "a batch of 2048 cannot be shared alike by $gpus GPUs: set GPUS to a number that divides it" >&2
    exit 2
fi
accumulate=1 # micro-steps: the fewest with which a GPU takes at most 64 samples at once
while ((2048 / (gpus * accumulate) > 64)); do ((accumulate *= 2)); done

newest() { ls "$run"/checkpoints/step_*/tvmatch.json 2>/dev/null | tail -n 1; }
stopped=0 signals=0
stop() { # stop CODE SIGNAL: pass it on, and note which checkpoint was the last
    stopped=$1 before=${before-$(newest)}
    ((signals += 1))
    [ -n "${!-}" ] || exit "$1"
    kill -"$2" $!
}
trap 'stop 143 TERM' TERM
trap 'stop 130 INT' INT
# the two dashes: torchrun would take --run for an abbreviation of an option of its own
torchrun --standalone --nproc-per-node "$gpus" -m -- tvmatch train \
    --run "$run" --data "$data" --network DiT-XL/2 --guidance 2 \
    --steps 300000 --batch-size 2048 --accumulate "$accumulate" --learning-rate 1e-4 --warmup-steps 0 \
    --evaluation-ema 0.999 0.9999 --checkpoint-every 1000 --log-every 50 --sample-every 5000 \
    --strategy "${STRATEGY:-ddp}" "$@" &
launcher=$!
seen=-1
while [ $seen -ne $signals ]; do # a signal ends a wait; the next one is for the save
    seen=$signals
    wait $launcher
    code=$?
done
# torchrun ends with 1 whatever its processes say, so the checkpoint tells whether they have saved
if [ $stopped -ne 0 ] && [ $code -ne 0 ] && [ "$(newest)" != "$before" ]; then
    code=$stopped
fi
exit $code
