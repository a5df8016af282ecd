#!/usr/bin/env bash
# DiT-XL/2 on several machines under Slurm; put back into the queue when pre-empted or out of time.
#
#     sbatch runs/train_slurm.sh DATA RUN [options of tvmatch train]
#
# DATA and RUN must lie on a disk that all machines share. One task a GPU, started by srun itself: a signal and an exit
# code then reach each process and come back, without a launcher's time limit between them.
#
# Expected: as in runs/train_one_machine.sh for each GPU; not measured over machines. The global batch is 2048
# whatever the number of GPUs, so a run may come back on other machines.
#
# Slurm sends SIGTERM 300 s before the end (or when it pre-empts): every process saves the same step and ends with 143.
#SBATCH --job-name=tvmatch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
data=${1:?usage: sbatch $0 DATA RUN [options]}
run=${2:?usage: sbatch $0 DATA RUN [options]}
shift 2

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
if ((!SLURM_NTASKS || 2048 % SLURM_NTASKS)); then
    echo "a batch of 2048 cannot be shared alike by $SLURM_NTASKS tasks: ask for a number that divides it" >&2
    exit 2
fi
accumulate=1 # micro-steps: the fewest with which a GPU takes at most 64 samples at once
while ((2048 / (SLURM_NTASKS * accumulate) > 64)); do ((accumulate *= 2)); done
trap ':' TERM # the batch script outlives the signal, to requeue

# --kill-on-bad-exit: a process that dies ends the others. --cpus-per-task once more: of Slurm 22.05 to 23.02 srun does
# not take it from sbatch
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-12}" bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID OMP_NUM_THREADS=4
    exec python -m tvmatch train "$@"' tvmatch \
    --run "$run" --data "$data" --network DiT-XL/2 --guidance 2 \
    --steps 300000 --batch-size 2048 --accumulate "$accumulate" --learning-rate 1e-4 --warmup-steps 0 \
    --evaluation-ema 0.999 0.9999 --checkpoint-every 1000 --log-every 50 --sample-every 5000 \
    --strategy "${STRATEGY:-ddp}" "$@" &
step=$!
wait $step
code=$?
while kill -0 $step 2>/dev/null; do # the signal ended that wait; this one is for the save
    wait $step
    code=$?
done
if [ $code -eq 143 ]; then
    echo "pre-empted after a checkpoint: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
