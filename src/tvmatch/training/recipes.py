"""Recipes: the options of whole training runs under one name, `tvmatch train --recipe NAME`.

The four of ImageNet are the settings that the paper (arXiv 2511.19797) publishes for its figures: batch 2048, 300,000
steps, AdamW at 1e-4 with betas (0.9, 0.95) and no weight decay, target average 0.99, evaluation average 0.9999, label
dropout 0.1, the guidance scale of each figure. It says nothing of a limit to the gradient or of mirrored pictures:
both are as in the recipes of diffusion transformers before it (norm 1 here, mirrored). No run of them was made here.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tvmatch.training.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Options of a run, and what it is meant to give.

    shape    (C, h, w) of what the network sees
    options  fields of `TrainConfig` and their values
    figure   what was published for it, or what to expect, in words
    """

    shape: tuple[int, int, int]
    figure: str
    options: dict[str, Any] = field(repr=False)

    def config(self) -> TrainConfig:
        """The configuration; `run`, `data` and what depends on the machine are the user's to give."""
        return replace(TrainConfig(), **self.options)


def _imagenet(guidance: str) -> dict[str, Any]:
    """The paper's settings with a guidance scale."""
    return {
        "network": "DiT-XL/2",
        "guidance": guidance,
        "jumps": "truncated-gap",
        "flip": True,
        "label_dropout": 0.1,
        "steps": 300_000,
        "batch_size": 2048,
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.0,
        "target_ema": 0.99,
        "evaluation_ema": (0.9999,),
        "log_every": 100,
        "sample_every": 5000,
        "checkpoint_every": 5000,
    }


RECIPES = {
    "imagenet256-1": Recipe((4, 32, 32), "ImageNet 256, 1 call: FID 3.29 (paper)", _imagenet("2")),
    "imagenet256-4": Recipe((4, 32, 32), "ImageNet 256, 4 calls: FID 1.99 (paper)", _imagenet("1.75")),
    "imagenet512-1": Recipe((4, 64, 64), "ImageNet 512, 1 call: FID 4.32 (paper)", _imagenet("2.5")),
    "imagenet512-4": Recipe((4, 64, 64), "ImageNet 512, 4 calls: FID 2.94 (paper)", _imagenet("2.25")),
    "cifar10": Recipe(
        (3, 32, 32),
        "CIFAR-10: not run alone; after 5 minutes of flow matching 6,957 steps gave FID-50k 9.07 in 1 call, w = 2 "
        "(runs/cifar10_1gpu.sh)",
        {
            "network": "DiT-S/2",
            "guidance": "1.75:2.5",
            "jumps": "wide",
            "terminal_every": 4,
            "flip": True,
            "steps": 10_000,
            "batch_size": 512,
            "optimizer": "muon",
            "learning_rate": 1e-3,
            "warmup_steps": 100,
            "decay_share": 0.5,
            "target_ema": 0.99,
            "evaluation_ema": (0.998, 0.9995),
            "log_every": 50,
            "sample_every": 1000,
            "checkpoint_every": 1000,
        },
    ),
    "pictures": Recipe(
        (32, 28, 28),
        "your own pictures as latents: a start, see docs/your_own_pictures.md",
        {
            "network": "DiT-B/2",
            "guidance": "1.5",
            "flip": True,
            "steps": 50_000,
            "batch_size": 256,
            "learning_rate": 2e-4,
            "warmup_steps": 500,
            "evaluation_ema": (0.999, 0.9999),
            "log_every": 50,
            "sample_every": 1000,
            "checkpoint_every": 1000,
        },
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name; `ValueError` says which there are."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}."
    raise ValueError(f"no recipe is called {name!r}; {hint}")


def fastest_row(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the fastest step on one GPU that was measured for the recipe's network, data, objective, share of
    jumps and optimiser; `rows` as `benchmarks/train_step.py` writes them. None where there is none."""
    config, shape = recipe.config(), "x".join(map(str, recipe.shape))
    wanted = {"network": config.network, "data": shape, "objective": config.objective, "gpus": 1}
    wanted |= {"terminal_every": config.terminal_every, "optimizer": config.optimizer}
    before = {"terminal_every": 1, "optimizer": "adamw"}  # what rows do not say that are older than the choice
    fitting = [row for row in rows if all((before | row).get(key) == wanted[key] for key in wanted)]
    return max(fitting, key=lambda row: row["images_per_second"], default=None)


def projected_gpu_hours(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> float | None:
    """steps * batch / (images a second on one GPU) / 3600: a projection from a measured step, with nothing added for
    what several GPUs lose, for pictures drawn, checkpoints or evaluation. None where no step was measured."""
    row, config = fastest_row(recipe, rows), recipe.config()
    return None if row is None else config.steps * config.batch_size / row["images_per_second"] / 3600
