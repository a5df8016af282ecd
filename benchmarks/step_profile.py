#!/usr/bin/env python3
"""Where the time of a training step goes: seconds to the first step, clocks and power while steps run, kernels by name
and kind, idle time, what the host needs to launch a step.

    python benchmarks/step_profile.py [--network DiT-XL/2 --batch 64 ...] [--graphs off]      (a GPU)

What it printed on an H200 lies in benchmarks/results/step_profile_h200.txt.
"""

import argparse
import collections
import collections.abc
import contextlib
import statistics
import subprocess
import time

import torch
from torch.profiler import ProfilerActivity, profile

from tvmatch.training.bench import BenchStep, StepCase, matmul_tflops
from tvmatch.training.engine import outer_products
from tvmatch.training.ranks import Ranks

KINDS = {  # by parts of a kernel's name, in this order
    "attention": ("dual", "hopper", "flash", "sdpa", "fmha", "cudnn", "short_", "queries_kernel", "keys_kernel"),
    "products": ("gemm", "nvjet", "cutlass", "cublas"),
    "compiler": ("triton_",),
    "optimiser and averages": ("multi_tensor", "move_kernel"),
    "fused layers": ("forward_kernel", "backward_kernel"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-XL/2")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--objective", default="terminal-velocity")
    parser.add_argument("--guidance", default="2")
    parser.add_argument("--recompute", default="none")
    parser.add_argument("--graphs", choices=("on", "off"), default="off")
    parser.add_argument("--seconds", type=float, default=6.0, help="of steps while clocks and power are read")
    parser.add_argument("--show", type=int, default=40, help="kernels to list")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: a profile of kernels needs one")
    device = torch.device("cuda")
    with outer_products("auto", device):
        measure(options, device)


def measure(options: argparse.Namespace, device: torch.device) -> None:
    """Print seconds, clocks, memory and kernels of the step that the options name."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, matmul {matmul_tflops(device):.0f} TFLOP/s")
    step = make_step(options, device)
    began = time.perf_counter()
    step(0)
    torch.cuda.synchronize()
    print(f"first step {time.perf_counter() - began:.1f} s, of which")
    print(torch._dynamo.utils.compile_times(repr="str", aggregate=True)[-1500:])
    for number in range(1, 8):
        step(number)
    torch.cuda.synchronize()
    with clocks():
        began, number = time.perf_counter(), 12
        while time.perf_counter() - began < options.seconds:
            step(number)
            torch.cuda.synchronize()
            number += 1
    began = time.perf_counter()
    for number in range(8, 12):
        step(number)
    host = (time.perf_counter() - began) / 4
    torch.cuda.synchronize()
    whole = (time.perf_counter() - began) / 4
    memory = torch.cuda.max_memory_allocated() / 2**30  # from the start: compiling and the first step count
    print(f"a step takes {whole * 1e3:.1f} ms, launching it {host * 1e3:.1f} ms; peak {memory:.1f} GiB")
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        for number in range(12, 14):
            step(number)
        torch.cuda.synchronize()
    report(record, 2, options.show)


def make_step(options: argparse.Namespace, device: torch.device) -> BenchStep:
    """The step that `tvmatch bench step` measures: on random data, with what the loop's own has."""
    case = StepCase(
        network=options.network,
        image_size=options.image_size,
        channels=options.channels,
        batch=options.batch,
        objective=options.objective,
        guidance=options.guidance,
        recompute=options.recompute,
        graphs=options.graphs,
        classes=options.classes,
    )
    return BenchStep(case, Ranks(device))


QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


@contextlib.contextmanager
def clocks() -> collections.abc.Iterator[None]:
    """Print the medians and ranges of clocks, power and temperature, as nvidia-smi reads them ten times a second. It
    counts all GPUs of the host, whatever CUDA_VISIBLE_DEVICES says: so the one that computes is named by its UUID."""
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(QUERY)}",
        "--format=csv,noheader,nounits",
        "-i",
        f"GPU-{str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid).removeprefix('GPU-')}",
        "-lms",
        "100",
    ]
    try:
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        print("no nvidia-smi here: no clocks")
        yield
        return
    try:
        yield
    finally:
        reader.terminate()
        lines = reader.communicate()[0].splitlines()
    # the first second is the ramp from idle clocks to the limit of power; the last line may be cut
    rows = [[float(cell) for cell in line.split(",")] for line in lines[10:-1] if line.count(",") == len(QUERY) - 1]
    for name, column in zip(QUERY, zip(*rows, strict=True), strict=False):
        print(f"{name:>16} median {statistics.median(column):6.0f}, {min(column):.0f} to {max(column):.0f}")


def report(record: profile, steps: int, show: int) -> None:
    """Kernels of a recording: the sum of each kind, the time between them, and the longest, in ms a step."""
    events = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in record.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("ProfilerStep", "Optimizer.", "aten::", "Torch-Compiled"))
    )
    by_name: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    kinds: dict[str, float] = collections.defaultdict(float)
    idle, end = 0.0, events[0][0]
    for start, stop, name in events:
        idle += max(0.0, start - end)
        end = max(end, stop)
        by_name[name][0] += (stop - start) / 1e3 / steps
        by_name[name][1] += 1 / steps
        kind = next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")
        kinds[kind] += (stop - start) / 1e3 / steps
    print(f"kernels {sum(kinds.values()):.1f} ms, idle between them {idle / 1e3 / steps:.1f} ms (under the profiler)")
    for kind, milliseconds in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"{milliseconds:8.1f} ms  {kind}")
    for name, (milliseconds, count) in sorted(by_name.items(), key=lambda item: -item[1][0])[:show]:
        print(f"{milliseconds:8.2f} ms {count:6.0f} x {milliseconds / count * 1e3:8.1f} us  {name[:120]}")


if __name__ == "__main__":
    main()
