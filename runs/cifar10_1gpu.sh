#!/usr/bin/env bash
# Class-conditional CIFAR-10 on one GPU in so many minutes, and its figures.
#
#   bash runs/cifar10_1gpu.sh OUT DATA FEATURES [OBJECTIVE]
#
#   DATA      cifar10_train.npz (images, labels)         FEATURES  inception.pt, the network of published FIDs
#   OBJECTIVE terminal-velocity (default), mean-flow, flow-matching, or another of docs/methods.md
#
# MINUTES (7) counts everything of the training: Python's start, compiling, both phases, saving. The first WARM minutes of
# them train flow matching (the boundary term alone; a step of TVM takes half as long again), the rest starts from its
# averaged weights; WARM=0 leaves that out, and so does OBJECTIVE=flow-matching. While the first phase trains, another
# process compiles the step of the second into the caches that both share (PRECOMPILE=0: not; only where there is an NVIDIA
# GPU). The learning rate falls to zero over the last DECAY of each phase's time. Interrupted (TERM or INT to the script: it
# saves, and ends with 143 or 130), the same command continues; more MINUTES continue a run that is done, and take away the
# figures of what it was. Other settings of the training need another OUT (OUT/settings has those of this one).
# time.txt tells the seconds on the wall of both phases, over all attempts, those that were killed up to their last sign of
# life (OUT/alive, every second). What a second attempt does again (the start, steps that a kill lost) is counted there, but
# not taken from MINUTES: a run that goes on keeps its own clock, and of a first phase in several attempts at most WARM is.
#
# Every average of EMAS and every scale of EVALUATE_W is scored with CHOOSE samples in one call (flow matching in the last
# of NFE), of the noise of CHOOSE_SEED; the best pair then with ALSO and SAMPLES of each of SEEDS in NFE calls, and that
# average at all of EVALUATE_W with CHOOSE. (TVM's committed seed 0 of 420 s chose with the noise that it was then scored with.)
# W is one scale or a range, for which EVALUATE_W must name scales in it. PAIR="AVERAGE W" scores there and chooses nothing:
# for further seeds. Figures, samples, configs and logs go to RESULTS (default OUT/results; some 2 MB, no weights); those of
# another choice, or of other samples, w, calls or seeds, leave it for OUT/earlier. STAGES says what is done now.
#
#   420 seconds, DiT-S/4, as in the comparison with the official code: the defaults
#   20 minutes:    MINUTES=20 NETWORK=DiT-S/2 WARM=5 W=1.75:2.5 EVALUATE_W="1.75 2 2.25 2.5" EMAS="0.998 0.9995" PAIR="0.9995 2" \
#                      OPTIMIZER=muon EXTRA="--jumps wide" bash runs/cifar10_1gpu.sh ...      (EXTRA for terminal-velocity alone)
#
# Expected of the defaults on one H200, FID of 20,000 samples in 1 / 2 / 4 calls (docs/evaluation.md):
#   terminal-velocity          18.1 / 12.25 / 10.8  (three seeds; those after 0 with PAIR="0.9995 2.5", which it had chosen)
#   mean-flow                  35.7 / 13.9 / 13.1   (three seeds; PAIR="0.9995 2")
#   consistency-training       31.4 / 15.9 / 16.0   (two seeds; PAIR="0.9995 1.5")
#   inductive-moment-matching  34.4 / 15.4 / 13.15  (two seeds; PAIR="0.9995 1.25")
#   flow-matching               254 / 93.2 / 35.2   (seed 0; EMAS=0.998)
# and FID of 50,000 in 1 / 4 calls of that for 20 minutes: 9.07 / 5.89 (seed 0, w = 2, three noises in one call, of
# which SEEDS=0 has 9.05; with AdamW and the paper's jumps after 24 minutes 12.05 / 6.65); without EXTRA and PAIR mean-flow
# 30.6 / 10.5 and flow-matching 303.8 / 27.9 (seed 0).
# Another GPU trains more steps or fewer in the time.
set -euo pipefail
# In the background of a script INT is ignored, for good, and by all that is started. Python can undo that, bash cannot; here,
# because what is started below must hear a signal from its first moment.
[[ $(trap -p INT) != *"''"* ]] || exec python3 -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])' "$0" "$@"
OUT=$(realpath -m "${1:?give a folder for the run}")
DATA=$(realpath -m "${2:?give cifar10_train.npz}")
FEATURES=$(realpath -m "${3:?give inception.pt}")
OBJECTIVE=${4:-terminal-velocity}
RESULTS=$(realpath -m "${RESULTS:-$OUT/results}")
STATISTICS=$(realpath -m "${STATISTICS:-$(dirname "$OUT")/cifar10_statistics.safetensors}")
cd "$(dirname "$0")/.."
TVMATCH=${TVMATCH:-python3 -m tvmatch}
RECORDS="python3 runs/cifar10_records.py"
STAGES=${STAGES:-train evaluate}
MINUTES=${MINUTES:-7} WARM=${WARM:-2} DECAY=${DECAY:-0.5} WARM_DECAY=${WARM_DECAY:-0} START=${START:-12}
NETWORK=${NETWORK:-DiT-S/4} BATCH=${BATCH:-512} OPTIMIZER=${OPTIMIZER:-adamw} LR=${LR:-1e-3} WARM_LR=${WARM_LR:-$LR} SEED=${SEED:-0}
[[ -n ${W:-} ]] || EVALUATE_W=${EVALUATE_W:-1.25 1.5 2 2.5}
W=${W:-1.25:2.5}
EMAS=${EMAS:-0.995 0.998 0.9995} WARM_EMA=${WARM_EMA:-0.995} TARGET_EMA=${TARGET_EMA:-0.99}
SAMPLES=${SAMPLES:-50000} CHOOSE=${CHOOSE:-3000} ALSO=${ALSO:-20000} NFE=${NFE:-1 2 4} EVALUATE_W=${EVALUATE_W:-$W}
SEEDS=${SEEDS:-0} CHOOSE_SEED=${CHOOSE_SEED:-1000} # of the noise; the samples that choose are none of those that are scored
TERMINAL_EVERY=${TERMINAL_EVERY:-4}  # TVM: the terminal term of every n-th sample only (docs/ablations.md)
WARMUP_STEPS=${WARMUP_STEPS:-100}
EXTRA=${EXTRA:-}          # more options of `tvmatch train`, for the last phase
[[ $EVALUATE_W != *:* ]] || { # after minutes of training `evaluate` would say so
    echo "W=$W is a range: EVALUATE_W must name scales in it, as in EVALUATE_W='1 1.5 2'" >&2
    exit 2
}
PAIR=${PAIR:-}
[[ -z $PAIR || (" $EMAS " == *" ${PAIR%% *} "* && $PAIR =~ ^[0-9.]+\ [0-9.]+$) ]] || {
    echo "PAIR='$PAIR' should be one of EMAS='$EMAS', a blank and a guidance scale, as in PAIR='${EMAS%% *} 2'" >&2
    exit 2
}
PRECOMPILE=${PRECOMPILE:-$(command -v nvidia-smi > /dev/null && echo 1 || echo 0)}
# a folder is of one training: with other settings nothing would be trained, and the figures of the old one reported
GIVEN=()
for name in OBJECTIVE DATA NETWORK BATCH OPTIMIZER LR WARM_LR SEED W WARM DECAY WARM_DECAY START EMAS WARM_EMA TARGET_EMA TERMINAL_EVERY \
    WARMUP_STEPS EXTRA; do GIVEN+=("$name=${!name}"); done
