"""The tasks of ablations: what is trained, and how it is judged."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvmatch.ablation.points import PointSource, exact_samples
from tvmatch.ablation.study import TaskName
from tvmatch.checks import NotFiniteError
from tvmatch.data.opening import open_source
from tvmatch.data.source import Source, to_network_range
from tvmatch.interpolant import interpolate
from tvmatch.metrics.report import evaluate_run
from tvmatch.sampling import METHODS, draw, seeded_noise
from tvmatch.theory import velocity_lipschitz, w2_samples
from tvmatch.training.config import TrainConfig
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun

# metric -> whether larger is better; the first of a task is the one to look at
METRICS: dict[TaskName, dict[str, bool]] = {
    "points": {"map_error": False, "w2": False},
    "pictures": {"frechet": False, "class_accuracy": True},
}
TIMES = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)  # at which Lipschitz constants are taken
LIPSCHITZ_POINTS, LIPSCHITZ_ITERATIONS = 32, 8  # at each of them
REFUSED: dict[TaskName, tuple[str, ...]] = {"points": ("data", "image_size", "crop", "flip", "strict"), "pictures": ()}


def base_config(task: TaskName) -> TrainConfig:
    """The options of a task before anything is varied."""
    common = {"evaluation_ema": (0.99,), "log_every": 10, "sample_every": 0, "keep_checkpoints": 1, "device": "cpu"}
    common |= {"decay_share": 0.5}  # short runs: the learning rate falls, so that they come to rest
    if task == "points":
        points = {"network": "MLP-128x3", "batch_size": 256, "learning_rate": 3e-3, "steps": 1200}
        return TrainConfig(checkpoint_every=400, **points, **common)
    return TrainConfig(steps=300, checkpoint_every=100, **common)


def check_options(task: TaskName, config: TrainConfig) -> None:
    """Raise `ValueError` for an option that the task would ignore."""
    default = TrainConfig()
    for name in REFUSED[task]:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"the task {task!r} has data of its own; leave {name} out.")


def open_task(task: TaskName, config: TrainConfig) -> Source:
    """The data that the task trains on."""
    if task == "points":
        return PointSource()
    return open_source(config.data, config.image_size, config.strict, config.crop)


def judge(
    task: TaskName, run: Path, trained: TrainedRun, calls: Sequence[int], scales: Sequence[float], samples: int
) -> list[dict[str, Any]]:
    """A row of figures for each number of calls and each guidance scale. Empty if the samples are not finite.

    points    map_error: root mean square distance between a jump's end and where the exact guided flow takes the same
              noise (of consistency models in several calls, which put other noise in, only w2 tells something); w2:
              between the two sets of ends
    pictures  `tvmatch.metrics.report`: Frechet distance in pixel values and, for digits, the judge's class accuracy
    """
    if not all(_finite(trained, w, max(calls)) for w in scales):
        return []
    if task == "pictures":
        return evaluate_run(run, trained, calls, scales, samples, seed=0)
    return [_points_row(trained, nfe, w, samples) for w in scales for nfe in calls]


def _finite(trained: TrainedRun, w: float, nfe: int) -> bool:
    """Whether 64 samples are finite, drawn as the run is judged."""
    classes = trained.flow.network.num_classes
    label = torch.arange(64) % classes if classes else torch.full((64,), -1)
    try:
        return bool(draw(trained.flow, label, w, nfe, method=trained.method).isfinite().all())
    except NotFiniteError:  # of one call, which the next refuses
        return False


def _points_row(trained: TrainedRun, nfe: int, w: float, samples: int) -> dict[str, Any]:
    noise, label, exact = exact_samples(samples, w)
    # a result depends on its cell alone, and not on what torch's global stream has given before
    numbered = functools.partial(seeded_noise, 0, range(samples), trained.flow.network.data_shape)
    fresh = {"fresh": numbered} if trained.method == "consistency" else {}
    ends = METHODS[trained.method](trained.flow, noise[:, :, None, None], label, w, nfe, **fresh).flatten(1).double()
    distance = (ends - exact).square().sum(1).mean().sqrt()
    return {"nfe": nfe, "w": w, "map_error": float(distance), "w2": w2_samples(ends, exact)}


def lipschitz(task: TaskName, run: Path, trained: TrainedRun) -> float:
    """The largest |du/dx| of the trained velocity on noisy data at `TIMES`, at the scale that the run samples with by
    default, whatever it is judged at: an estimate from below of its Lipschitz constant."""
    source = open_task(task, read_config(run))
    count = min(LIPSCHITZ_POINTS, len(source))
    chosen = np.linspace(0, len(source) - 1, count).astype(np.int64)
    x0 = to_network_range(torch.from_numpy(source.batch(chosen)))
    label = torch.from_numpy(source.labels[chosen])
    source.close()
    generator = torch.Generator().manual_seed(0)
    largest = []
    for time in TIMES:
        t = torch.full((count,), time)
        x: Tensor = interpolate(x0, torch.randn(x0.shape, generator=generator), t)
        w = torch.where(label < 0, 1.0, trained.w)
        largest.append(velocity_lipschitz(trained.flow, x, t, label, w, LIPSCHITZ_ITERATIONS, generator).max())
    return float(torch.stack(largest).max())
