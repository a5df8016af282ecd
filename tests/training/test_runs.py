"""The scripts of `runs/`: their options are those of `tvmatch train`, and a signal ends them as promised."""

import contextlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.training.support import tiny_command
from tvmatch.cli import main
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
    save = (
        "mkdir -p RUN/checkpoints/step_00000007; touch RUN/checkpoints/step_00000007/tvmatch.json; echo saved >> $TRACE"
    )
    working = f"trap 'sleep 0.3; [ $SAVES = no ] || {{ {save}; }}; exit $CODE' TERM; echo started >> $TRACE; "
    working += "for i in $(seq 100); do sleep 0.05; done; exit 0"
    for name, body in {"torchrun": working, "srun": working, "scontrol": "echo scontrol $@ >> $TRACE"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_JOB_NODELIST": "a"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    (tmp_path / "RUN/checkpoints/step_00000003").mkdir(parents=True)
    (tmp_path / "RUN/checkpoints/step_00000003/tvmatch.json").touch()
    return os.environ | slurm | {"PATH": path, "TRACE": str(tmp_path / "trace"), "GPUS": "2", "SAVES": "yes"}


def end_with_sigterm(environment: dict[str, str], folder: Path, name: str) -> tuple[int, list[str]]:
    """A script in `folder`, told to end once its processes have begun: its exit code, and what happened."""
    script = str(RUNS / name)
    process = subprocess.Popen(["bash", script, "DATA", "RUN"], env=environment, cwd=folder, start_new_session=True)
    trace, deadline = folder / "trace", time.monotonic() + 30
    while not trace.exists() or "started" not in trace.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if name == "train_slurm.sh":  # Slurm tells every process
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    return process.wait(30), trace.read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("train_one_machine.sh", "1", ["started", "saved"]),  # torchrun's own exit code is 1
        ("train_slurm.sh", "143", ["scontrol show hostnames a", "started", "saved", "scontrol requeue 7"]),
    ],
)
def test_sigterm_saves_and_ends_with_143(
    stand_ins: dict[str, str], tmp_path: Path, name: str, code: str, expected: list[str]
) -> None:
    assert end_with_sigterm(stand_ins | {"CODE": code}, tmp_path, name) == (143, expected)


@pytest.mark.parametrize(("saves", "code", "ends"), [("no", "1", 1), ("no", "2", 2), ("yes", "0", 0)])
def test_without_a_new_checkpoint_torchrun_says_how_it_ended(
    stand_ins: dict[str, str], tmp_path: Path, saves: str, code: str, ends: int
) -> None:
    """Or where it ended well."""
    environment = stand_ins | {"SAVES": saves, "CODE": code}
    assert end_with_sigterm(environment, tmp_path, "train_one_machine.sh")[0] == ends


