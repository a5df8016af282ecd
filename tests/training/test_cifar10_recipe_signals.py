"""runs/cifar10_1gpu.sh and signals: one to the script ends its `tvmatch` with a save, and what it compiles beside a
phase does not live on into the next."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.support import pids_of

ROOT = Path(__file__).parents[2]
# trains until it is told to end, and then takes a while to save; what compiles puts signals off until it has compiled,
# and what measures ends at once
STAND_IN = f"""
import os, pathlib, runpy, sys, time
here = pathlib.Path(__file__).parent
def note(text):
    with open(here / "trace", "a") as file:
        file.write(text + "\\n")
if sys.argv[1] != "train":
    note("it measures")
    time.sleep(20)
run = pathlib.Path(sys.argv[3])
run.mkdir(parents=True, exist_ok=True)
with runpy.run_path({str(ROOT / "src/tvmatch/training/signals.py")!r})["collected_signals"](0) as caught:
    (run / "metrics.jsonl").write_text("{{}}\\n")
    note(f"{{run.name}} started")
    if run.name == "precompile":
        (here / "compiler").write_text(str(os.getpid()))
        time.sleep(4)
        note("compiled")
    elif run.name == "warm" and (here / "compiles").exists():
        while not (here / "compiler").exists():
            time.sleep(0.02)
    elif run.name == "run" and (here / "compiler").exists():
        pid = (here / "compiler").read_text()
        state = pathlib.Path(f"/proc/{{pid}}/stat")
        alive = state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
        note("compiles still" if alive or run.with_name("precompile").exists() else "compiles no more")
    else:
        for _ in range(400):
            time.sleep(0 if caught else 0.05)
        time.sleep(0.3)
        note("saved")
        print("saved", flush=True)
raise SystemExit(128 + caught[0] if caught and not (here / "was done").exists() else 0)
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts the recipe with variables."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    started = []

    def begin(hears_int: bool = True, **variables: str) -> subprocess.Popen:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ours = {"PATH": path, "TVMATCH": f"{sys.executable} {tmp_path / 'stand_in.py'}", "COMMIT": "a"}
        command = ["bash", str(ROOT / "runs/cifar10_1gpu.sh"), str(tmp_path / "out"), "data.npz", "inception.pt"]
        # where the tests run in the background INT is ignored, and bash could not undo that
        command = ["env", "--default-signal=INT,HUP" if hears_int else "--ignore-signal=INT", *command]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(
            subprocess.Popen(command, env=ours | {"PRECOMPILE": "0"} | variables, start_new_session=True, **output)
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "to", "code"),
    [
        (signal.SIGTERM, "script", 143),
        (signal.SIGINT, "script", 130),
        (signal.SIGHUP, "script", 129),
        (signal.SIGINT, "group", 130),  # Ctrl-C
        (signal.SIGTERM, "all", 143),  # as systemd and Slurm do
    ],
)
def test_a_signal_ends_with_a_save(start, tmp_path: Path, number: signal.Signals, to: str, code: int) -> None:
    """And no other phase or evaluation is begun; what there is is published."""
    process = start()
    wait_for(tmp_path / "trace", "warm started")
    (trained,) = pids_of(tmp_path)
    if to == "all":
        os.kill(trained, number)
    (os.killpg if to == "group" else os.kill)(process.pid, number)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == code, told
    assert (tmp_path / "trace").read_text().splitlines() == ["warm started", "saved"]
    assert not pids_of(tmp_path)
    assert told.index("saved") < told.index(f"warm ended with code {code} after") < told.index("results: ")
    assert (tmp_path / "out" / "results" / "warm_metrics.jsonl").exists()
    assert "saved\n" in (tmp_path / "out" / "results" / "train.log").read_text()
    assert not (tmp_path / "out" / "warm_seconds").exists()  # it goes on there


def test_after_a_signal_nothing_is_begun(start, tmp_path: Path) -> None:
    """Where the phase ended well although it was told to end, that is kept."""
    (tmp_path / "was done").touch()
    process = start()
    wait_for(tmp_path / "trace", "warm started")
    process.terminate()
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 143, told
    assert (tmp_path / "trace").read_text().splitlines() == ["warm started", "saved"]
    assert (tmp_path / "out" / "warm_seconds").exists()


@pytest.mark.parametrize(
    ("number", "code", "hears_int"),
    [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
)
def test_a_signal_ends_what_does_not_look_for_it(
    start, tmp_path: Path, number: signal.Signals, code: int, hears_int: bool
) -> None:
    """Also where it was started by a script in the background, and INT is ignored."""
    process = start(hears_int, STAGES="evaluate")
    wait_for(tmp_path / "trace", "it measures")
    process.send_signal(number)
    told, _ = process.communicate(timeout=10)
    assert process.returncode == code, told
    assert not pids_of(tmp_path)
    assert (tmp_path / "trace").read_text() == "it measures\n"


def test_a_signal_is_not_lost_to_what_only_begins(start, tmp_path: Path) -> None:
    """Where INT is ignored, whatever undoes that, a Python that takes its time to start, must not do it when there is
    something to end: a signal until then was gone, and the evaluation went on to its end."""
    slow = tmp_path / "bin" / "python3"
    slow.parent.mkdir()
    slow.write_text(
        f"""#!/bin/bash
case "$2" in *execvp*) echo hears >> {tmp_path}/trace; sleep 1; echo heard >> {tmp_path}/trace;; esac
exec {sys.executable} "$@"
"""
    )
    slow.chmod(0o755)
    process = start(False, STAGES="evaluate", PATH=f"{slow.parent}:{os.environ['PATH']}")
    wait_for(tmp_path / "trace", "hears")
    began = (tmp_path / "out").exists()
    process.terminate()
    told, _ = process.communicate(timeout=10)
    assert not began
    assert process.returncode == -signal.SIGTERM, told  # nothing that could be saved
    assert not pids_of(tmp_path)


def test_what_still_compiles_is_gone_before_the_next_phase(start, tmp_path: Path) -> None:
    (tmp_path / "compiles").touch()
    process = start(PRECOMPILE="1", STAGES="train")
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 0, told
    order = ["warm started", "precompile started", "run started", "compiles no more"]
    assert (tmp_path / "trace").read_text().splitlines() == order


def test_what_still_compiles_is_gone_after_a_signal(start, tmp_path: Path) -> None:
    process = start(PRECOMPILE="1", STAGES="train")
    wait_for(tmp_path / "trace", "precompile started")
    process.terminate()
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 143, told
    assert not pids_of(tmp_path)
    assert not (tmp_path / "out" / "precompile").exists()
