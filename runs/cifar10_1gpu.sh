#!/usr/bin/env bash
# Class-conditional CIFAR-10 on one GPU in so many minutes, and its figures.
#
#   bash runs/cifar10_1gpu.sh OUT DATA FEATURES [OBJECTIVE]
#
#   DATA      cifar10_train.npz (images, labels)         FEATURES  inception.pt, the network of published FIDs
#   OBJECTIVE terminal-velocity (default), mean-flow, flow-matching, or another of docs/methods.md
#
# MINUTES (7) counts everything of the training: Python's start, compiling, both phases, saving. The first WARM minutes of
# them train flow matching (the boundary term alone: a step is some three times cheaper), the rest starts from its
# averaged weights; WARM=0 leaves that out, and so does OBJECTIVE=flow-matching. While the first phase trains, another
# process compiles the step of the second into the caches that both share (PRECOMPILE=0: not; only where there is an NVIDIA
# GPU). The learning rate falls to zero over the last DECAY of each phase's time. Interrupted, the same command
# continues; more MINUTES continue a run that is done.
#
# Every average of EMAS and every scale of EVALUATE_W is scored with CHOOSE samples in one call; the best pair then with
# ALSO and SAMPLES in NFE calls, and that average at all of EVALUATE_W with CHOOSE. W is one scale or a range, for which
# EVALUATE_W must name scales in it. PAIR="AVERAGE W" scores there and chooses nothing: for further seeds. Figures, samples,
# config and log go to RESULTS (default OUT/results), without weights. STAGES says what is done now.
#
#   420 seconds, DiT-S/4, as in the comparison with the official code: the defaults
#   25 minutes:    MINUTES=25 NETWORK=DiT-S/2 WARM=6 W=1.25:3 EVALUATE_W="2 2.25 2.5" EMAS="0.998 0.9995" bash runs/cifar10_1gpu.sh ...
#
# Expected of the defaults on one H200, FID of 20,000 samples in 1 / 2 / 4 calls (docs/evaluation.md):
#   terminal-velocity   18.1 / 12.2 / 10.7   (three seeds; those after 0 with PAIR="0.9995 2.5", which it had chosen)
#   mean-flow           37.3 / 14.0 / 13.2   (three seeds; PAIR="0.9995 2")
#   flow-matching        282 /  100 / 35.9   (seed 0, EMAS=0.998)
# and FID of 50,000 in 1 / 4 calls of that for 25 minutes, in 23 (W and WARM as there): 12.1 / 6.6 (w = 2.5 / 2).
# Another GPU trains more steps or fewer in the time.
set -euo pipefail
OUT=$(realpath -m "${1:?give a folder for the run}")
DATA=$(realpath -m "${2:?give cifar10_train.npz}")
FEATURES=$(realpath -m "${3:?give inception.pt}")
OBJECTIVE=${4:-terminal-velocity}
RESULTS=$(realpath -m "${RESULTS:-$OUT/results}")
STATISTICS=$(realpath -m "${STATISTICS:-$(dirname "$OUT")/cifar10_statistics.safetensors}")
cd "$(dirname "$0")/.."
TVMATCH=${TVMATCH:-python3 -m tvmatch}
STAGES=${STAGES:-train evaluate}
MINUTES=${MINUTES:-7} WARM=${WARM:-2} DECAY=${DECAY:-0.5} WARM_DECAY=${WARM_DECAY:-0}
NETWORK=${NETWORK:-DiT-S/4} BATCH=${BATCH:-512} LR=${LR:-1e-3} WARM_LR=${WARM_LR:-$LR} SEED=${SEED:-0}
[[ -n ${W:-} ]] || EVALUATE_W=${EVALUATE_W:-1.25 1.5 2 2.5}
W=${W:-1.25:2.5}
EMAS=${EMAS:-0.995 0.998 0.9995} WARM_EMA=${WARM_EMA:-0.995} TARGET_EMA=${TARGET_EMA:-0.99}
SAMPLES=${SAMPLES:-50000} CHOOSE=${CHOOSE:-3000} ALSO=${ALSO:-20000} NFE=${NFE:-1 2 4} EVALUATE_W=${EVALUATE_W:-$W} SEEDS=${SEEDS:-0}
TERMINAL_EVERY=${TERMINAL_EVERY:-4}  # TVM: the terminal term of every n-th sample only (docs/ablations.md)
[[ $EVALUATE_W != *:* ]] || { # after minutes of training `evaluate` would say so
    echo "W=$W is a range: EVALUATE_W must name scales in it, as in EVALUATE_W='1 1.5 2'" >&2
    exit 2
}
PAIR=${PAIR:-}
[[ -z $PAIR || (" $EMAS " == *" ${PAIR%% *} "* && $PAIR =~ ^[0-9.]+\ [0-9.]+$) ]] || {
    echo "PAIR='$PAIR' should be one of EMAS='$EMAS', a blank and a guidance scale, as in PAIR='${EMAS%% *} 2'" >&2
    exit 2
}
EXTRA=${EXTRA:-}          # more options of `tvmatch train`, for the last phase
PRECOMPILE=${PRECOMPILE:-$(command -v nvidia-smi > /dev/null && echo 1 || echo 0)}
mkdir -p "$OUT" "$RESULTS"

