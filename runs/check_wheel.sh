#!/usr/bin/env bash
# Builds the wheel of the last commit, installs it into a fresh environment, and uses it there: `bash runs/check_wheel.sh [WORK]`.
# WORK is an empty or new folder (default: one that is removed afterwards). Takes minutes, of them most for PyTorch.
#
# What it must print is in docs/install.md: no package for GPUs only beyond those that torch asks for, a training, a
# sample, and errors that name an extra where an optional package is missing.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    work=$(cd "$1" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
if [ -n "$(ls -A "$work")" ]; then
    echo "check_wheel: $work is not empty; give a new folder." >&2
    exit 2
fi
unset PYTHONPATH
say() { printf '\n== %s\n' "$*"; }

say build
# of what is committed, so that nothing else of this folder can get in
mkdir "$work/source"
git -C "$repository" archive HEAD | tar -xf - -C "$work/source"
"${PYTHON:-python3}" -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip wheel -qq --no-deps --wheel-dir "$work" "$work/source"
wheel=$(ls "$work"/*.whl)
echo "$(basename "$wheel"), $(stat -c %s "$wheel") bytes"

say install
"$python" -m pip install -qq --constraint "$repository/constraints.txt" "$wheel"
mkdir "$work/elsewhere"
cd "$work/elsewhere" # not the repository: what is imported is what was installed
"$python" - <<'PYTHON'
import importlib.metadata
import re

def asked_for(package, found):
    """The packages that `package` brings along, through every level, as they are installed here."""
    for line in importlib.metadata.requires(package) or ():
        name = re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
        if "extra ==" in line or name in found:
            continue
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        asked_for(name, found)
    return found

gpu = re.compile(r"nvidia|cuda|cudnn|cupy|triton|rocm|hip|flash-attn|xformers|tensorrt")
installed = sorted(one.metadata["Name"].lower().replace("_", "-") for one in importlib.metadata.distributions())
of_torch = asked_for("torch", set())
ours = importlib.metadata.metadata("tvmatch")
print(f"{len(installed)} packages: {' '.join(installed)}")
print(f"for GPUs, through torch: {' '.join(n for n in installed if gpu.search(n) and n in of_torch) or 'none'}")
beyond = [name for name in installed if gpu.search(name) and name not in of_torch]
print(f"for GPUs, beyond torch: {' '.join(beyond) or 'none'}")
extras = set(ours.get_all("Provides-Extra"))
print(f"extras: {' '.join(sorted(extras))}")
missing = {"data", "eval", "export", "demo", "docs", "dev"} - extras
assert not beyond and not missing, (beyond, missing)
PYTHON

say use
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
tvmatch="$work/venv/bin/tvmatch"
"$python" -c "import tvmatch, tvmatch.flow_map; print(tvmatch.__version__, 'from', tvmatch.__file__.split('/lib/')[1])"
"$tvmatch" train --run digits --steps 20 --batch-size 64 --sample-every 0 2>&1 | tail -n 3
"$tvmatch" sample digits --class 3 --count 8 --out three.png
"$tvmatch" evaluate digits --nfe 1 --samples 100
"$tvmatch" export digits --out weights.safetensors
"$tvmatch" sample weights.safetensors --count 10 --out ten.npz

say "without the extras"
refused() {
    local code=0 answer
    answer=$("$@" 2>&1) || code=$?
    echo "$answer"
    [ "$code" = 2 ] && [[ "$answer" == *"pip install 'tvmatch["* ]] && [ "$(wc -l <<< "$answer")" = 1 ]
}
refused "$tvmatch" export digits --to onnx
refused "$tvmatch" export digits --to diffusers
refused "$tvmatch" encode digits out --codec stabilityai/sd-vae-ft-mse
refused "$tvmatch" plot digits
refused "$tvmatch" demo digits
say "all is well"
