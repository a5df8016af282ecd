"""The training loop. It knows nothing of the method: an objective gives a loss, and the loop descends it.

Every step's random draws come from (seed, step) alone, and so does the order of the data. A run that is killed and
continued therefore ends with the same bits, on a CPU, as one that never stopped.
"""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from tvmatch.data.opening import open_source
from tvmatch.data.prefetch import Prefetcher
from tvmatch.data.source import Source, to_network_range
from tvmatch.data.stream import ShuffledStream
from tvmatch.networks.presets import network_config
from tvmatch.networks.probe import verify_tangents
from tvmatch.objectives import Objective, StepLoss, TerminalVelocityMatching
from tvmatch.training.build import build_flow, build_objective
from tvmatch.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    last_checkpoint_text,
    read_checkpoint,
    read_header,
    step_of,
    write_checkpoint,
)
from tvmatch.training.config import TrainConfig
from tvmatch.training.ema import EvaluationEma, move_towards
from tvmatch.training.engine import compute_dtype, prepare_objective, should_compile
from tvmatch.training.preview import draw_preview
from tvmatch.training.progress import TrainingProgress
from tvmatch.training.run_folder import MetricsFile, claim_run, open_run
from tvmatch.training.state import TrainingState, network_from_header, network_to_header


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and what was saved."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: steps done, the last checkpoint, and the signal that interrupted it (None: complete)."""

    step: int
    checkpoint: Path
    signal: signal.Signals | None
    images_per_second: float


def train(config: TrainConfig, source: Source | None = None, show: bool = True) -> TrainingResult:
    """Run or continue a training run until `config.steps`, or until SIGINT or SIGTERM, then save and return.

    `source` overrides `config.data`. Everything is written under `config.run`. Raises `DataError`, `RunFolderError`,
    `CheckpointError` or `ValueError` before training for what cannot work, `TrainingError` on a non-finite loss.
    """
    device = choose_device(config.device)
    checkpoint_before = open_run(config)
    source = source if source is not None else open_source(config.data, config.image_size, config.strict)
    state, header = prepare(config, source, device)
    if checkpoint_before is not None:
        resume(state, header, checkpoint_before, device)
    dtype = compute_dtype(config.precision, device)
    prepare_objective(state.objective, dtype, should_compile(config.compile, device), config.recompute)
    if isinstance(state.objective, TerminalVelocityMatching):
        verify_tangents(state.objective.flow, config.batch_size)
    # only now is anything written: an option that cannot work must not leave a folder that then refuses the right one
    with claim_run(config):
        try:
            return _Run(config, source, state, header, device, show).go()
        except OSError as error:
            raise TrainingError(
                f"step {state.step}: cannot write into {config.run}: {error.strerror or error}. "
                f"{last_checkpoint_text(config.run)} "
                "Free some space or make the folder writable, then run the same command again to continue."
            ) from error


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one; a GPU that is not there is an error, not a fallback."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but PyTorch sees no GPU; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no GPU {device.index}; PyTorch sees {torch.cuda.device_count()}, counted from 0.")
    return device