# seconds of training wall time until now, over all interrupted attempts
spent() { cat "$OUT/seconds" 2>/dev/null || echo 0; }

train() { # folder, options: one `tvmatch train`
    local run=$1
    shift
    $TVMATCH train --run "$run" --data "$DATA" --network "$NETWORK" --batch-size "$BATCH" --guidance "$W" --flip \
        --seed "$SEED" --clip-gradient 1 --log-every 20 --sample-every 0 --checkpoint-every "${CHECKPOINT:-2000}" \
        --keep-checkpoints 1 "$@"
}

phase() { # folder, minutes of this phase, options; its wall time is added to the file
    local run=$1 minutes=$2 began=$SECONDS code=0
    shift 2
    train "$run" --minutes "$minutes" --steps 10000000 "$@" || code=$?
    echo $(($(spent) + SECONDS - began)) > "$OUT/seconds"
    [[ $code == 0 ]] ||
        echo "$run ended with code $code after $(spent) s in all; the same command goes on where it stopped" >&2
    return $code
}

# Compile the step of the last phase, whose options are given, once the first phase trains (and so has compiled its own).
# What it does not get done by then the last phase does itself.
precompile() {
    until [[ -s $OUT/warm/metrics.jsonl ]]; do sleep 1; done
    train "$OUT/precompile" --steps 1 "$@" > "$OUT/precompile.log" 2>&1 || true
}

if [[ " $STAGES " == *" train "* && $(cat "$OUT/trained" 2>/dev/null) != "$MINUTES" ]]; then
    OPTIONS=(--objective "$OBJECTIVE" --learning-rate "$LR" --decay-share "$DECAY" --warmup-steps "${WARMUP_STEPS:-100}"
        --evaluation-ema $EMAS $EXTRA)
    # only these learn jumps from an average of the weights
    [[ $OBJECTIVE != terminal-velocity && $OBJECTIVE != shortcut ]] || OPTIONS+=(--target-ema "$TARGET_EMA")
    [[ $OBJECTIVE != terminal-velocity ]] || OPTIONS+=(--terminal-every "$TERMINAL_EVERY")
    [[ $OBJECTIVE == flow-matching || $WARM == 0 ]] || {
        [[ -f $OUT/warm/done ]] || { # the start of Python and the last save count too: some START seconds
            BESIDE=
            if [[ $PRECOMPILE == 1 ]]; then
                rm -rf "$OUT/precompile"
                precompile "${OPTIONS[@]}" &
                BESIDE=$!
                trap 'pkill -P $BESIDE || true; kill $BESIDE 2> /dev/null || true' EXIT
            fi
            phase "$OUT/warm" "$(python3 -c "print(max($WARM - ${START:-12} / 60, 0.01))")" --objective flow-matching \
                --learning-rate "$WARM_LR" --decay-share "$WARM_DECAY" --warmup-steps 200 --evaluation-ema "$WARM_EMA"
            touch "$OUT/warm/done"
            if [[ -n $BESIDE ]]; then
                pkill -P $BESIDE || true
                kill $BESIDE 2> /dev/null || true
                wait $BESIDE || true
                trap - EXIT
                rm -rf "$OUT/precompile"
            fi
        }
        OPTIONS+=(--initial "$OUT/warm")
    }
    # what is left after the first phase, as its clock on the wall says; a run that goes on keeps its own clock
    [[ -f $OUT/minutes && -d $OUT/run && $(cut -d' ' -f1 "$OUT/minutes") == "$MINUTES" ]] ||
        echo "$MINUTES $(python3 -c "print(max($MINUTES - ($(cat "$OUT/warm_seconds" 2>/dev/null || spent) + ${START:-12}) / 60, 0.01))")" > "$OUT/minutes"
    [[ -f $OUT/warm_seconds ]] || spent > "$OUT/warm_seconds"
    phase "$OUT/run" "$(cut -d' ' -f2 "$OUT/minutes")" "${OPTIONS[@]}"
    echo "$MINUTES" > "$OUT/trained"
    rm -f "$OUT/best"
    echo "trained: $(spent) s of wall time, $MINUTES minutes were given" | tee "$RESULTS/time.txt"