$RECORDS settings "$OUT" "$([[ " $STAGES " != *" train "* ]] || echo "$MINUTES")" "${GIVEN[@]}"
mkdir -p "$RESULTS"

# seconds of training wall time until now, over all attempts
spent() { cat "$OUT/seconds" 2>/dev/null || echo 0; }

# count an attempt that was killed: from its start to the last sign of life
recount() {
    [[ -f $OUT/attempt ]] || return 0
    local began before last=0 at sign
    read -r began before < "$OUT/attempt"
    for sign in "$OUT/attempt" "$OUT/alive" "$OUT/warm/metrics.jsonl" "$OUT/run/metrics.jsonl"; do
        at=$(stat -c %Y "$sign" 2> /dev/null || echo 0)
        last=$((at > last ? at : last))
    done
    echo $((before + last - began)) > "$OUT/seconds"
    rm -f "$OUT/attempt" "$OUT/alive"
}

# TERM goes on to the `tvmatch` that runs as INT, and INT as TERM: either lets it save, but a second one of a kind ends it at
# once, and it may have had the first (Slurm and systemd tell every process).
signals=0 stopped='' RUNNING=''
stop() { # code to end with, signal to pass on
    stopped=$1
    ((signals += 1))
    [[ -z $RUNNING ]] || kill -"$2" "$RUNNING" 2> /dev/null || true
}

