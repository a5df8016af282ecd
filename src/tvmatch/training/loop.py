"""The training loop. It knows nothing of the method: an objective gives a loss, and the loop descends it.

Every step's random draws come from (seed, step) alone, and so does the order of the data. A run that is killed and
continued therefore ends with the same bits, on a CPU, as one that never stopped.
"""

import contextlib
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tvmatch.data.latent_space import picture_maker
from tvmatch.data.opening import open_source
from tvmatch.data.prefetch import Prefetcher
from tvmatch.data.source import DataError, Source, contents, to_network_range
from tvmatch.data.stream import ShuffledStream
from tvmatch.objectives import Objective, Part
from tvmatch.training.attention_probe import logit_figures, probe
from tvmatch.training.checkpoint import clear_unfinished, last_checkpoint_text, read_header, step_of
from tvmatch.training.config import TrainConfig
from tvmatch.training.distributed import gradient_exchange
from tvmatch.training.engine import outer_products, should_capture, should_compile, start_compilers
from tvmatch.training.failures import TrainingError, told_failures, told_preparation, unreadable
from tvmatch.training.initial import other_start
from tvmatch.training.instruments import Instruments, Reading
from tvmatch.training.preparing import check_shares, options_of, prepare, resume, share_of
from tvmatch.training.preview import default_w, draw_preview
from tvmatch.training.progress import TrainingProgress
from tvmatch.training.ranks import Ranks, Vote, checksums, join_ranks
from tvmatch.training.records import Records
from tvmatch.training.run_folder import RunCompleteError, claim_run, open_run, other_length, other_shares
from tvmatch.training.saving import Saver
from tvmatch.training.schedule import Schedule
from tvmatch.training.signals import PATIENCE, collected_signals
from tvmatch.training.state import TrainingState
from tvmatch.training.step_gradient import StepGradient


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: steps done, the last checkpoint, the signal that ended it (None: none did), images a second,
    which process this is, and whether nothing is left to train (a signal may come during the last save)."""

    step: int
    checkpoint: Path
    signal: signal.Signals | None
    images_per_second: float
    rank: int = 0
    complete: bool = False


def train(config: TrainConfig, source: Source | None = None, show: bool = True) -> TrainingResult:
    """Run or continue a training run until `config.steps` (or `config.minutes`), or until SIGINT or SIGTERM, then save
    and return.

    `source` overrides `config.data`. Everything is written under `config.run`. Every process of a run that torchrun
    started calls it alike. Raises `DataError`, `RunFolderError`, `CheckpointError` or `ValueError` before training for
    what cannot work, `DataError` or `TrainingError` later for data that cannot be read, `TrainingError` when more than
    `config.max_skipped` steps in a row are not finite, `RanksError` where processes differ or are gone.
    """
    with join_ranks(config.strategy, config.device) as ranks, outer_products(config.precision, ranks.device):
        check_shares(config, ranks.count)
        before = ranks.on_main(lambda: open_run(config))
        schedule = Schedule(config, 0.0 if before is None else read_header(before).get("seconds", 0.0), ranks.count)
        if before is not None and schedule.over(step_of(before)):
            raise RunCompleteError(
                f"{config.run} already holds this run, complete with {schedule.spent / 60:.1f} minutes. Choose another "
                "--run, or give more --minutes to continue it."
            )
        if should_compile(config.compile, ranks.device):
            start_compilers(ranks.device)  # they come up while data and network do
        with contextlib.ExitStack() as stack:
            if source is None:
                source = open_source(config.data, config.image_size, config.strict, config.crop)
                stack.callback(source.close)  # which names what had to be skipped
            with told_preparation(config.run):
                state, header, module = prepare(config, source, ranks, fresh=before is None)
                if before is not None:
                    resume(state, header, before, ranks)
            start = ranks.on_main(lambda: other_length(config) if before else other_start(config, header))
            # only now is anything written: an option that cannot work must leave no folder that refuses the right one
            ranks.on_main(lambda: stack.enter_context(claim_run(config, before)) and None)
            stack.enter_context(told_failures(config.run, state))
            return _Run(config, source, state, header, module, ranks, schedule, show).go(start)


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's random draws, a pure function of its arguments, the same for every rank."""
    return int(np.random.SeedSequence([seed, 0, step]).generate_state(1, np.uint64)[0] >> 1)


SAVE_FAILED = 1000  # a vote beyond every signal's number
NO_CODEC = "if it lies elsewhere now, put it back, or train with --sample-every 0: only pictures of samples need it"


