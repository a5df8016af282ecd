"""runs/cifar10_1gpu.sh with a `tvmatch` that only notes what it is asked for: its defaults are those of the committed
runs, the best of the candidates is scored, and what cannot be evaluated is refused before anything is trained."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tvmatch.cli.options import parse
from tvmatch.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cifar10"
# notes its arguments, and leaves what the recipe looks for; smaller averages and larger w are better here
NOTER = """
import json, os, pathlib, signal, sys
arguments = sys.argv[1:]
with open(pathlib.Path(__file__).with_suffix(".jsonl"), "a") as file:
    file.write(json.dumps(arguments) + "\\n")
def after(name):
    rest = arguments[arguments.index(name) + 1 :]
    return rest[: next((i for i, value in enumerate(rest) if value.startswith("--")), len(rest))]
if arguments[0] == "train":
    run = pathlib.Path(after("--run")[0])
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("noted: true\\n")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 20, "table": [1]}) + "\\n" + '{"step": 40, "cut')
    print("it trains", flush=True)
    if (pathlib.Path(__file__).parent / f"{run.name} fails").exists():
        raise SystemExit(1)
elif arguments[0] == "evaluate":
    out = pathlib.Path(after("--out")[0])
    if (pathlib.Path(__file__).parent / f"{out.stem} kills").exists():
        os.kill(os.getppid(), signal.SIGKILL)
        raise SystemExit(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"w": float(w), "frechet": float(after("--ema")[0]) - float(w)} for w in after("--w")]
    out.write_text(json.dumps({"rows": rows}))
    out.with_suffix("").mkdir(exist_ok=True)
    w = after("--w")[0]
    for name in ("table.md", "tradeoff.png", f"samples_nfe1_w{w}.png", f"nearest_nfe1_w{w}.png"):
        (out.with_suffix("") / name).write_text("")