passing() { # a command to which signals are passed on; after one none is begun
    local code=0 seen=-1
    [[ -z $stopped ]] || return "$stopped"
    set -m # without this it would ignore INT
    "$@" &
    RUNNING=$!
    set +m
    [[ -z $stopped ]] || stop "$stopped" TERM # it came meanwhile
    while ((seen != signals)); do # a signal ends a wait; the next one is for the save
        seen=$signals
        wait $RUNNING && code=0 || code=$?
    done
    RUNNING=''
    [[ -z $stopped || $code -le 128 ]] || code=$stopped
    return $code
}

train() { # folder, options: one `tvmatch train`
    local run=$1
    shift
    passing $TVMATCH train --run "$run" --data "$DATA" --network "$NETWORK" --batch-size "$BATCH" --guidance "$W" --flip \
        --optimizer "$OPTIMIZER" --seed "$SEED" --clip-gradient 1 --log-every 20 --sample-every 0 --checkpoint-every "${CHECKPOINT:-2000}" \
        --keep-checkpoints 1 "$@"
}

phase() { # folder, minutes of this phase, options; its wall time is added to the file
    local run=$1 minutes=$2 code=0 began before alive
    shift 2
    began=$(date +%s) before=$(spent)
    echo "$began $before" > "$OUT/attempt"
    while kill -0 $$ 2> /dev/null; do touch "$OUT/alive" && sleep 1; done > /dev/null 2>&1 &
    alive=$!
    train "$run" --minutes "$minutes" --steps 10000000 "$@" || code=$?
    kill $alive 2> /dev/null || true
    echo $((before + $(date +%s) - began)) > "$OUT/seconds"
    rm -f "$OUT/attempt" "$OUT/alive"
    [[ $code == 0 ]] ||
        echo "$run ended with code $code after $(spent) s in all; the same command goes on where it stopped" >&2
    return $code
}

# Compile the step of the last phase, whose options are given, once the first phase trains (and so has compiled its own).
# What it does not get done by then the last phase does itself.
precompile() {
    passing() { "$@"; } # it stays in the process group that is killed
    until [[ -s $OUT/warm/metrics.jsonl ]]; do sleep 1; done
    train "$OUT/precompile" --steps 1 "$@" > "$OUT/precompile.log" 2>&1 || true
}

BESIDE=''
end_precompiling() { # by KILL: another signal waits for the end of its step, which is the compilation
    [[ -n $BESIDE ]] || return 0
    { kill -KILL -- "-$BESIDE"; wait "$BESIDE"; rm -rf "$OUT/precompile"; } 2> /dev/null || true
    BESIDE=''
}

