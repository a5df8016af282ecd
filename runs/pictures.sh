#!/usr/bin/env bash
# A folder of pictures to a one-step sampler: encode once, train on the latents, draw in one network call.
#
#   bash runs/pictures.sh FOLDER [OUT]                                    (FOLDER: one sub-folder a class)
#   NETWORK=DiT-B/2 STEPS=20000 bash runs/pictures.sh FOLDER OUT          (for a real data set)
#
# The autoencoder is TAEF2 (8 x 8 pixels a cell, 32 channels), whose weights lie in tests/data/taef2 (MIT licence). On
# 200 photographs of 224 pixels its round trip gives 29.43 dB on average, 21.85 at least. As many as 600 steps on 200
# photographs are a test that everything works, not a model: docs/your_own_pictures.md shows what comes out.
set -euo pipefail
PICTURES=${1:?give the folder of pictures}
[[ $PICTURES == hf:* || $PICTURES == digits ]] || PICTURES=$(realpath -m "$PICTURES")
OUT=$(realpath -m "${2:-$(dirname "$0")/pictures}")
[[ ! -d ${CODEC:-} ]] || CODEC=$(realpath "$CODEC") # not a name, as `pixels` and those on the hub are
cd "$(dirname "$0")/.."
TVMATCH=${TVMATCH:-python3 -m tvmatch}

$TVMATCH encode "$PICTURES" "$OUT/latents" --codec "${CODEC:-tests/data/taef2}" --image-size "${SIZE:-224}"
OPTIONS=(--run "$OUT/run" --data "$OUT/latents" --flip
    --network "${NETWORK:-DiT-S/2}" --steps "${STEPS:-600}" --batch-size "${BATCH:-128}"
    --learning-rate 6e-4 --warmup-steps 100 --guidance 1.5 --evaluation-ema 0.99
    --sample-every "${STEPS:-600}" --checkpoint-every 10000)
python3 runs/complete.py "${OPTIONS[@]}" || $TVMATCH train "${OPTIONS[@]}"
$TVMATCH sample "$OUT/run" --nfe 1 --count "${COUNT:-60}" --out "$OUT/one_call.png"
$TVMATCH sample "$OUT/run" --nfe 4 --count "${COUNT:-60}" --out "$OUT/four_calls.png"