def prepare(config: TrainConfig, source: Source, device: torch.device) -> tuple[TrainingState, dict]:
    """A fresh training state, and the header that its checkpoints carry."""
    channels, side, _ = source.shape
    shape = network_config(config.network, side, channels, source.num_classes)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        with device:  # initial weights are normalised on the device: quick for large networks on a GPU
            flow = build_flow(config, shape)
    objective = build_objective(config, flow)
    optimizer = torch.optim.AdamW(
        flow.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    header = {
        "network": network_to_header(shape),
        "scaled": config.scaled,
        "objective": config.objective,
        "guidance": config.guidance,
        "class_names": list(source.class_names),
        "data": source.fingerprint,
        "latent_space": None if source.latent_space is None else source.latent_space.to_header(),
    }
    return TrainingState(objective, EvaluationEma(flow, config.evaluation_ema), optimizer), header


def resume(state: TrainingState, header: dict, path: Path, device: torch.device) -> None:
    """Load a checkpoint into a fresh state, refusing one of another network or other data."""
    saved = read_header(path)
    if network_from_header(saved.get("network"), str(path)) != network_from_header(header["network"], str(path)):
        raise CheckpointError(f"{path} is of another architecture: {saved['network']}, not {header['network']}.")
    if saved.get("data") != header["data"]:
        raise CheckpointError(
            f"{path} was trained on other data than this command reads now. Restore the data, or choose another --run."
        )
    if saved["step"] != step_of(path):
        raise CheckpointError(f"{path} holds step {saved['step']}; give it back the name it was saved under.")
    state.load(read_checkpoint(path, device=device), saved["step"], str(path))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of one step's random draws, a pure function of its arguments."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM instead of dying at once; a second signal of the same kind acts as usual."""
    caught: list[signal.Signals] = []
    earlier = {}

    def note(number: int, frame: object) -> None:
        caught.append(signal.Signals(number))
        signal.signal(number, earlier[number] or signal.SIG_DFL)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            earlier[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals belong to the program that called us
        earlier.clear()
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not installed by Python


class _Run:
    """One process's share of a run, from the current step to the end."""

    def __init__(
        self, config: TrainConfig, source: Source, state: TrainingState, header: dict, device: torch.device, show: bool
    ) -> None:
        self.config, self.source, self.state, self.header, self.device = config, source, state, header, device
        self.objective: Objective = state.objective
        self.parameters = list(self.objective.flow.parameters())
        self.metrics = MetricsFile(config.run / "metrics.jsonl", state.step)
        self.progress = TrainingProgress(config.run.name, state.step, config.steps, show)
        self.sums: dict[str, Tensor] = {}
        self.counted, self.since = 0, time.perf_counter()
        self.images, self.seconds = 0, 0.0

    def go(self) -> TrainingResult:
        config, state = self.config, self.state
        stream = ShuffledStream(len(self.source), config.batch_size, config.seed)
        with (
            _signals() as caught,
            Prefetcher(self.source, stream, state.step, self.device, config.flip) as batches,
            # what was logged at this step lies before the checkpoint; what came after it is written again
            SummaryWriter(str(config.run / "tensorboard"), purge_step=state.step + 1) as self.board,
            self.progress,
        ):
            if state.step:
                self.progress.say(f"continuing {config.run} after step {state.step}")
            while state.step < config.steps and not caught:
                images, label = self.next_batch(batches)
                self.step(to_network_range(images), label)
                figures = self.report() if state.step % config.log_every == 0 else None
                self.progress.update(state.step, figures)
                if config.sample_every and state.step % config.sample_every == 0:
                    self.preview()
                if state.step % config.checkpoint_every == 0 and state.step < config.steps:
                    self.save()
            checkpoint = self.save()
        if caught:
            then = "the same command continues the run" if state.step < config.steps else "the run is complete"
            self.progress.say(f"{caught[0].name}: saved {checkpoint}; {then}.")
        speed = self.images / self.seconds if self.seconds else 0.0
        return TrainingResult(state.step, checkpoint, caught[0] if caught else None, speed)

    def next_batch(self, batches: Prefetcher) -> tuple[Tensor, Tensor]:
        """The batch of this step. A source that cannot be read is told apart from a disk that cannot be written."""
        try:
            return next(batches)
        except OSError as error:
            raise TrainingError(
                f"step {self.state.step}: the data set cannot be read: {error}. {last_checkpoint_text(self.config.run)}"
            ) from error

    def step(self, x0: Tensor, label: Tensor) -> None:
        """One training step: loss, gradient, weights, averages."""
        config, state, objective = self.config, self.state, self.objective
        warmup = min(1.0, (state.step + 1) / max(config.warmup_steps, 1))
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup
        objective.seed(step_seed(config.seed, state.step))
        result: StepLoss = objective(x0, label)
        result.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_gradient, foreach=True)
        self.collect({"loss": result.loss.detach(), **result.terms, "gradient_norm": norm})
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if objective.target is not None:
            move_towards(objective.target, objective.flow, config.target_ema)
        state.ema.update(objective.flow, state.step)
        state.step += 1
        self.images += len(x0)

    def collect(self, figures: dict[str, Tensor]) -> None:
        """Add up figures on the device; on a CPU, where looking costs nothing, refuse a non-finite one at once."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.counted += 1
        if self.device.type == "cpu" and not all(math.isfinite(value) for value in figures.values()):
            self.refuse({name: float(value) for name, value in figures.items()})

    def report(self) -> dict[str, float]:
        """Write the mean of the figures since the last report, and return them."""
        if not self.counted:
            return {}
        means = {name: float(value) / self.counted for name, value in self.sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            self.refuse(means)
        now = time.perf_counter()
        seconds = now - self.since
        self.seconds += seconds
        speed = self.counted * self.config.batch_size / seconds
        self.sums, self.counted, self.since = {}, 0, now
        self.metrics.write({"step": self.state.step, **means, "images_per_second": speed})
        for name, value in {**means, "images_per_second": speed}.items():
            self.board.add_scalar(name, value, self.state.step)
        return {**means, "images/s": speed}

    def refuse(self, figures: dict[str, float]) -> None:
        """A non-finite figure: stop before it reaches a checkpoint."""
        listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        raise TrainingError(
            f"step {self.state.step}: a figure is not finite ({listed}). {last_checkpoint_text(self.config.run)} "
            "Start another --run with a lower --learning-rate or --clip-gradient."
        )

    def preview(self) -> None:
        """A picture of samples by the slowest average, in RUN/samples and on TensorBoard."""
        flow = self.state.ema.flows[max(self.state.ema.flows)]
        picture = draw_preview(flow, self.config, self.source.class_names, self.state.step)
        self.board.add_image("samples", np.asarray(picture), self.state.step, dataformats="HWC")
        self.since = time.perf_counter() if not self.counted else self.since

    def save(self) -> Path:
        """Write a checkpoint of this step."""
        self.report()
        path = checkpoint_path(self.config.run, self.state.step)
        header = {**self.header, "step": self.state.step}
        write_checkpoint(path, self.state.tensors(), header, self.config.keep_checkpoints)
        self.since = time.perf_counter()
        return path