train_stage() {
    local commit before counted left
    [[ $(cat "$OUT/trained" 2> /dev/null) != "$MINUTES" ]] || return 0
    recount
    put_aside # of the weights until now: beside those to come they would be figures of another network
    rm -f "$OUT/trained" "$RESULTS"/{evaluate.log,time.txt}
    commit=${COMMIT:-$(git describe --always --dirty=+ --exclude='*' 2> /dev/null || echo unknown)}
    echo "$(date -u +%FT%TZ), commit $commit: $OBJECTIVE, MINUTES=$MINUTES, seed $SEED"
    grep -qxF "$commit" "$RESULTS/commit.txt" 2> /dev/null || echo "$commit" >> "$RESULTS/commit.txt" # a line for each that trained
    OPTIONS=(--objective "$OBJECTIVE" --learning-rate "$LR" --decay-share "$DECAY" --warmup-steps "$WARMUP_STEPS"
        --evaluation-ema $EMAS $EXTRA)
    # only these learn jumps from an average of the weights
    [[ $OBJECTIVE != terminal-velocity && $OBJECTIVE != shortcut ]] || OPTIONS+=(--target-ema "$TARGET_EMA")
    [[ $OBJECTIVE != terminal-velocity ]] || OPTIONS+=(--terminal-every "$TERMINAL_EVERY")
    [[ $OBJECTIVE == flow-matching || $WARM == 0 ]] || {
        [[ -f $OUT/warm_seconds ]] || { # the start of Python and the last save count too: some START seconds
            if [[ $PRECOMPILE == 1 ]]; then
                rm -rf "$OUT/precompile"
                set -m # a process group, to kill
                precompile "${OPTIONS[@]}" &
                BESIDE=$!
                set +m
            fi
            before=$(spent)
            phase "$OUT/warm" "$(python3 -c "print(max($WARM - $START / 60, 0.01))")" --objective flow-matching \
                --learning-rate "$WARM_LR" --decay-share "$WARM_DECAY" --warmup-steps 200 --evaluation-ema "$WARM_EMA"
            counted=$(python3 -c "print(min($(spent), round(60 * $WARM)) if $before else $(spent))")
            echo "$counted" > "$OUT/warm_seconds" # and so it is done
            end_precompiling
        }
        OPTIONS+=(--initial "$OUT/warm")
    }
    # what is left after the first phase, as its clock on the wall says; a run that goes on keeps its own clock
    [[ -f $OUT/minutes && -d $OUT/run && $(cut -d' ' -f1 "$OUT/minutes") == "$MINUTES" ]] || {
        counted=$(cat "$OUT/warm_seconds" 2> /dev/null || echo 0)
        left=$(python3 -c "print(max($MINUTES - ($counted + $START) / 60, 0.01))")
        echo "$MINUTES $left" > "$OUT/minutes"
    }
    phase "$OUT/run" "$(cut -d' ' -f2 "$OUT/minutes")" "${OPTIONS[@]}"
    echo "$MINUTES" > "$OUT/trained"
    echo "trained: $(spent) s of wall time, $MINUTES minutes were given" | tee "$RESULTS/time.txt"
    publish
}

score() { # name of the result, average, samples, more options of `tvmatch evaluate`, which overwrites no other evaluation
    local name=$1 ema=$2 samples=$3 asked
    shift 3
    asked="average $ema, $samples samples, $*"
    [[ ! -f $OUT/$name.asked || $(< "$OUT/$name.asked") == "$asked" ]] || put_aside "$name" "$name.json"
    mkdir -p "$(dirname "$OUT/$name")"
    echo "$asked" > "$OUT/$name.asked"
    passing $TVMATCH evaluate "$OUT/run" --features "$FEATURES" --statistics "$STATISTICS" --ema "$ema" \
        --samples "$samples" "$@" --out "$OUT/$name.json"
    publish # a kill takes away what is not scored yet, no more
}

