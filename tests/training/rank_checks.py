"""What the ranks of `tests/training/test_distributed.py` do."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.training.support import TINY, tiny_config
from tvmatch.data.digits import digits_source
from tvmatch.data.source import to_network_range
from tvmatch.training import loop, saving, step_gradient
from tvmatch.training.attention_probe import probe
from tvmatch.training.bench import StepCase, measure_step
from tvmatch.training.config import TrainConfig
from tvmatch.training.ranks import join_ranks
from tvmatch.training.schedule import Schedule

SOURCE = digits_source()


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor, or all shards of it, as its numbers."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def gradient(config: TrainConfig, checkpoint: Path) -> dict[str, Any]:
    """Loss and gradient of one step from a checkpoint's weights, and the state as it was loaded."""
    with join_ranks(config.strategy, config.device) as ranks:
        loop.check_shares(config, ranks.count)
        state, header, module = loop.prepare(config, SOURCE, ranks)
        loop.resume(state, header, checkpoint, ranks)
        loaded = {name: whole(value) for name, value in state.tensors().items()}
        run = loop._Run(config, SOURCE, state, header, module, ranks, Schedule(config), False)
        images = torch.from_numpy(SOURCE.batch(run.stream.indices(state.step)))
        run.backward(images, torch.from_numpy(SOURCE.labels[run.stream.indices(state.step)]))
        named = state.objective.flow.named_parameters()
        gradients = {name: whole(parameter.grad) for name, parameter in named}
        before = {decay: [whole(p) for p in flow.parameters()] for decay, flow in state.ema.flows.items()}
        state.move_averages(0.75)
        run.instruments.decide(torch.tensor(0.0), state.step)
        loss = run.instruments.read().figures["loss"]
        return {
            "loss": loss,
            "gradients": gradients,
            "loaded": loaded,
            "average": {name: whole(value) for name, value in state.tensors().items() if name.startswith("ema.0.9.")},
            "target": {name: whole(value) for name, value in state.tensors().items() if name.startswith("target.")},
            "moved": any(
                not torch.equal(whole(p), old)
                for decay, flow in state.ema.flows.items()
                for p, old in zip(flow.parameters(), before[decay], strict=True)
            ),
            "kept": {
                kind: sum(value.to_local().numel() if isinstance(value, DTensor) else value.numel() for value in values)
                for kind, values in {
                    "flow": list(state.objective.flow.parameters()),
                    "target": list(state.objective.target.parameters()),
                    "average": list(state.ema.flows[0.9].parameters()),
                    "slots": [value for slot in state.optimizer.state.values() for value in slot.values()],
                }.items()
            },
        }


def gathers(config: TrainConfig) -> dict[str, Any]:
    """How often a step, and then a call from outside, gather weights, and whether some are still whole afterwards."""
    with join_ranks(config.strategy, config.device) as ranks, pytest.MonkeyPatch.context() as patch:
        state, header, module = loop.prepare(config, SOURCE, ranks)
        run = loop._Run(config, SOURCE, state, header, module, ranks, Schedule(config), False)
        images = torch.from_numpy(SOURCE.batch(run.stream.indices(0)))
        label = torch.from_numpy(SOURCE.labels[run.stream.indices(0)])
        name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # torch 2.11
        calls, gather = [], getattr(dist, name)
        patch.setattr(dist, name, lambda *a, **k: (calls.append(1), gather(*a, **k))[1])
        found: dict[str, Any] = {}
        average = state.ema.flows[0.9].network
        for name, act in (
            ("first step", lambda: run.step(images, label)),
            ("step", lambda: run.step(images, label)),
            ("outside", lambda: probe(state.objective.flow.network, to_network_range(images), label, 2.0)),
            ("average", lambda: probe(average, to_network_range(images), label, 2.0)),
            ("last step", lambda: run.step(images, label)),
        ):
            calls.clear()
            act()
            parts = (state.objective, *state.ema.flows.values())
            whole = [name for part in parts for name, w in part.named_parameters() if not isinstance(w, DTensor)]
            found[name] = (len(calls), whole)
        return found


def train(config: TrainConfig) -> tuple[int, int | None]:
    """A whole run: the step at which it ended, and the signal."""
    result = loop.train(config, show=False)
    return result.step, result.signal


def train_apart(config: TrainConfig, seeds: tuple[int, ...]) -> None:
    """Every rank is given another seed."""
    changed = {**vars(config), "seed": seeds[int(os.environ["RANK"])]}
    loop.train(TrainConfig(**changed), show=False)