"""


@pytest.fixture
def recipe(tmp_path: Path):
    """Runs the recipe with variables and an objective; gives its result and the commands that it asked for."""
    noter = tmp_path / "noter.py"
    noter.write_text(NOTER)

    def run(objective: str = "terminal-velocity", **variables: str):
        ours = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TVMATCH": f"{sys.executable} {noter}",
            "PRECOMPILE": "0",
            "COMMIT": "abc",
        }
        command = ["bash", str(ROOT / "runs/cifar10_1gpu.sh"), str(tmp_path / "a run"), "data.npz", "inception.pt"]
        result = subprocess.run([*command, objective], env=ours | variables, capture_output=True, text=True)
        notes = noter.with_suffix(".jsonl")
        return result, [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    return run


def given(command: list[str], name: str) -> list[str]:
    """The values of an option."""
    rest = command[command.index(name) + 1 :]
    return rest[: next((i for i, value in enumerate(rest) if value.startswith("--")), len(rest))]


def result_of(command: list[str]) -> str:
    """Which evaluation it is, by the name of its file."""
    return Path(given(command, "--out")[0]).name


def config_of(command: list[str]) -> dict:
    config = parse(TrainConfig, "train", "", command[1:], default=TrainConfig())
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def asked_and_committed(command: list[str], path: Path) -> tuple[dict, dict]:
    """What a command trains and what a committed file says, without paths, of which both have the same."""
    asked, committed = config_of(command), yaml.safe_load(path.read_text())
    for where in ("run", "data", "initial"):
        assert (asked.pop(where) is None) == (committed.pop(where) is None)
    return asked, committed


@pytest.mark.parametrize(
    ("objective", "folder"), [("terminal-velocity", "tvm_420s_seed0"), ("mean-flow", "mean_flow_420s_seed0")]
)
def test_the_defaults_are_the_committed_runs(recipe, objective: str, folder: str) -> None:
    result, commands = recipe(objective)
    assert result.returncode == 0, result.stderr
    for command, name in zip([c for c in commands if c[0] == "train"], ("warm_config", "config"), strict=True):
        asked, committed = asked_and_committed(command, RESULTS / folder / f"{name}.yaml")
        minutes = committed.pop("minutes")  # of the second phase: what the first, of two minutes, left of seven
        assert asked.pop("minutes") == pytest.approx(minutes if name == "warm_config" else minutes + 2, abs=0.1)
        later = {name: value for name, value in config_of(["train"]).items() if name in asked.keys() - committed.keys()}
        assert asked == committed | later  # options that came after have their defaults
    scored = json.loads((RESULTS / folder / "evaluation_20000.json").read_text())
    chosen = [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("choose_*.json"))]
    choices = [c for c in commands if c[0] == "evaluate" and "/choose/" in given(c, "--out")[0]]
    assert {float(given(c, "--ema")[0]) for c in choices} == {each["checkpoint"]["ema"] for each in chosen}
    for choice in choices:
        assert [float(w) for w in given(choice, "--w")] == [row["w"] for row in chosen[0]["rows"]]
        assert given(choice, "--samples") == [str(chosen[0]["samples"])]
        assert given(choice, "--seeds") == ["1000"]  # none of the samples that are scored
    also = next(c for c in commands if c[0] == "evaluate" and result_of(c) == "evaluation_20000.json")
    assert given(also, "--samples") == [str(scored["samples"])]


@pytest.mark.parametrize(
    ("objective", "folder", "extra"),
    [
        ("terminal-velocity", "tvm_1200s_seed0", "--jumps wide"),
        ("mean-flow", "mean_flow_1200s_seed0", ""),
        ("flow-matching", "flow_matching_1200s_seed0", ""),
    ],
)
def test_the_commands_of_the_page_are_the_twenty_minutes(recipe, objective: str, folder: str, extra: str) -> None:
    given_there = {"MINUTES": "20", "NETWORK": "DiT-S/2", "WARM": "5", "W": "1.75:2.5", "EVALUATE_W": "1.75 2 2.25 2.5"}
    given_there |= {"EMAS": "0.998 0.9995", "OPTIMIZER": "muon", "CHECKPOINT": "4000", "EXTRA": extra}
    result, commands = recipe(objective, **given_there)
    assert result.returncode == 0, result.stderr
    last = [c for c in commands if c[0] == "train"][-1]
    asked, committed = asked_and_committed(last, RESULTS / folder / "config.yaml")
    minutes = committed.pop("minutes")
    assert asked.pop("minutes") == pytest.approx(minutes + (0 if objective == "flow-matching" else 5), abs=0.1)
    assert asked == committed


def test_the_best_of_the_candidates_is_scored_and_nothing_large_is_kept(recipe, tmp_path: Path) -> None:
    result, commands = recipe(EMAS="0.99 0.9", W="2", EVALUATE_W="1 2", WARM="0")
    assert result.returncode == 0, result.stderr
    assert len([c for c in commands if c[0] == "train"]) == 1  # no first phase
    full = next(c for c in commands if c[0] == "evaluate" and result_of(c) == "evaluation.json")
    assert (given(full, "--w"), given(full, "--ema")) == (["2.0"], ["0.9"])
    results = tmp_path / "a run" / "results"
    kept = {path.name for path in results.iterdir()}
    assert kept == {"config.yaml", "run_metrics.jsonl", "time.txt", "commit.txt", "train.log", "evaluate.log"} | {
        *("evaluation.json", "table.md", "evaluation_20000.json", "evaluation_20000.md", "tradeoff.png"),
        *("samples_nfe1_w2.0.png", "nearest_nfe1_w2.0.png", "tradeoff.json", "tradeoff.md", "tradeoff_of_w.png"),
        *("choose_ema_0.9.json", "choose_ema_0.99.json"),
    }
    assert (results / "commit.txt").read_text() == "abc\n"
    assert (results / "run_metrics.jsonl").read_text() == '{"step": 20}\n'
    assert "it trains\ntrained: " in (results / "train.log").read_text()
    assert "average 0.9, w 2.0: Frechet -1.100" in (results / "evaluate.log").read_text()
    again, more = recipe(EMAS="0.99 0.9", W="2", EVALUATE_W="1 2", WARM="0")
    assert again.returncode == 0
    assert len([c for c in more if c[0] == "train"]) == 1  # trained, and chosen, before
    assert len([c for c in more if "/choose/" in str(c)]) == 2


def test_a_range_without_scales_is_refused_before_training(recipe, tmp_path: Path) -> None:
    result, commands = recipe(W="1:3")
    assert result.returncode == 2
    assert "EVALUATE_W must name scales" in result.stderr
    assert not commands
    assert not (tmp_path / "a run").exists()


def test_a_pair_is_scored_without_a_choice(recipe) -> None:
    """As the second seed of MeanFlow was: at the pair of the first."""
    result, commands = recipe("mean-flow", SEED="1", PAIR="0.9995 2", SAMPLES="0", EVALUATE_W="2")
    assert result.returncode == 0, result.stderr
    (only,) = (c for c in commands if c[0] == "evaluate")
    assert [given(only, name) for name in ("--w", "--ema", "--nfe")] == [["2"], ["0.9995"], ["1", "2", "4"]]
    assert config_of(commands[1])["evaluation_ema"] == [0.995, 0.998, 0.9995]
    committed = json.loads((RESULTS / "mean_flow_420s_seed1" / "evaluation_20000.json").read_text())
    assert (committed["checkpoint"]["ema"], committed["rows"][0]["w"]) == (0.9995, 2)


@pytest.mark.parametrize("pair", ["0.9 2", "0.9995", "0.9995 2 3"])
def test_a_pair_that_is_none_is_refused_before_training(recipe, pair: str) -> None:
    result, commands = recipe(PAIR=pair)
    assert result.returncode == 2
    assert f"PAIR='{pair}' should be" in result.stderr
    assert not commands


def test_flow_matching_is_chosen_in_as_many_calls_as_it_is_asked_for(recipe) -> None:
    result, commands = recipe("flow-matching", EMAS="0.9", ALSO="0", SEEDS="0 1", SAMPLES="500")
    assert result.returncode == 0, result.stderr
    measured = {result_of(c): c for c in commands if c[0] == "evaluate"}
    assert given(measured["ema_0.9.json"], "--nfe") == ["4"]
    for name in ("evaluation.json", "tradeoff.json"):  # error bars for these
        assert given(measured[name], "--seeds") == ["0", "1"]
    assert given(measured["ema_0.9.json"], "--seeds") == ["1000"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"SEED": "1"}, "SEED='1' and not '0'"),
        ({"LR": "2e-3"}, "LR='2e-3' and not '1e-3', WARM_LR='2e-3' and not '1e-3'"),
        ({"EXTRA": "--flip"}, "EXTRA='--flip' and not ''"),
        ({"objective": "mean-flow"}, "OBJECTIVE='mean-flow' and not 'terminal-velocity'"),
        ({"SEED": "1", "STAGES": "evaluate"}, "SEED='1' and not '0'"),
    ],
)
def test_a_folder_of_another_training_is_refused(recipe, other: dict[str, str], told: str) -> None:
    """It would train nothing, and report the figures of the old run."""
    assert recipe(STAGES="none")[0].returncode == 0
    result, commands = recipe(**other)
    assert result.returncode == 2
    assert told in result.stderr
    assert "another OUT" in result.stderr
    assert not commands


def test_a_folder_that_does_not_say_its_settings_is_refused(recipe, tmp_path: Path) -> None:
    (tmp_path / "a run" / "run").mkdir(parents=True)
    result, commands = recipe(STAGES="evaluate")
    assert result.returncode == 2
    assert "does not say its settings" in result.stderr
    assert not commands


def test_what_was_cut_off_goes_on_and_all_its_seconds_count(recipe, tmp_path: Path) -> None:
    """The second phase ends with an error, then is killed without a word; the first is not trained again."""
    out = tmp_path / "a run"
    (tmp_path / "run fails").touch()
    result, commands = recipe(STAGES="train")
    assert result.returncode == 1
    assert [given(c, "--run")[0] for c in commands] == [str(out / "warm"), str(out / "run")]
    assert (out / "results" / "run_metrics.jsonl").exists()  # what there is by then
    (out / "seconds").write_text("100\n")
    now = int(time.time())
    (out / "attempt").write_text(f"{now - 500} 100\n")  # what a killed attempt leaves, that lived for 130 s
    (out / "alive").touch()
    for path, ago in ((out / "attempt", 500), (out / "alive", 372), (out / "run" / "metrics.jsonl", 370)):
        os.utime(path, (now - ago, now - ago))
    os.utime(out / "warm" / "metrics.jsonl", (now - 600, now - 600))
    (tmp_path / "run fails").unlink()
    result, commands = recipe(STAGES="train")
    assert result.returncode == 0, result.stderr
    assert [given(c, "--run")[0] for c in commands[2:]] == [str(out / "run")]
    seconds = int((out / "results" / "time.txt").read_text().split()[1])
    assert 230 <= seconds < 240
    assert commands[2] == commands[1]  # with the minutes that it had


def test_what_was_scored_before_a_kill_is_published(recipe, tmp_path: Path) -> None:
    (tmp_path / "tradeoff kills").touch()
    result, _ = recipe(EMAS="0.9", W="2", EVALUATE_W="1 2", NFE="1", WARM="0")
    assert result.returncode == -9
    kept = {path.name for path in (tmp_path / "a run" / "results").iterdir()}
    assert {"config.yaml", "run_metrics.jsonl", "choose_ema_0.9.json", "evaluation.json"} <= kept
    assert "samples_nfe1_w2.0.png" in kept
    assert "tradeoff.json" not in kept


def test_more_minutes_continue_and_take_the_old_figures_away(recipe, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    small = {"EMAS": "0.9", "W": "2", "EVALUATE_W": "1 2", "NFE": "1"}
    assert recipe(**small)[0].returncode == 0
    result, commands = recipe(**small, MINUTES="9", STAGES="train")
    assert result.returncode == 0, result.stderr
    trained = [c for c in commands if c[0] == "train"]
    assert [Path(given(c, "--run")[0]).name for c in trained] == ["warm", "run", "run"]
    assert float(given(trained[2], "--minutes")[0]) == pytest.approx(float(given(trained[1], "--minutes")[0]) + 2)
    figures = ("evaluation*", "tradeoff*", "choose*", "samples*", "nearest*", "*.md", "best", "evaluate.log")
    assert not [path for kind in figures for folder in (out, out / "results") for path in folder.glob(kind)]
    chosen = len([c for c in commands if "/choose/" in str(c)])
    result, commands = recipe(**small, MINUTES="9")
    assert result.returncode == 0, result.stderr
    assert len([c for c in commands if "/choose/" in str(c)]) == chosen + 1  # of the new weights
    assert (out / "results" / "evaluation.json").exists()
    result, _ = recipe(**small, MINUTES="8")
    assert result.returncode == 2
    assert "was given MINUTES=9, now 8" in result.stderr


def test_a_first_phase_in_several_attempts_takes_no_more_than_its_minutes(recipe, tmp_path: Path) -> None:
    """What a killed attempt lost is not taken from the second phase."""
    (tmp_path / "warm fails").touch()
    assert recipe(STAGES="train")[0].returncode == 1
    (tmp_path / "a run" / "seconds").write_text("200\n")
    (tmp_path / "warm fails").unlink()
    result, commands = recipe(STAGES="train")
    assert result.returncode == 0, result.stderr
    assert [Path(given(c, "--run")[0]).name for c in commands] == ["warm", "warm", "run"]
    assert float(given(commands[-1], "--minutes")[0]) == pytest.approx(7 - 2 - 12 / 60)  # WARM and START
    assert int((tmp_path / "a run" / "results" / "time.txt").read_text().split()[1]) >= 200


def test_an_evaluation_of_other_samples_is_put_aside(recipe, tmp_path: Path) -> None:
    """`tvmatch evaluate` overwrites none."""
    small = {"EMAS": "0.9", "W": "2", "EVALUATE_W": "2", "NFE": "1", "ALSO": "0", "WARM": "0"}
    assert recipe(**small, SAMPLES="500")[0].returncode == 0
    assert not (tmp_path / "a run" / "earlier").exists()
    assert recipe(**small, SAMPLES="600")[0].returncode == 0
    assert len(list((tmp_path / "a run" / "earlier").glob("*/evaluation.json"))) == 1
    assert (tmp_path / "a run" / "evaluation.json").exists()


def test_figures_of_another_choice_or_question_are_not_beside_the_new(recipe, tmp_path: Path) -> None:
    """They go to a folder of their own, also those that are not asked for again, as the trade-off of one w."""
    out = tmp_path / "a run"

    def published(**variables: str) -> set[str]:
        small = {"W": "2", "NFE": "1", "ALSO": "0", "SAMPLES": "500", "WARM": "0", "EMAS": "0.99 0.9"}
        result, _ = recipe(**small | variables)
        assert result.returncode == 0, result.stderr
        kinds = ("choose", "evaluation", "tradeoff", "samples", "nearest", "table")
        return {path.name for path in (out / "results").iterdir() if path.name.startswith(kinds)}

    def of(w: str, *others: str) -> set[str]:
        pictures = {f"samples_nfe1_w{w}.png", f"nearest_nfe1_w{w}.png", "tradeoff.png"}
        return {"evaluation.json", "table.md", *pictures, *others}

    choices = ("choose_ema_0.9.json", "choose_ema_0.99.json")
    both = ("tradeoff.json", "tradeoff.md", "tradeoff_of_w.png")
    assert published(EVALUATE_W="1.5 2") == of("2.0", *choices, *both)
    assert published(EVALUATE_W="2.5 3") == of("3.0", *choices, *both)
    assert len(list((out / "earlier").glob("*/evaluation.json"))) == 1
    assert published(EVALUATE_W="3", PAIR="0.9 3") == of("3")
    rows = json.loads((out / "results" / "evaluation.json").read_text())["rows"]
    assert [row["w"] for row in rows] == [3]
    (out / "evaluation" / "samples_nfe2_w3.png").touch()
    assert published(EVALUATE_W="3", PAIR="0.9 3") == of("3", "samples_nfe2_w3.png")  # the same question
    for other in ({"NFE": "4"}, {"NFE": "4", "SEEDS": "1"}):
        before = len(list((out / "earlier").glob("*/evaluation.json")))
        assert published(EVALUATE_W="3", PAIR="0.9 3", **other) == of("3")
        assert len(list((out / "earlier").glob("*/evaluation.json"))) == before + 1


def test_the_optimiser_is_that_of_both_phases_and_of_the_folder(recipe, tmp_path: Path) -> None:
    result, commands = recipe(STAGES="train", OPTIMIZER="muon")
    assert result.returncode == 0, result.stderr
    assert [given(c, "--optimizer") for c in commands] == [["muon"], ["muon"]]
    settings = tmp_path / "a run" / "settings"
    settings.write_text(settings.read_text().replace("OPTIMIZER=muon\n", ""))  # of before there was a choice
    result, _ = recipe(STAGES="train", OPTIMIZER="muon")
    assert result.returncode == 2
    assert "OPTIMIZER='muon' and not 'adamw'" in result.stderr
    assert recipe(STAGES="train")[0].returncode == 0
