"""Loss and gradient of a step: launched anew each time, or recorded once as a CUDA graph and replayed.

A TVM step of DiT-XL/2 launches some six thousand kernels from Python. That takes the host as long as the GPU takes to
run them (388 of 410 ms on an H200 machine), so the GPU waits. A graph replays them all in one call, on the same
addresses: weights, optimiser and averages are updated in place between replays, and every step's draws come from a
generator that the graph knows, so that the numbers are those of the launched step.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tvmatch.objectives import Objective, StepLoss
from tvmatch.objectives.base import Part
from tvmatch.training.distributed import join_streams, recording_stream, release
from tvmatch.training.optimizers import Optimizer
from tvmatch.training.ranks import Ranks

LAUNCHED_STEPS = 3  # everything must be compiled, tuned and allocated before recording
LAUNCHED_STEPS_DDP = 11  # in its first ten DDP reads the times of its events, for which the host waits
TOLERANCE = 1e-2  # of loss and gradient norm between a launched and a recorded step: order of 16-bit sums, not more


class RecordingError(RuntimeError):
    """A step that cannot be recorded, or a recording that does not repeat it; the message says so and what to do."""


class StepGradient:
    """Fills `.grad` of every parameter with the gradient of a step's loss.

    `module` is the objective or a data-parallel wrapper of it. With `capture`, the step is recorded after a few
    launched ones, and once the objective's tangents have been seen to arrive (a check that reads from the device).
    Between calls use `clear` in place of `optimizer.zero_grad`: a recorded step writes its gradients anew by itself.
    A recorded step of several `ranks` exchanges its weights and gradients in the graph; call `close` before they part.

    `ValueError` where a recorded step is called with another shape of batch. `RecordingError`, on every rank, where a
    step cannot be recorded or a recording does not repeat the launched step.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        capture: bool,
        ranks: Ranks | None = None,
    ) -> None:
        self.module, self.objective, self.optimizer, self.capture = module, objective, optimizer, capture
        self.ranks = ranks or Ranks(next(objective.flow.parameters()).device)
        self.launched_first = LAUNCHED_STEPS_DDP if isinstance(module, DistributedDataParallel) else LAUNCHED_STEPS
        self.launched = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x0: Tensor, label: Tensor, part: Part, share: float = 1.0) -> StepLoss:
        """Data, classes and their place in the whole batch -> the loss, after the gradient of `share` times it was
        added to `.grad`. The tensors of a recorded step's result are overwritten by the next call."""
        if self.graph is None:
            if not self.capture or self.launched < self.launched_first or not self._tangents_seen():
                self.launched += 1
                return self._launch(x0, label, part, share)
            seeded = self.objective.generator.get_state()
            result = self._launch(x0, label, part)
            figures = self._figures(result)
            if not all(map(math.isfinite, figures)):
                return result  # nothing to compare a recording with; whoever asked decides what becomes of this step
            self.objective.generator.set_state(seeded)
            self._record(x0, label, part, figures)
        if x0.shape != self.x0.shape or part != self.part:
            raise ValueError(
                f"a step was recorded for a batch of {list(self.x0.shape)} at {self.part}, not {list(x0.shape)} at "
                f"{part}; train with --graphs off."
            )
        self.x0.copy_(x0)
        self.label.copy_(label)
        self.graph.replay()
        return self.result

    def clear(self) -> None:
        """Forget the gradients before the next step."""
        if self.graph is None:
            self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Forget the recording. NCCL waits for all that it has a part in before a group of processes ends."""
        self.capture = False
        if self.graph is not None:
            self.graph.reset()
            self.graph = None

    def _tangents_seen(self) -> bool:
        return not self.objective.has_tangents or self.objective.flow.tangent_seen

    def _launch(self, x0: Tensor, label: Tensor, part: Part, share: float = 1.0) -> StepLoss:
        result = self.module(x0, label, part)
        (result.loss * share).backward()
        release(self.module)
        return StepLoss(result.loss.detach(), *result[1:])

    def _record(self, x0: Tensor, label: Tensor, part: Part, launched: tuple[float, float]) -> None:
        """Record the step whose draws come next, and compare it with the figures of a launch."""
        self.x0, self.label, self.part = x0.clone(), label.clone(), part
        generator = self.objective.generator
        seeded = generator.get_state()
        self.optimizer.zero_grad(set_to_none=True)  # the recorded step allocates them at addresses of its own
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        failure: Exception | None = None
        try:
            # other threads (the loader's) may use the device meanwhile
            stream = recording_stream(self.ranks.device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.result = self._launch(self.x0, self.label, part)
                join_streams(self.module)
        except Exception as error:  # which the others must hear of: they would wait for this rank in the first replay
            failure = error
        if float(self.ranks.mean(torch.tensor(float(failure is not None)))) > 0:
            here = f"{type(failure).__name__}: {failure}" if failure else "another one says why"
            raise RecordingError(
                f"rank {self.ranks.rank}: the step cannot be recorded ({here}). Train with --graphs off."
            ) from failure
        generator.manual_seed(1)
        graph.replay()
        other = self._figures(self.result)
        generator.set_state(seeded)
        graph.replay()
        check_recorded(launched, self._figures(self.result), other)
        generator.set_state(seeded)
        self.graph = graph

    def _figures(self, result: StepLoss) -> tuple[float, float]:
        """Loss and gradient norm over all ranks, read from the device; what follows from them is decided alike."""
        gradients = [p.grad for p in self.objective.flow.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return float(self.ranks.mean(result.loss.detach())), float(norm)


def check_recorded(
    launched: tuple[float, float], recorded: tuple[float, float], other_seed: tuple[float, float]
) -> None:
    """Raise if a recorded step does not repeat a launched one (loss, gradient norm), or repeats it for any seed."""
    for name, expected, got in zip(("loss", "gradient norm"), launched, recorded, strict=True):
        if not math.isclose(expected, got, rel_tol=TOLERANCE):
            raise RecordingError(
                f"the recorded step gives {name} {got:.6g} where the launched one gives {expected:.6g}: it cannot be "
                "trusted. Train with --graphs off, and report this."
            )
    if other_seed == recorded:
        raise RecordingError(
            "the recorded step gives the same loss and gradient for another seed: its draws stand still. Train with "
            "--graphs off, and report this."
        )
