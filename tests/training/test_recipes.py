import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from tvmatch.networks.presets import network_config
from tvmatch.training.recipes import RECIPES, fastest_row, find_recipe, projected_gpu_hours

RUNS = Path(__file__).parents[2] / "runs"


@pytest.mark.parametrize(
    ("name", "w", "side"),
    [
        ("imagenet256-1", "2", 32),
        ("imagenet256-4", "1.75", 32),
        ("imagenet512-1", "2.5", 64),
        ("imagenet512-4", "2.25", 64),
    ],
)
def test_imagenet_has_the_settings_of_the_paper(name, w, side):
    config = asdict(RECIPES[name].config())
    paper = {
        "objective": "terminal-velocity",
        "network": "DiT-XL/2",
        "guidance": w,
        "steps": 300_000,
        "batch_size": 2048,
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.0,
        "target_ema": 0.99,
        "evaluation_ema": (0.9999,),
        "label_dropout": 0.1,
        "scaled": True,
        "weighted": True,
        "jumps": "truncated-gap",
    }
    assert {key: config[key] for key in paper} == paper
    assert RECIPES[name].shape == (4, side, side)


def test_cifar10_has_the_settings_of_the_run_that_its_figure_is_of():
    run = RUNS.parent / "benchmarks" / "results" / "cifar10" / "tvm_1200s_seed0"
    measured, ours = yaml.safe_load((run / "config.yaml").read_text()), asdict(RECIPES["cifar10"].config())
    by_clock = {"run", "data", "initial", "minutes", "steps", "log_every", "sample_every", "checkpoint_every"}
    differ = {name for name in measured if measured[name] != (list(v) if isinstance(v := ours[name], tuple) else v)}
    assert differ - by_clock == {"keep_checkpoints"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_its_network(name):
    recipe = RECIPES[name]
    channels, side, _ = recipe.shape
    network_config(recipe.config().network, side, channels, 10)


def test_a_typo_says_what_was_meant():
    with pytest.raises(ValueError, match=r"no recipe is called 'imagenet256'; did you mean 'imagenet256-\d'"):
        find_recipe("imagenet256")
    with pytest.raises(ValueError, match="there are imagenet256-1, "):
        find_recipe("x")


def test_the_cost_is_that_of_the_fastest_measured_step_of_the_same_kind():
    row = {"network": "DiT-XL/2", "data": "4x32x32", "objective": "terminal-velocity", "gpus": 1}
    others = [
        {**row, "network": "DiT-S/4", "images_per_second": 9000.0},
        {**row, "data": "4x64x64", "images_per_second": 8000.0},
        {**row, "objective": "flow-matching", "images_per_second": 7000.0},
        {**row, "gpus": 2, "images_per_second": 6000.0},
        {**row, "terminal_every": 4, "images_per_second": 5000.0},
        {**row, "optimizer": "muon", "images_per_second": 4000.0},
        {"network": "DiT-XL/2", "policy": "none", "error": "out of memory"},
    ]
    recipe = RECIPES["imagenet256-1"]
    assert projected_gpu_hours(recipe, others) is None
    rows = [*others, {**row, "images_per_second": 100.0}, {**row, "images_per_second": 200.0}]
    assert fastest_row(recipe, rows) is rows[-1]
    assert projected_gpu_hours(recipe, rows) == pytest.approx(300_000 * 2048 / 200 / 3600)


def test_the_cost_of_minutes_is_told_as_more_than_nothing():
    """And of the recipe's own optimiser, which the committed results have."""
    script = RUNS.parent / "benchmarks" / "recipe_cost.py"
    told = subprocess.run([sys.executable, script, "cifar10"], capture_output=True, text=True, check=True).stdout
    assert "at 4317.0 images/s on one NVIDIA H200: 0.33 GPU-hours" in told


@pytest.mark.parametrize("name", ["imagenet256.sh", "imagenet512.sh", "cifar10.sh", "cifar10_1gpu.sh", "pictures.sh"])
def test_run_scripts_are_sound_and_name_recipes_that_exist(name):
    script = RUNS / name
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    if "imagenet" in script.name:
        assert all(f"{script.stem}-{calls}" in RECIPES for calls in (1, 4))
    if "--recipe cifar10" in text:
        assert "cifar10" in RECIPES
    empty = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert empty.returncode != 0
    assert "give" in empty.stderr


@pytest.mark.parametrize("name", ["imagenet256.sh", "imagenet512.sh", "cifar10.sh", "pictures.sh"])
def test_places_are_those_of_whoever_calls(tmp_path, name):
    """A script goes to the repository to find its parts, where a relative place would be another one."""
    (tmp_path / "bin").mkdir()
    for program in ("python3", "torchrun"):
        (tmp_path / "bin" / program).write_text('#!/usr/bin/env bash\necho "$@" >> "$TRACE"\n')
        (tmp_path / "bin" / program).chmod(0o755)
    for folder in ("vae", "pictures"):
        (tmp_path / folder).mkdir()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TRACE": str(tmp_path / "trace"), "GPUS": "1", "CODEC": "vae"}
    places = ["mine", "data.npz"] if name == "cifar10.sh" else ["pictures", "mine"]
    subprocess.run(["bash", RUNS / name, *places], cwd=tmp_path, env=environment, check=True, capture_output=True)
    words = (tmp_path / "trace").read_text().split()
    ours = [word for word in words if any(place in word.split("/") for place in (*places, "vae"))]
    assert len(ours) > 2
    assert all(word.startswith(f"{tmp_path}/") for word in ours)
