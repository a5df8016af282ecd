"""runs/cifar10_seeds.py, which runs the recipe for several methods and seeds, with a `tvmatch` that only notes what it
is asked for: one run on a GPU at a time, all at the pair that their first seed chose, and their means told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.support import pids_of

ROOT = Path(__file__).parents[2]
# trains for a while, or fails or waits for a signal where it is told to; its Frechet distance is average + w + seed
STAND_IN = """
import json, os, pathlib, sys, time
here, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
def after(name):
    rest = arguments[arguments.index(name) + 1 :]
    return rest[: next((i for i, value in enumerate(rest) if value.startswith("--")), len(rest))]
def note(what):
    with open(here / "notes", "a") as file:
        file.write(json.dumps([time.time(), os.environ["CUDA_VISIBLE_DEVICES"], what]) + "\\n")
if arguments[0] == "statistics":
    note("statistics")
    if (here / "wait for statistics").exists():
        time.sleep(30)
    pathlib.Path(arguments[2]).write_text("")
elif arguments[0] == "train":
    run = pathlib.Path(after("--run")[0])
    note(f"begin {run.parent.name}")
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(f"seed: {after('--seed')[0]}\\nnetwork: {after('--network')[0]}\\n")
    if (here / f"{run.parent.name} fails").exists():
        raise SystemExit(1)
    if (here / "wait").exists():
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            note(f"saved {run.parent.name}")
            raise SystemExit(130)
    time.sleep(0.3)
    note(f"end {run.parent.name}")
else:
    out = pathlib.Path(after("--out")[0])
    seed = int((out.parent if out.parent.name != "choose" else out.parent.parent).name[-1])
    rows = [{"nfe": int(nfe), "w": float(w), "frechet": float(after("--ema")[0]) + float(w) + seed}
            for w in after("--w") for nfe in after("--nfe")]
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {"checkpoint": {"ema": float(after("--ema")[0])}, "samples": int(after("--samples")[0]), "rows": rows}
    out.write_text(json.dumps(told))
