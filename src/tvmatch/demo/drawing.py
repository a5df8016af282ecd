"""Pictures and their milliseconds for one page: a run by its own method, and Euler steps beside it."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tvmatch.demo.request import DrawRequest
from tvmatch.pictures import enlarge, tile
from tvmatch.sampling import draw, untaught
from tvmatch.training.trained import TrainedRun

EULER_STEPS = 50
SHEET = 512  # pixels: about the side of a sheet of pictures


@dataclass(frozen=True)
class Drawn:
    """A sheet of pictures, uint8 [H, W, 3], and the milliseconds that its network calls took."""

    sheet: np.ndarray
    milliseconds: float


class Artist:
    """Draws with one run, and beside it by Euler steps along a velocity: that of the same network, u = w F(x, t, t), or
    of a second run. One request at a time: the milliseconds are those of one.

    `to_pictures` and `beside_to_pictures` make uint8 [N, H, W, C] of what the networks draw (`picture_maker`).
    Raises `ValueError` if the second run has other classes, another shape, or no velocity that was taught.
    """

    def __init__(
        self,
        run: TrainedRun,
        to_pictures: Callable[[Tensor], np.ndarray],
        beside: TrainedRun | None = None,
        beside_to_pictures: Callable[[Tensor], np.ndarray] | None = None,
    ) -> None:
        self.run, self.beside = run, beside or run
        self.to_pictures, self.beside_to_pictures = to_pictures, beside_to_pictures or to_pictures
        self._one = threading.Lock()
        _check_same_classes(self.run, self.beside)
        _check_same_shape(self.run, self.beside)
        if beside is not None and not self.compares:
            raise ValueError(
                f"the run beside is of {beside.objective}, which teaches no velocity that Euler steps could follow; "
                "give one of another objective, such as flow-matching."
            )

    @property
    def compares(self) -> bool:
        """Whether there is a velocity that was taught to draw beside the run."""
        return untaught(self.beside.objective, "euler", EULER_STEPS) is None

    def draw(self, request: DrawRequest) -> Drawn:
        """What the request asks for: jumps, or Euler steps where only a velocity was learned."""
        return self._draw(self.run, self.to_pictures, request, request.calls, self.run.method)

    def flow_matching(self, request: DrawRequest) -> Drawn:
        """The same classes and noise in EULER_STEPS Euler steps along the velocity, where the artist `compares`."""
        return self._draw(self.beside, self.beside_to_pictures, request, EULER_STEPS, "euler")

    def warm_up(self) -> None:
        """Draw once and forget it: a first call pays for what later ones find ready."""
        label = 0 if self.run.flow.network.num_classes else -1
        self.draw(DrawRequest((label,), 1, self.run.w, 0))

    def _draw(
        self,
        run: TrainedRun,
        to_pictures: Callable[[Tensor], np.ndarray],
        request: DrawRequest,
        steps: int,
        method: str,
    ) -> Drawn:
        label = torch.tensor(_labels_of(run, self.run, request.labels))
        with self._one:
            began = time.perf_counter()
            x = draw(run.flow, label, request.w, steps, seed=request.seed, method=method)
            milliseconds = 1000 * (time.perf_counter() - began)
            pictures = to_pictures(x)
        columns = int(np.ceil(np.sqrt(len(pictures))))
        target = max(8, SHEET // columns)
        return Drawn(enlarge(tile(pictures, columns), target, pictures.shape[1]), milliseconds)


def _check_same_classes(run: TrainedRun, beside: TrainedRun) -> None:
    """`ValueError` unless both runs know the same classes, in any order; names may be missing."""
    counts = run.flow.network.num_classes, beside.flow.network.num_classes
    if counts[0] != counts[1]:
        raise ValueError(f"the run beside knows {counts[1]} classes and this one {counts[0]}; they must be the same.")
    if run.class_names and beside.class_names and set(run.class_names) != set(beside.class_names):
        stranger = sorted(set(beside.class_names) - set(run.class_names))[0]
        raise ValueError(f"the run beside has a class {stranger!r} that this one has not; they must be the same.")


def _check_same_shape(run: TrainedRun, beside: TrainedRun) -> None:
    """`ValueError` unless both runs begin from noise of one shape: otherwise it could not be the same."""
    ours, theirs = list(run.flow.network.data_shape), list(beside.flow.network.data_shape)
    if ours != theirs:
        raise ValueError(f"the run beside draws from noise of {theirs} and this one of {ours}; they must be the same.")


def _labels_of(run: TrainedRun, asked: TrainedRun, labels: Sequence[int]) -> list[int]:
    """Labels of the run `asked` as those of `run`, which may have its classes in another order."""
    if not run.class_names or not asked.class_names:
        return list(labels)
    return [label if label < 0 else run.class_names.index(asked.class_names[label]) for label in labels]
