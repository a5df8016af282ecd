"""runs/cifar10_1gpu.sh with a `tvmatch` that only notes what it is asked for: its defaults are those of the committed
runs, the best of the candidates is scored, and what cannot be evaluated is refused before anything is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tvmatch.cli.options import parse
from tvmatch.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cifar10"
# notes its arguments, and leaves what the recipe looks for; smaller averages and larger w are better here
NOTER = """
import json, pathlib, sys
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
elif arguments[0] == "evaluate":
    out = pathlib.Path(after("--out")[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"w": float(w), "frechet": float(after("--ema")[0]) - float(w)} for w in after("--w")]
    out.write_text(json.dumps({"rows": rows}))
    out.with_suffix("").mkdir(exist_ok=True)
    for name in ("table.md", "tradeoff.png", "samples.png"):
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
        }
        command = ["bash", str(ROOT / "runs/cifar10_1gpu.sh"), str(tmp_path / "a run"), "data.npz", "inception.pt"]
        result = subprocess.run([*command, objective], env=ours | variables, capture_output=True, text=True)
        notes = noter.with_suffix(".jsonl")
        return result, [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    return run


def config_of(command: list[str]) -> dict:
    config = parse(TrainConfig, "train", "", command[1:], default=TrainConfig())
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


@pytest.mark.parametrize(
    ("objective", "folder"), [("terminal-velocity", "tvm_420s_seed0"), ("mean-flow", "mean_flow_420s_seed0")]
)
def test_the_defaults_are_the_committed_runs(recipe, objective: str, folder: str) -> None:
    result, commands = recipe(objective)
    assert result.returncode == 0, result.stderr
    for command, name in zip([c for c in commands if c[0] == "train"], ("warm_config", "config"), strict=True):
        asked, committed = config_of(command), yaml.safe_load((RESULTS / folder / f"{name}.yaml").read_text())
        for where in ("run", "data", "initial"):  # paths
            assert (asked.pop(where) is None) == (committed.pop(where) is None)
        minutes = committed.pop("minutes")  # of the second phase: what the first, of two minutes, left of seven
        assert asked.pop("minutes") == pytest.approx(minutes if name == "warm_config" else minutes + 2, abs=0.1)
        assert asked == committed
    scored = json.loads((RESULTS / folder / "evaluation_20000.json").read_text())
    chosen = [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("choose_*.json"))]
    choices = [c for c in commands if c[0] == "evaluate" and "/choose/" in c[c.index("--out") + 1]]
    assert {float(c[c.index("--ema") + 1]) for c in choices} == {each["checkpoint"]["ema"] for each in chosen}
    for choice in choices:
        scales = choice[choice.index("--w") + 1 : choice.index("--ema")]
        assert [float(w) for w in scales] == [row["w"] for row in chosen[0]["rows"]]
        assert int(choice[choice.index("--samples") + 1]) == chosen[0]["samples"]
    also = next(c for c in commands if "evaluation_20000.json" in c[-1])
    assert int(also[also.index("--samples") + 1]) == scored["samples"]


def test_the_best_of_the_candidates_is_scored_and_nothing_large_is_kept(recipe, tmp_path: Path) -> None:
    result, commands = recipe(EMAS="0.99 0.9", W="2", EVALUATE_W="1 2", WARM="0")
    assert result.returncode == 0, result.stderr
    assert len([c for c in commands if c[0] == "train"]) == 1  # no first phase
    full = next(c for c in commands if c[0] == "evaluate" and c[-1].endswith("/evaluation.json"))
    assert full[full.index("--w") + 1 : full.index("--ema") + 2] == ["2.0", "--ema", "0.9"]
    kept = {path.name for path in (tmp_path / "a run" / "results").iterdir()}
    assert {"config.yaml", "run_metrics.jsonl", "evaluation.json", "samples.png", "choose_ema_0.9.json"} <= kept
    assert (tmp_path / "a run" / "results" / "run_metrics.jsonl").read_text() == '{"step": 20}\n'
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
    assert only[only.index("--w") : only.index("--samples")] == ["--w", "2", "--ema", "0.9995", "--nfe", "1", "2", "4"]
    assert config_of(commands[1])["evaluation_ema"] == [0.995, 0.998, 0.9995]
    committed = json.loads((RESULTS / "mean_flow_420s_seed1" / "evaluation_20000.json").read_text())
    assert (committed["checkpoint"]["ema"], committed["rows"][0]["w"]) == (0.9995, 2)


@pytest.mark.parametrize("pair", ["0.9 2", "0.9995", "0.9995 2 3"])
def test_a_pair_that_is_none_is_refused_before_training(recipe, pair: str) -> None:
    result, commands = recipe(PAIR=pair)
    assert result.returncode == 2
    assert f"PAIR='{pair}' should be" in result.stderr
    assert not commands
