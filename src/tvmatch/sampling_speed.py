"""What drawing costs: images a second and milliseconds a batch, launched, compiled, and recorded as a CUDA graph.

eager     launched from Python, kernel by kernel
compiled  the same with compiled blocks
graph     compiled, and recorded as a CUDA graph
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.inference import RecordedSampler, ready_to_draw
from tvmatch.networks.presets import build_network, network_config
from tvmatch.sampling import sample
from tvmatch.training.config import Precision
from tvmatch.training.engine import compute_dtype

Mode = Literal["eager", "compiled", "graph"]
MODES: tuple[Mode, ...] = ("eager", "compiled", "graph")
TOLERANCE = 3e-2  # relative, of 16-bit samples between a compiled or recorded call and a launched one
CALLS, SECONDS = 100, 3.0  # timed: so many calls, or as many as fit


@dataclass(frozen=True)
class SamplingCase:
    """A network, its data, and how it is sampled."""

    network: str = "DiT-XL/2"
    image_size: int = 32
    channels: int = 4
    classes: int = 1000
    nfe: int = 1
    w: float = 2.0
    precision: Precision = "auto"


def random_flow(case: SamplingCase, device: torch.device) -> FlowMap:
    """A fresh flow map with small random numbers for its zero weights (modulation, output): otherwise nothing that is
    drawn would depend on the network, and a wrong kernel would go unseen."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with device:
            flow = FlowMap(build_network(network_config(case.network, case.image_size, case.channels, case.classes)))
        with torch.no_grad():
            for parameter in flow.parameters():
                if not bool(parameter.any()):
                    parameter.normal_(std=0.05)
    return flow.requires_grad_(False).eval()


def measure_sampling(
    case: SamplingCase, batches: Sequence[int], modes: Sequence[Mode], device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for every mode and size of batch. `RuntimeError` if a compiled or recorded call draws something else than a
    launched one does."""
    dtype = compute_dtype(case.precision, device)
    flow = random_flow(case, device)
    expected: dict[int, Tensor] = {}
    inputs = {batch: _inputs(case, batch, device) for batch in batches}
    for mode in (mode for mode in MODES if mode in modes or mode == "eager"):
        ready = ready_to_draw(flow, dtype, compiled=mode != "eager")
        for batch in batches:
            began = time.perf_counter()
            draw = _drawer(mode, ready, case, batch)
            drawn = draw(*inputs[batch]).clone()
            _wait(device)
            first = time.perf_counter() - began
            if mode == "eager":
                expected[batch] = drawn
            _require_same(drawn - inputs[batch][0], expected[batch] - inputs[batch][0], mode, batch)
            if mode in modes:
                row = {"network": case.network, "data": f"{case.channels}x{case.image_size}x{case.image_size}"}
                row |= {"mode": mode, "batch": batch, "nfe": case.nfe, "first_call_seconds": first}
                row |= {"precision": str(dtype or torch.float32).removeprefix("torch.")}
                yield row | _measured(draw, inputs[batch], device)


def _drawer(mode: Mode, ready: FlowMap, case: SamplingCase, batch: int) -> Callable[[Tensor, Tensor], Tensor]:
    if mode == "graph":
        return RecordedSampler(ready, batch, case.w, case.nfe)
    return lambda noise, label: sample(ready, noise, label, case.w, case.nfe)


def _inputs(case: SamplingCase, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(batch)
    shape = (batch, case.channels, case.image_size, case.image_size)
    noise = torch.randn(shape, generator=generator, device=device)
    return noise, torch.arange(batch, device=device) % max(case.classes, 1) - (0 if case.classes else 1)


def _require_same(jump: Tensor, expected: Tensor, mode: str, batch: int) -> None:
    error = float((jump - expected).norm() / expected.norm())
    if not error < TOLERANCE:
        raise RuntimeError(f"{mode}, batch {batch}: what is drawn differs from a launched call by {error:.1%}.")


def _measured(draw: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], device: torch.device) -> dict:
    """Latency: the median of calls that are waited for. Throughput: calls one after another, waited for at the end."""
    batch = len(inputs[0])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    while len(times) < CALLS and (sum(times) < SECONDS or len(times) < 3):
        times.append(_seconds(draw, inputs, 1, device))
    count = max(3, min(CALLS, int(SECONDS / statistics.median(times))))
    seconds = _seconds(draw, inputs, count, device)
    return {
        "images_per_second": batch * count / seconds,
        "milliseconds": statistics.median(times[1:]) * 1e3,
        "milliseconds_90": sorted(times[1:])[int(0.9 * len(times[1:]))] * 1e3,
        "calls_timed": count,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def _seconds(
    draw: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor], count: int, device: torch.device
) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        draw(*inputs)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