"""


@pytest.fixture
def seeds(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts the script with arguments and variables, in tmp_path/out."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    for name in ("data.npz", "inception.pt"):
        (tmp_path / name).touch()

    def start(*arguments: str, **variables: str) -> subprocess.Popen:
        ours = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COMMIT": "a",
            "PRECOMPILE": "0",
            "WARM": "0",
        }
        ours |= {
            "TVMATCH": f"{sys.executable} {tmp_path / 'stand_in.py'}",
            "SAMPLES": "0",
            "NFE": "1 4",
            "CHOOSE": "10",
        }
        ours |= {"EMAS": "0.5 0.9", "EVALUATE_W": "1.5 2"}
        command = [sys.executable, str(ROOT / "runs/cifar10_seeds.py"), str(tmp_path / "out")]
        command += [str(tmp_path / "data.npz"), str(tmp_path / "inception.pt"), *arguments]
        # where the tests run in the background INT is ignored
        command = ["env", "--default-signal=INT,TERM", "--ignore-signal=HUP", *command]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=ours | variables, **streams)

    return start


def noted(folder: Path) -> list[tuple[float, str, str]]:
    path = folder / "notes"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_notes(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(noted(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_seed_is_scored_at_what_the_first_chose_and_a_gpu_has_one_run_at_a_time(seeds, tmp_path: Path) -> None:
    process = seeds("--gpus", "3", "5")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    notes = noted(tmp_path)
    assert [what for _, _, what in notes].count("statistics") == 1
    assert notes[0][2] == "statistics"  # once, before any run
    runs = [f"{method}_420s_seed{seed}" for seed in (0, 1, 2) for method in ("tvm", "mean_flow")]
    assert sorted(what.split()[1] for _, _, what in notes[1:]) == sorted(2 * runs)
    for gpu in ("3", "5"):  # it ends before another begins
        there = [what.split() for _, device, what in notes[1:] if device == gpu]
        assert [verb for verb, _ in there] == ["begin", "end"] * (len(there) // 2)
        assert all(there[k][1] == there[k + 1][1] for k in range(0, len(there), 2))
    assert {device for _, device, _ in notes[1:]} == {"3", "5"}
    for run in runs:
        results = tmp_path / "out" / "results" / run
        (row, *_) = json.loads((results / "evaluation_20000.json").read_text())["rows"]
        assert row["w"] == 1.5  # the stand-in's best, at average 0.5
        assert bool(list(results.glob("choose_*.json"))) == run.endswith("seed0")
        assert (results / "config.yaml").read_text().startswith(f"seed: {run[-1]}\n")
    line = "| tvm_420s, DiT-S/4, seeds 0, 1, 2 | 0.5, 1.5 | 20,000 | 4 | 2.00 / 3.00 / 4.00 | 3.00 ± 1.00 |"
    assert line in (tmp_path / "out" / "results" / "table.md").read_text()
    assert line in told
    assert "tvm_420s_seed2 on GPU" in told
    assert "of 6, scored at average and w 0.5 1.5)" in told


def test_a_run_that_fails_ends_only_those_that_wait_for_its_choice_and_the_same_command_goes_on(
    seeds, tmp_path: Path
) -> None:
    (tmp_path / "tvm_420s_seed0 fails").touch()
    process = seeds("--seeds", "0", "1", "--gpus", "0", "1")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert "tvm_420s_seed0 ended with code 1" in told
    assert "tvm_420s_seed1 is not begun: tvm_420s_seed0 has chosen no average and w for it" in told
    assert "mean_flow_420s_seed1 ended with code 0" in told
    (tmp_path / "tvm_420s_seed0 fails").unlink()
    before = len(noted(tmp_path))
    process = seeds("--seeds", "0", "1", "--gpus", "0", "1")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    trained = {what.split()[1] for _, _, what in noted(tmp_path)[before:]}
    assert trained == {"tvm_420s_seed0", "tvm_420s_seed1"}  # the others are done


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_every_run_save_and_begins_no_other(
    seeds, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "wait").touch()
    process = seeds("--gpus", "0", "1")
    wait_for_notes(tmp_path, 3)
    if number == signal.SIGINT:  # nohup's is not heard
        process.send_signal(signal.SIGHUP)
    process.send_signal(number)
    told, _ = process.communicate(timeout=20)
    assert process.returncode == code, told
    expected = {
        "statistics",
        *(f"{verb} {run}_420s_seed0" for verb in ("begin", "saved") for run in ("tvm", "mean_flow")),
    }
    assert {what for _, _, what in noted(tmp_path)} == expected


def test_one_pair_for_all(seeds, tmp_path: Path) -> None:
    process = seeds("--seeds", "1", "2", "--objectives", "flow-matching", PAIR="0.9 2", MINUTES="3")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    for seed in (1, 2):
        results = tmp_path / "out" / "results" / f"flow_matching_180s_seed{seed}"
        assert json.loads((results / "evaluation_20000.json").read_text())["rows"][0]["frechet"] == 2.9 + seed


def test_the_same_command_again_and_further_seeds_keep_what_the_first_chose(seeds, tmp_path: Path) -> None:
    """Also where GPUs are free for all at once, and where later candidates would be chosen otherwise."""
    commands = (("--seeds", "0", "1"), ("--seeds", "0", "1"), ("--seeds", "2", "1", "--gpus", "7"))
    for number, arguments in enumerate(commands):
        variables = {"EVALUATE_W": "1.25 2"} if number == 2 else {}
        process = seeds("--objectives", "mean-flow", "--gpus", "0", "1", "2", *arguments, **variables)
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 0, told
    assert not list((tmp_path / "out" / "mean_flow_420s_seed0").glob("earlier"))
    rows = (tmp_path / "out" / "results" / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == 2 * [["| mean_flow_420s, DiT-S/4, seeds 0, 1, 2", "0.5, 1.5"]]


def test_runs_of_other_networks_have_a_mean_of_their_own(seeds, tmp_path: Path) -> None:
    for seed, network in (("0", "DiT-S/4"), ("1", "DiT-S/2")):
        process = seeds("--objectives", "mean-flow", "--seeds", seed, NETWORK=network)
        assert process.wait(60) == 0
    text = (tmp_path / "out" / "results" / "table.md").read_text()
    assert "DiT-S/4, seeds 0 |" in text
    assert "DiT-S/2, seeds 1 |" in text


def test_what_a_killed_command_left_behind_keeps_the_folder(seeds, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    process = seeds("--objectives", "mean-flow")
    wait_for_notes(tmp_path, 2)
    process.kill()
    process.wait()
    try:
        second = seeds("--objectives", "mean-flow")
        told, _ = second.communicate(timeout=20)
        assert second.returncode == 2
        assert f"{tmp_path / 'out'} is in use" in told
        assert len(noted(tmp_path)) == 2
    finally:
        for pid in pids_of(tmp_path):
            os.kill(pid, signal.SIGINT)


def test_a_gpu_is_free_when_what_a_killed_run_began_is_gone(seeds, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    process = seeds("--objectives", "mean-flow", "flow-matching", "--seeds", "0")
    wait_for_notes(tmp_path, 2)
    (recipe,) = [pid for pid in pids_of(tmp_path, "cifar10_1gpu.sh") if os.getsid(pid) == pid]
    os.kill(recipe, signal.SIGKILL)
    time.sleep(1)
    assert len(noted(tmp_path)) == 2  # its training goes on, and no other beside it
    (tmp_path / "wait").unlink()
    (trains,) = pids_of(tmp_path)
    os.kill(trains, signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "mean_flow_420s_seed0 ended with code -9" in told
    assert "flow_matching_420s_seed0 ended with code 0" in told


def test_a_signal_ends_the_statistics_too(seeds, tmp_path: Path) -> None:
    (tmp_path / "wait for statistics").touch()
    process = seeds()
    wait_for_notes(tmp_path, 1)
    process.terminate()
    told, _ = process.communicate(timeout=10)
    assert process.returncode == 143, told
    assert not pids_of(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        ((), {"SEED": "1"}, "SEED='1' is of one run, and each has its own here; unset it"),
        (("--gpus", "0", "0"), {}, "--gpus names one twice: 0 0"),
        ((), {"MINUTES": "seven"}, "MINUTES='seven' should be a number of minutes above 0"),
        ((), {"MINUTES": "0"}, "MINUTES='0' should be a number of minutes above 0"),
        ((), {"STAGES": "train"}, "STAGES='train' scores nothing"),
        (("--gpus", "-1"), {}, "--gpus -1: GPUs are counted from 0"),
        (("--gpus", "0", "2"), {"CUDA_VISIBLE_DEVICES": "4,5"}, "--gpus 0 2: CUDA_VISIBLE_DEVICES='4,5' has 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything(
    seeds, tmp_path: Path, arguments: tuple, variables: dict, text: str
) -> None:
    process = seeds(*arguments, **variables)
    told, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert text in told
    assert not noted(tmp_path)
    assert not (tmp_path / "out").exists()