fi

if [[ " $STAGES " == *" evaluate "* ]]; then
    [[ -f $STATISTICS ]] || $TVMATCH statistics "$DATA" "$STATISTICS" --features "$FEATURES" --keep "${KEEP:-50000}"
    score() { $TVMATCH evaluate "$OUT/run" --features "$FEATURES" --statistics "$STATISTICS" "$@"; }
    # a choice among other candidates is none among these
    CANDIDATES="$EMAS; $EVALUATE_W; $CHOOSE; $PAIR"
    [[ $(cat "$OUT/chosen_among" 2>/dev/null) == "$CANDIDATES" ]] || rm -rf "$OUT/best" "$OUT/choose"
    echo "$CANDIDATES" > "$OUT/chosen_among"
    [[ -z $PAIR ]] || echo "$PAIR" > "$OUT/best"
    [[ -s $OUT/best ]] || {
        CALLS=1
        [[ $OBJECTIVE != flow-matching ]] || CALLS=${NFE##* }
        for ema in $EMAS; do
            score --w $EVALUATE_W --ema "$ema" --nfe "$CALLS" --samples "$CHOOSE" --out "$OUT/choose/ema_$ema.json"
        done
        python3 - "$OUT/choose" > "$OUT/best.tmp" <<'PYTHON'
import json, pathlib, sys
found = []
for path in pathlib.Path(sys.argv[1]).glob("ema_*.json"):
    rows = json.loads(path.read_text())["rows"]
    found += [(row["frechet"], path.stem.removeprefix("ema_"), row["w"]) for row in rows]
for distance, ema, w in sorted(found):
    print(f"average {ema}, w {w}: Frechet {distance:.3f}", file=sys.stderr)
print(*min(found)[1:])
PYTHON
        mv "$OUT/best.tmp" "$OUT/best"
    }
    read -r EMA BEST_W < "$OUT/best"
    # the official code and the prototype were measured with 20,000
    [[ $ALSO == 0 ]] ||
        score --w "$BEST_W" --ema "$EMA" --nfe $NFE --samples "$ALSO" --out "$OUT/evaluation_$ALSO.json"
    [[ $SAMPLES == 0 ]] ||
        score --w "$BEST_W" --ema "$EMA" --nfe $NFE --samples "$SAMPLES" --seeds $SEEDS --out "$OUT/evaluation.json"
    [[ $EVALUATE_W != *" "* ]] ||
        score --w $EVALUATE_W --ema "$EMA" --nfe $NFE --samples "$CHOOSE" --out "$OUT/tradeoff.json"
fi

# what may go into the repository: no weights, no tables by time
cp "$OUT"/run/config.yaml "$RESULTS/"
[[ ! -f $OUT/warm/config.yaml ]] || cp "$OUT/warm/config.yaml" "$RESULTS/warm_config.yaml"
[[ ! -f $OUT/evaluation.json ]] || cp "$OUT/evaluation.json" "$OUT/evaluation"/*.png "$OUT/evaluation/table.md" "$RESULTS/"
for phase in warm run; do
    [[ ! -f $OUT/$phase/metrics.jsonl ]] || python3 - "$OUT/$phase/metrics.jsonl" > "$RESULTS/${phase}_metrics.jsonl" <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    if line.endswith("\n"):  # the last may be cut off by a kill
        print(json.dumps({k: v for k, v in json.loads(line).items() if not isinstance(v, dict | list)}))
PYTHON
done
[[ ! -f $OUT/tradeoff.json ]] || {
    cp "$OUT/tradeoff.json" "$RESULTS/" && cp "$OUT/tradeoff/tradeoff.png" "$RESULTS/tradeoff_of_w.png"
    cp "$OUT/tradeoff/table.md" "$RESULTS/tradeoff.md"
}
[[ ! -f $OUT/evaluation_$ALSO.json ]] || cp "$OUT/evaluation_$ALSO.json" "$RESULTS/"
for choice in "$OUT"/choose/*.json; do [[ ! -f $choice ]] || cp "$choice" "$RESULTS/choose_$(basename "$choice")"; done
echo "results: $RESULTS"