class _Run:
    """One process's share of a run, from the current step to the end."""

    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        state: TrainingState,
        header: dict,
        module: nn.Module,
        ranks: Ranks,
        schedule: Schedule,
        show: bool,
    ) -> None:
        self.config, self.source, self.state, self.ranks = config, source, state, ranks
        self.header = header | {"share": share_of(config, ranks)}
        self.module = module  # what gives the loss: the objective, or what distributes it
        self.schedule = schedule
        self.device = ranks.device
        self.objective: Objective = state.objective
        self.parameters = list(self.objective.trained().values())
        captured = should_capture(config.graphs, self.device, ranks.count, config.accumulate)
        self.gradient = StepGradient(module, self.objective, state.optimizer, captured, ranks)
        self.progress = TrainingProgress(config.run.name, state.step, config.steps, show and ranks.main)
        self.saver = Saver(config.run, config.keep_checkpoints, ranks)
        self.stream = ShuffledStream(len(self.source), config.batch_size, config.seed, ranks.rank, ranks.count)
        self.records: Records | None = None  # of rank 0
        self.draws = bool(config.sample_every) and (ranks.main or ranks.strategy == "fsdp")  # gathers its weights
        self.to_pictures = picture_maker(source.latent_space if self.draws else None, self.device, None, NO_CODEC)
        self.instruments = Instruments(state.skipped, ranks.count)
        self.seen: tuple[Tensor, Tensor] | None = None  # the last batch, for the attention probe
        self.since = time.perf_counter()
        self.images, self.seconds = 0, 0.0
        self.once: dict[str, float] = {}  # figures for the next line only

    def go(self, start: str | None) -> TrainingResult:
        config, state = self.config, self.state
        with contextlib.ExitStack() as stack:
            caught = stack.enter_context(collected_signals(PATIENCE if self.ranks.count > 1 else 0))
            self.ranks.on_main(lambda: self.open_files(stack))
            batches = stack.enter_context(Prefetcher(self.source, self.stream, state.step, self.device, config.flip))
            stack.callback(self.saver.close)
            stack.enter_context(self.progress)
            stack.enter_context(self.ranks.exchanging())
            self.progress.say(f"training on {contents(self.source)}")
            if state.step:
                self.progress.say(f"continuing {config.run} after step {state.step}")
            elif self.records is not None and (lost := self.records.lost()) is not None:
                self.progress.say(lost)
            changed = other_shares(config, state.step, self.header["share"])
            for notice in filter(None, (changed, start, self.objective.notice())):
                self.progress.say(notice)
            vote, stop = Vote(self.ranks), 0
            while not self.schedule.over(state.step) and not (stop := vote(self.wish(caught))):
                images, label = self.next_batch(batches)
                self.step(images, label)
                self.once |= self.schedule.first_step(self.device)
                figures = self.report() if state.step % config.log_every == 0 else None
                self.schedule.keep_pace(self.device)
                self.progress.update(state.step, figures, self.schedule.expected_steps(state.step))
                if config.sample_every and state.step % config.sample_every == 0:
                    self.preview()
                if state.step % config.checkpoint_every == 0 and state.step < config.steps:
                    self.save()
            stop = max(stop, vote.close(self.wish(caught)))
            checkpoint = self.save()
            self.saver.wait()
        self.gradient.close()
        number = signal.Signals(stop) if 0 < stop < SAVE_FAILED else None
        complete = self.schedule.over(state.step)
        if number is not None:
            then = "the run is complete" if complete else "the same command continues the run"
            self.progress.say(f"{number.name}: saved {checkpoint}; {then}.")
        speed = self.images / self.seconds if self.seconds else 0.0
        return TrainingResult(state.step, checkpoint, number, speed, self.ranks.rank, complete)

    def open_files(self, stack: contextlib.ExitStack) -> None:
        """On rank 0: what is written besides checkpoints."""
        clear_unfinished(self.config.run)
        self.records = stack.enter_context(Records(self.config.run, self.state.step))

    def wish(self, caught: list[signal.Signals]) -> int:
        """Why this rank wants to stop: a signal's number, or a save that failed in the background; 0 to go on."""
        return SAVE_FAILED if self.saver.failed else int(caught[0]) if caught else 0

    def next_batch(self, batches: Prefetcher) -> tuple[Tensor, Tensor]:
        """This rank's share of this step's batch. Where it cannot be had the steps until now are saved first."""
        try:
            return next(batches)
        except (DataError, OSError) as error:
            if self.state.step and self.ranks.count == 1:  # other ranks are in their step, and would join no save
                self.save()
                self.saver.wait()
            raise unreadable(error, self.config, self.state.step) from error

    def step(self, images: Tensor, label: Tensor) -> None:
        """One training step: loss, gradient, weights, averages."""
        config, state = self.config, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(state.step)
        self.backward(images, label)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_gradient, foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        state.descend(self.instruments.decide(norm, state.step), config.target_ema)
        self.gradient.clear()
        self.images += config.batch_size
        self.seen = images, label
        self.look()

    def backward(self, images: Tensor, label: Tensor) -> None:
        """The gradient of the whole batch's mean loss, over all ranks and micro-steps.

        Every micro-step of every rank makes the same draws, for the whole batch, and takes its own part of them.
        """
        config = self.config
        count = len(images) // config.accumulate
        for micro in range(config.accumulate):
            here = slice(micro * count, (micro + 1) * count)
            part = Part(self.stream.first + micro * count, count, config.batch_size)
            self.objective.advance(self.schedule.progress(self.state.step))
            self.objective.seed(step_seed(config.seed, self.state.step))
            with gradient_exchange(self.module, now=micro == config.accumulate - 1):
                result = self.gradient(to_network_range(images[here]), label[here], part, 1 / config.accumulate)
            self.instruments.observe(result)

    def look(self) -> None:
        """On a CPU, where that costs nothing, look after every step whether too many in a row were skipped. On a GPU
        `report` does: a few steps later, but with the same weights, and before the next checkpoint."""
        if self.device.type == "cpu" and int(self.state.skipped.in_a_row) > self.config.max_skipped:
            self.refuse(self.instruments.read())

    def report(self) -> dict[str, float]:
        """Write what the steps since the last report have shown, and return the figures for the progress line."""
        if not self.instruments.steps:
            return {}
        reading = self.instruments.read()
        if reading.longest_row > self.config.max_skipped:
            self.refuse(reading)
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.seconds += seconds
        speed = reading.steps * self.config.batch_size / seconds
        scalars = {**reading.scalars(), "images_per_second": speed, "training_seconds": self.schedule.seconds()}
        scalars |= {"learning_rate": self.state.optimizer.param_groups[0]["lr"]} | self.once
        self.once = {}
        logits, by_block = logit_figures(self.attention_logits())
        scalars |= logits
        if self.records is not None:
            self.records.write(self.state.step, scalars, by_block | reading.tables(), reading.scalars_by_time())
        if reading.skipped:
            self.progress.say(
                f"{reading.skipped} of the last {reading.steps} steps were skipped, their loss or gradient not finite "
                f"({reading.skipped_text()})"
            )
        shown = {name: value for name, value in reading.figures.items() if not name.endswith("_rms")}
        return shown | {"images/s": speed}

    def attention_logits(self) -> list[float]:
        """On rank 0, the largest attention logit of each block on a few samples of the last batch. Under FSDP the other
        ranks lend their shards."""
        if self.seen is None or not (self.ranks.main or self.ranks.strategy == "fsdp"):
            return []
        network, (images, label) = self.objective.flow.network, self.seen
        return probe(network, to_network_range(images), label, default_w(self.config.guidance, network.num_classes))

    def refuse(self, reading: Reading) -> None:
        """Too many steps in a row were not finite: stop, with weights that no such step has touched."""
        if self.records is not None:  # what shows why
            self.records.write(self.state.step, reading.scalars(), reading.tables(), reading.scalars_by_time())
        self.saver.wait()  # what is being written is of an earlier step, and good
        raise TrainingError(
            f"step {self.state.step}: {reading.longest_row} steps in a row were not finite, and --max-skipped allows "
            f"{self.config.max_skipped} ({reading.skipped_text()}). They were skipped and have changed no weight. "
            f"{last_checkpoint_text(self.config.run)} "
            "Start another --run with a lower --learning-rate or --clip-gradient; see docs/stability.md."
        )

    def preview(self) -> None:
        """A picture of samples by the slowest average, in RUN/samples and on TensorBoard."""
        if not self.draws:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # steps on their way are training still
        began = time.perf_counter()
        flow = self.state.ema.flows[max(self.state.ema.flows)]
        picture = draw_preview(flow, self.config, self.source.class_names, self.to_pictures)
        if self.records is not None:
            self.records.picture(self.state.step, picture)
        self.since += time.perf_counter() - began

    def save(self) -> Path:
        """Begin to write a checkpoint of this step, unless the ranks have drifted apart."""
        self.report()
        tensors = self.state.tensors()
        told = {"step": self.state.step} | options_of(self.config, self.source)
        self.ranks.require_equal(f"at step {self.state.step}", told | checksums(tensors))
        path = self.saver.start(self.state.step, tensors, self.header | {"seconds": self.schedule.seconds()})
        self.since = time.perf_counter()
        return path
