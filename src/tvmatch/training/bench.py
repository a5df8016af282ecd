"""What a training step costs: images a second, memory, utilisation, seconds to compile."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import parse_guidance
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import Part
from tvmatch.training.build import build_objective
from tvmatch.training.config import (
    Compile,
    FsdpGather,
    Graphs,
    ObjectiveName,
    OptimizerName,
    Precision,
    Recompute,
    TrainConfig,
)
from tvmatch.training.distributed import distribute
from tvmatch.training.ema import EvaluationEma
from tvmatch.training.engine import (
    compute_dtype,
    outer_products,
    prepare_objective,
    should_capture,
    should_compile,
)
from tvmatch.training.instruments import Instruments
from tvmatch.training.optimizers import build_optimizer
from tvmatch.training.ranks import Ranks
from tvmatch.training.state import TrainingState
from tvmatch.training.step_gradient import StepGradient

FORWARD_PASSES: dict[ObjectiveName, int] = {  # with guidance
    "terminal-velocity": 11,
    "flow-matching": 4,
    "mean-flow": 6,  # JVP 2, the average velocity and its backward 3
    "improved-mean-flow": 7,  # and the velocity that is its tangent
    "split-mean-flow": 6,  # two jumps, and 3
    "shortcut": 6,
    "alpha-flow": 5,  # one jump, and 3
    "lagrangian": 8,  # JVP and its backward 6, target 1
    "modular-mean-flow": 7,  # JVP and its backward 6
    "consistency-training": 6,
    "inductive-moment-matching": 5,
}


def forward_passes(objective: ObjectiveName, guided: bool, terminal_every: int = 1) -> float:
    """Forward passes of arithmetic in one step, a backward counted as two (DESIGN section 3).

    TVM: JVP forward 2 and its backward 4, boundary 3, target 2, of which 7 are the terminal term's (on every n-th
    sample only, with `terminal_every` = n). Flow matching: boundary 3, target 1. The others are in the table. Without
    guidance nothing is asked for an unconditional velocity: one pass less.
    """
    left_out = 7 * (1 - 1 / terminal_every)  # of TVM; the others have no such option
    return FORWARD_PASSES[objective] - left_out - (0 if guided else 1)


WARM_STEPS = 5  # before anything is timed: after the launched steps, the one that is recorded, and some replays


@dataclass(frozen=True)
class StepCase:
    """One training step to measure."""

    network: str
    image_size: int
    channels: int
    batch: int
    objective: ObjectiveName = "terminal-velocity"
    guidance: str = "2"
    recompute: Recompute = "none"
    precision: Precision = "auto"
    compile: Compile = "auto"
    graphs: Graphs = "auto"
    fsdp_gather: FsdpGather = "auto"
    classes: int = 1000
    terminal_every: int = 1
    optimizer: OptimizerName = "adamw"


def forward_flops(case: StepCase) -> int:
    """Floating-point operations of one forward pass of one sample, counted on shapes alone."""
    with torch.device("meta"):
        network = build_network(network_config(case.network, case.image_size, case.channels, case.classes))
        x = torch.empty(1, case.channels, case.image_size, case.image_size)
        one = torch.ones(1)
        with FlopCounterMode(display=False) as counter:
            network(x, one, one, torch.zeros(1, dtype=torch.int64), one)
    return counter.get_total_flops()


def matmul_tflops(device: torch.device, size: int = 8192) -> float:
    """The rate of a plain bfloat16 (CPU: float32, smaller) matrix product on random numbers, median of 10."""
    if device.type == "cpu":
        size, dtype = 1024, torch.float32
    else:
        dtype = torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    times = []
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times) / 1e12


class BenchStep:
    """One training step of a case on random data, made by what makes the loop's: loss, gradient, clipping, instruments,
    the decision whether to skip, the optimiser, and the averages; call it with a number, of which its draws are made.

    Every rank makes one alike and trains `case.batch` samples a step. What the loop does between steps is left out:
    its data, the check of tangents before, and all that it writes. `close` it before the ranks part.
    """

    def __init__(self, case: StepCase, ranks: Ranks) -> None:
        device = ranks.device
        shape = network_config(case.network, case.image_size, case.channels, case.classes)
        self.config = TrainConfig(
            network=case.network,
            objective=case.objective,
            guidance=case.guidance,
            terminal_every=case.terminal_every,
            optimizer=case.optimizer,
            learning_rate=1e-4,
            strategy=ranks.strategy,
        )
        torch.manual_seed(0)
        with device:
            flow = FlowMap(build_network(shape))
        self.objective = build_objective(self.config, flow)
        flow.tangent_seen = case.terminal_every > 1  # as in a training run (preparing.py)
        ema = EvaluationEma(flow, self.config.evaluation_ema)
        prepare_objective(
            self.objective,
            compute_dtype(case.precision, device),
            should_compile(case.compile, device),
            case.recompute,
            sharded=ranks.strategy == "fsdp",
        )
        recorded = should_capture(case.graphs, device, ranks.count, 1)
        module = distribute(self.objective, ema.flows.values(), ranks, case.fsdp_gather, recorded)
        self.parameters = list(self.objective.trained().values())
        optimizer = build_optimizer(self.config, self.objective)
        self.state = TrainingState(self.objective, ema, optimizer)
        self.instruments = Instruments(self.state.skipped, ranks.count)
        self.gradient = StepGradient(module, self.objective, optimizer, recorded, ranks)
        self.x0 = torch.randn(case.batch, case.channels, case.image_size, case.image_size, device=device)
        self.label = torch.arange(case.batch, device=device) % max(case.classes, 1) - (0 if case.classes else 1)
        self.part = Part(ranks.rank * case.batch, case.batch, ranks.count * case.batch)

    def __call__(self, number: int) -> None:
        self.objective.seed(number)
        self.instruments.observe(self.gradient(self.x0, self.label, self.part))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_gradient, foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.state.descend(self.instruments.decide(norm, self.state.step), self.config.target_ema)
        self.gradient.clear()

    def close(self) -> None:
        self.gradient.close()


def measure_step(case: StepCase, ranks: Ranks, matmul: float, steps: int = 10) -> dict[str, Any]:
    """Train `steps` steps on random data and return one row of figures; medians over the steps (`BenchStep`).

    compile_seconds is the time of the first step alone. peak_gib is the most that tensors took at once after it. Every
    rank calls it alike and trains `case.batch` samples a step; images_per_second counts those of all ranks, peak_gib
    and mfu are of this one.
    """
    with outer_products(case.precision, ranks.device):
        return _measure(case, ranks, matmul, steps)


def _measure(case: StepCase, ranks: Ranks, matmul: float, steps: int) -> dict[str, Any]:
    device = ranks.device
    gc.collect()  # what an earlier case left behind would count as memory of this one
    if device.type == "cuda":
        torch.cuda.empty_cache()
    step = BenchStep(case, ranks)
    warm = step.gradient.launched_first + WARM_STEPS
    _wait(device)
    began = time.perf_counter()
    step(0)
    _wait(device)
    first = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # compiling is over; launched and recorded steps count
    for number in range(1, warm):
        step(number)
    seconds = statistics.median(_seconds_of_each(step, range(warm, warm + steps), device))
    guided = not parse_guidance(case.guidance).always_one
    passes = forward_passes(case.objective, guided, case.terminal_every)
    flops = passes * forward_flops(case) * case.batch
    graph = step.gradient.graph is not None
    step.close()
    return {
        "network": case.network,
        "data": f"{case.channels}x{case.image_size}x{case.image_size}",
        "objective": case.objective,
        "guidance": case.guidance,
        "terminal_every": case.terminal_every,
        "batch": case.batch,  # a GPU
        "policy": case.recompute,
        "graph": graph,
        "gpus": ranks.count if device.type == "cuda" else 0,
        "ranks": ranks.count,
        "strategy": ranks.strategy,
        "fsdp_gather": case.fsdp_gather if ranks.strategy == "fsdp" else None,
        "images_per_second": ranks.count * case.batch / seconds,
        "milliseconds": seconds * 1e3,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "mfu": flops / seconds / (matmul * 1e12),
        "compile_seconds": first,
        # not finite, timed ones or earlier: 0, unless something is wrong
        "optimizer": case.optimizer,
        "skipped_steps": int(step.state.skipped.total),
    }


def _seconds_of_each(step: Callable[[int], None], numbers: range, device: torch.device) -> list[float]:
    """Seconds of every step. A GPU is not waited for between steps, as in training: it marks the times itself."""
    if device.type != "cuda":
        times = []
        for number in numbers:
            began = time.perf_counter()
            step(number)
            times.append(time.perf_counter() - began)
        return times
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(numbers) + 1)]
    marks[0].record()
    for number, mark in zip(numbers, marks[1:], strict=True):
        step(number)
        mark.record()
    _wait(device)
    return [first.elapsed_time(second) / 1e3 for first, second in itertools.pairwise(marks)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