@pytest.mark.parametrize(
    ("gpus", "accumulate"), [(1, 32), (2, 16), (8, 4), (32, 1), (64, 1), (2048, 1), (0, None), (3, None), (48, None)]
)
@pytest.mark.parametrize("name", [*SCRIPTS, "imagenet256.sh", "imagenet512.sh"])
def test_the_batch_is_shared_by_any_number_of_gpus_that_divides_it(
    stand_ins: dict[str, str], tmp_path: Path, name: str, gpus: int, accumulate: int | None
) -> None:
    for command in ("torchrun", "srun", "python3"):
        (tmp_path / "bin" / command).write_text(
            '#!/usr/bin/env bash\necho "$@" >> $TRACE\n[ "$1" != runs/complete.py ]\n'
        )
        (tmp_path / "bin" / command).chmod(0o755)
    environment = stand_ins | {"GPUS": str(gpus), "SLURM_NTASKS": str(gpus)}
    done = subprocess.run(
        ["bash", str(RUNS / name), "DATA", "RUN"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    if accumulate is None:
        assert done.returncode == 2
        assert f"a batch of 2048 cannot be shared alike by {gpus} " in done.stderr
        assert not (tmp_path / "trace").exists() or "--accumulate" not in (tmp_path / "trace").read_text()
        return
    assert done.returncode == 0, done.stderr
    at_a_time = 16 if name == "imagenet512.sh" else 64
    given = int(re.search(r"--accumulate (\d+)", (tmp_path / "trace").read_text())[1])
    assert given == accumulate if at_a_time == 64 else given == max(1, 2048 // 16 // gpus)
    assert 2048 // (gpus * given) <= at_a_time
    assert 2048 % (gpus * given) == 0


@pytest.mark.parametrize(("given", "asked"), [("7", "7"), (None, "12")])
def test_srun_is_told_how_many_cores_a_process_has(
    stand_ins: dict[str, str], tmp_path: Path, given: str | None, asked: str
) -> None:
    """That of Slurm 22.05 to 23.02 does not take it from sbatch."""
    (tmp_path / "bin" / "srun").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" >> $TRACE\n')
    environment = {name: value for name, value in stand_ins.items() if name != "SLURM_CPUS_PER_TASK"}
    environment |= {} if given is None else {"SLURM_CPUS_PER_TASK": given}
    subprocess.run(["bash", str(RUNS / "train_slurm.sh"), "DATA", "RUN"], env=environment, cwd=tmp_path, check=True)
    arguments = (tmp_path / "trace").read_text().splitlines()
    assert f"--cpus-per-task={asked}" in arguments[: arguments.index("bash")]
    text = (RUNS / "train_slurm.sh").read_text()
    assert re.search(r"#SBATCH --cpus-per-task=(\d+)", text)[1] == "12"


@pytest.mark.parametrize(
    ("complete", "trains", "code", "followed"),
    [(0, 2, 0, True), (1, 0, 0, True), (1, 2, 2, False), (1, 1, 1, False)],
)
@pytest.mark.parametrize("name", ["pictures.sh", "cifar10.sh", "imagenet256.sh", "imagenet512.sh"])
def test_a_repeated_script_goes_on_after_a_complete_training_and_after_no_failure(
    stand_ins: dict[str, str], tmp_path: Path, name: str, complete: int, trains: int, code: int, followed: bool
) -> None:
    body = f"""echo "$@" >> $TRACE
[ "$1" != runs/complete.py ] || exit {complete}
case "$*" in *" train "*) exit {trains};; esac"""
    for command in ("torchrun", "python3"):
        (tmp_path / "bin" / command).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / command).chmod(0o755)
    done = subprocess.run(["bash", str(RUNS / name), "DATA", "RUN"], env=stand_ins, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "trace").read_text().splitlines()
    assert any("tvmatch sample " in call for call in calls) == followed
    asked = [call.removeprefix("runs/complete.py ") for call in calls if call.startswith("runs/complete.py")]
    trained = [call.partition("tvmatch train ")[2] for call in calls if "tvmatch train " in call]
    assert trained == ([] if complete == 0 else asked)  # of the same options


def test_pictures_and_results_lie_where_the_script_was_called(stand_ins: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "python3").write_text('#!/usr/bin/env bash\necho "$@" >> $TRACE\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    (tmp_path / "codec").mkdir()
    for source, codec in (("pictures", "codec"), ("hf:some/pictures", "some/codec")):
        environment = stand_ins | {"CODEC": codec}
        subprocess.run(["bash", str(RUNS / "pictures.sh"), source, "out"], env=environment, cwd=tmp_path, check=True)
    calls = [line.split() for line in (tmp_path / "trace").read_text().splitlines()]
    encodings = [call[3:7] for call in calls if "encode" in call]
    latents = str(tmp_path / "out" / "latents")
    assert encodings == [
        [str(tmp_path / "pictures"), latents, "--codec", str(tmp_path / "codec")],
        ["hf:some/pictures", latents, "--codec", "some/codec"],
    ]
    assert {call[3] for call in calls if "sample" in call} == {str(tmp_path / "out" / "run")}


def test_complete_means_the_same_training_with_nothing_left(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("complete", RUNS / "complete.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    run, options = tmp_path / "run", {"steps": 2}
    assert script.main(tiny_command(run, **options)[1:]) == 1  # nothing there
    assert main(tiny_command(run, **options)) == 0
    capsys.readouterr()
    assert script.main(tiny_command(run, **options)[1:]) == 0
    assert capsys.readouterr().err == f"{run}: complete, not trained again\n"
    for other in ({"steps": 3}, {"steps": 2, "seed": 1}, {"steps": 2, "guidance": "much"}):
        with contextlib.suppress(SystemExit):  # tyro's, with its own words
            assert script.main(tiny_command(run, **other)[1:]) == 1
    assert script.main(["--recipe", "cifar10"]) == 1


@pytest.mark.parametrize("name", ["imagenet256.sh", "imagenet512.sh"])
def test_calls_for_which_there_is_no_recipe(stand_ins: dict[str, str], tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        ["bash", str(RUNS / name), "DATA", "RUN", "2"], env=stand_ins, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "CALLS is 1 or 4, as there are recipes for, not '2'\n")
