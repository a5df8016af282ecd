"""The scripts of `runs/`: their options are those of `tvmatch train`, and a signal ends them as promised."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tvmatch.cli.options import parse
from tvmatch.training.config import TrainConfig

RUNS = Path(__file__).parents[2] / "runs"
SCRIPTS = ("train_one_machine.sh", "train_slurm.sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_options_are_known(name: str) -> None:
    text = re.search(r"--run \"\$run\".*?(?=\"\$@\" &)", (RUNS / name).read_text(), re.DOTALL)[0].replace("\\\n", " ")
    text = text.replace("$accumulate", "16").replace("${STRATEGY:-ddp}", "ddp")
    config = parse(TrainConfig, "train", "", shlex.split(text), default=TrainConfig())
    assert (config.network, config.batch_size, config.accumulate, config.strategy) == ("DiT-XL/2", 2048, 16, "ddp")
    subprocess.run(["bash", "-n", str(RUNS / name)], check=True)


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """torchrun, srun and scontrol as scripts that say how they were called; a run that saves when it is told to end."""
    (tmp_path / "bin").mkdir()
    working = "echo started >> $TRACE; trap 'sleep 0.3; echo saved >> $TRACE; exit $SAVED' TERM; "
    working += "for i in $(seq 100); do sleep 0.05; done; exit 0"
    for name, body in {"torchrun": working, "srun": working, "scontrol": "echo scontrol $@ >> $TRACE"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_JOB_NODELIST": "a"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return os.environ | slurm | {"PATH": path, "TRACE": str(tmp_path / "trace"), "GPUS": "2"}


@pytest.mark.parametrize(
    ("name", "saved", "expected"),
    [
        ("train_one_machine.sh", "1", ["started", "saved"]),  # torchrun's own exit code is 1
        ("train_slurm.sh", "143", ["scontrol show hostnames a", "started", "saved", "scontrol requeue 7"]),
    ],
)
def test_sigterm_saves_and_ends_with_143(
    stand_ins: dict[str, str], tmp_path: Path, name: str, saved: str, expected: list[str]
) -> None:
    process = subprocess.Popen(
        ["bash", str(RUNS / name), "DATA", "RUN"], env=stand_ins | {"SAVED": saved}, start_new_session=True
    )
    trace, deadline = tmp_path / "trace", time.monotonic() + 30
    while not trace.exists() or "started" not in trace.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)  # its trap is set
    if name == "train_slurm.sh":  # Slurm tells every process
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    assert process.wait(30) == 143
    assert trace.read_text().splitlines() == expected