put_aside() { # names in OUT (default: of all figures), which go to a folder of their own; RESULTS has none until `publish`
    local aside name
    aside=$OUT/earlier/$(date -u +%Y%m%dT%H%M%SZ)
    while [[ -e $aside ]]; do aside+=_; done
    [[ $# != 0 ]] || set -- best choose $(cd "$OUT" && echo evaluation* tradeoff*)
    for name in "$@"; do
        [[ ! -e $OUT/$name ]] || { mkdir -p "$(dirname "$aside/$name")" && mv "$OUT/$name" "$aside/$name"; }
    done
    rm -f "$RESULTS"/{choose_,samples_,nearest_,evaluation,tradeoff,table}*
}

evaluate_stage() {
    [[ -f $STATISTICS ]] || passing $TVMATCH statistics "$DATA" "$STATISTICS" --features "$FEATURES" --keep "${KEEP:-50000}"
    # a choice among other candidates is none among these, and what was scored there is not beside what is now
    CANDIDATES="$EMAS; $EVALUATE_W; $CHOOSE; $CHOOSE_SEED; $PAIR"
    [[ $(cat "$OUT/chosen_among" 2>/dev/null) == "$CANDIDATES" ]] || put_aside
    echo "$CANDIDATES" > "$OUT/chosen_among"
    [[ -z $PAIR ]] || echo "$PAIR" > "$OUT/best"
    [[ -s $OUT/best ]] || {
        CALLS=1
        [[ $OBJECTIVE != flow-matching ]] || CALLS=${NFE##* }
        for ema in $EMAS; do
            score "choose/ema_$ema" "$ema" "$CHOOSE" --w $EVALUATE_W --nfe "$CALLS" --seeds "$CHOOSE_SEED"
        done
        $RECORDS best "$OUT/choose" > "$OUT/best.tmp"
        mv "$OUT/best.tmp" "$OUT/best"
    }
    read -r EMA BEST_W < "$OUT/best"
    # the official code and the prototype were measured with 20,000
    [[ $ALSO == 0 ]] || score "evaluation_$ALSO" "$EMA" "$ALSO" --w "$BEST_W" --nfe $NFE --seeds $SEEDS
    [[ $SAMPLES == 0 ]] || score evaluation "$EMA" "$SAMPLES" --w "$BEST_W" --nfe $NFE --seeds $SEEDS
    [[ $EVALUATE_W != *" "* ]] || score tradeoff "$EMA" "$CHOOSE" --w $EVALUATE_W --nfe $NFE --seeds $SEEDS
}

# what may go into the repository, of whatever is there by now: no weights, no tables by time
publish() {
    local from to phase path
    keep() { [[ ! -f $1 ]] || cp "$1" "$2" || true; }
    keep "$OUT/run/config.yaml" "$RESULTS/"
    keep "$OUT/warm/config.yaml" "$RESULTS/warm_config.yaml"
    for phase in warm run; do
        [[ ! -f $OUT/$phase/metrics.jsonl ]] || $RECORDS metrics "$OUT/$phase/metrics.jsonl" > "$RESULTS/${phase}_metrics.jsonl"
    done
    for from in "evaluation_$ALSO" evaluation; do # the same first samples: the later have the better neighbours' distances
        keep "$OUT/$from.json" "$RESULTS/"
        for path in "$OUT/$from"/*.png; do keep "$path" "$RESULTS/"; done
    done
    keep "$OUT/evaluation_$ALSO/table.md" "$RESULTS/evaluation_$ALSO.md"
    keep "$OUT/evaluation/table.md" "$RESULTS/"
    keep "$OUT/tradeoff.json" "$RESULTS/"
    keep "$OUT/tradeoff/tradeoff.png" "$RESULTS/tradeoff_of_w.png"
    keep "$OUT/tradeoff/table.md" "$RESULTS/tradeoff.md"
    for path in "$OUT"/choose/*.json; do keep "$path" "$RESULTS/choose_$(basename "$path")"; done
}

stage() { # train or evaluate
    TEE=$!
    "$1_stage"
}

finish() { # also of a stage that was interrupted
    end_precompiling
    publish
    echo "results: $RESULTS"
    exec >&- 2>&-
    wait "$TEE" || true # until it has written what is in its pipe
}
TEE=''
trap finish EXIT
trap 'stop 143 INT' TERM
trap 'stop 130 TERM' INT
trap 'stop 129 TERM' HUP

# tee outlives the signal that ends a stage, which has things to say while it saves
for name in train evaluate; do
    [[ " $STAGES " != *" $name "* ]] ||
        stage "$name" > >(trap '' TERM INT HUP && exec tee -a "$RESULTS/$name.log") 2>&1
done