def measure(strategy: str) -> dict[str, Any]:
    """A row of the step benchmark."""
    with join_ranks(strategy, "cpu") as ranks:
        return measure_step(StepCase(TINY, 8, 1, 4, classes=10), ranks, 1.0, steps=1)


class Patched(loop._Run):
    """A run in which something happens to one rank after a step."""

    rank, after = 1, 3

    def step(self, images: torch.Tensor, label: torch.Tensor) -> None:
        super().step(images, label)
        if self.ranks.rank == self.rank and self.state.step == self.after:
            self.happen()


class Overflowing(loop._Run):
    """On the last rank the loss of the third step is not finite; its gradient is, so the other ranks see nothing."""

    def backward(self, images: torch.Tensor, label: torch.Tensor) -> None:
        super().backward(images, label)
        if self.state.step == 2 and self.ranks.rank == self.ranks.count - 1:
            figures, bins = self.instruments._observed[-1]
            self.instruments._observed[-1] = torch.full_like(figures, float("inf")), bins


class Signalled(Patched):
    def happen(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Drifting(Patched):
    """As if a rank's gradients had not been exchanged."""

    def happen(self) -> None:
        with torch.no_grad():
            next(self.objective.flow.parameters()).flatten()[0].add_(1e-6)


class Dying(Patched):
    after = 5  # the save of step 4 has waited for that of step 2, so there is a checkpoint

    def happen(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def train_with(run: type[loop._Run], config: TrainConfig) -> tuple[int, int | None]:
    """A whole run with a mishap."""
    loop._Run = run
    try:
        return train(config)
    finally:
        loop._Run = Patched.__base__


class Noting(loop._Run):
    """Notes whether steps were recorded."""

    recorded = False

    def step(self, images: torch.Tensor, label: torch.Tensor) -> None:
        super().step(images, label)
        Noting.recorded = self.gradient.graph is not None


def train_recorded(config: TrainConfig) -> tuple[int, bool]:
    """A whole run, and whether its last step was recorded."""
    step, _ = train_with(Noting, config)
    return step, Noting.recorded


def record_in_vain(config: TrainConfig) -> tuple[int, str]:
    """A step that rank 1 cannot record, on a CPU that acts as if it were a GPU; how many steps came before, and the
    error."""

    @contextlib.contextmanager
    def recording(*_: Any, **__: Any) -> Iterator[None]:
        yield
        if os.environ["RANK"] == "1":
            raise RuntimeError("operation not permitted when stream is capturing")

    with join_ranks(config.strategy, config.device) as ranks, pytest.MonkeyPatch.context() as patch:
        state, header, module = loop.prepare(config, SOURCE, ranks)
        run = loop._Run(config, SOURCE, state, header, module, ranks, Schedule(config), False)
        run.gradient.capture = True
        patch.setattr(torch.cuda, "CUDAGraph", MagicMock())
        patch.setattr(torch.cuda, "graph", recording)
        patch.setattr(step_gradient, "recording_stream", lambda device: None)
        patch.setattr(step_gradient, "join_streams", lambda module: None)
        images = torch.from_numpy(SOURCE.batch(run.stream.indices(0)))
        label = torch.from_numpy(SOURCE.labels[run.stream.indices(0)])
        for _ in range(run.gradient.launched_first):
            run.step(images, label)
        with pytest.raises(step_gradient.RecordingError) as caught:
            run.step(images, label)
        return run.gradient.launched, str(caught.value)


def train_on_a_full_disk(config: TrainConfig) -> None:
    """The disk of rank 1 refuses its part of the second checkpoint."""
    write, rank = saving.SafetensorsWriter.write_data, int(os.environ["RANK"])

    def refuse(self: saving.SafetensorsWriter, *arguments: Any) -> Any:
        if rank == 1 and self.header["step"] == 4:
            raise OSError(28, "No space left on device")
        return write(self, *arguments)

    saving.SafetensorsWriter.write_data = refuse
    try:
        loop.train(config, show=False)
    finally:
        saving.SafetensorsWriter.write_data = write


def config(run: Path, **changes: Any) -> TrainConfig:
    """The tiny run, of eight samples a step, which two or four ranks share in one or two micro-steps."""
    return tiny_config(run, **({"batch_size": 8, "guidance": "1:3"} | changes))
