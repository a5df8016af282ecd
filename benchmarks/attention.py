#!/usr/bin/env python3
"""Dual attention on a GPU: speed, memory and error beside its rivals, all in one run.

    python benchmarks/attention.py --json benchmarks/results/attention_h200.json
    python benchmarks/attention.py --plot benchmarks/results/attention_h200.json        (draws the .png beside it)

Rates count 6 matrix products forward and 15 backward, whatever an implementation really does. The matmul rate they are
divided by is measured in the same way in the same run. Times are medians of single calls between two events. Ours comes
first and is measured whole; `--seconds` limits the rivals. The file is written after every row.

First of all one fresh process a shape, all at once, says how long the first call takes (`attention_first_call.py`).
"""

from __future__ import annotations

import argparse
import atexit
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from attention_first_call import first_calls
from attention_rivals import Rival, exact_jvp, rivals
from tvmatch.kernels.dual_attention import dual_attention

# (B, H, N, D), bar of the forward, bar of the backward, as fractions of the matmul rate
SHAPES = [
    ((16, 18, 1024, 64), 0.72, 0.58),
    ((128, 18, 256, 64), 0.55, 0.45),
    ((4, 16, 4096, 64), 0.72, 0.60),
    ((1, 24, 4096, 128), 0.80, 0.52),
    ((1, 24, 8192, 128), 0.80, 0.52),
    ((64, 16, 256, 72), 0.40, 0.28),
]


def milliseconds(call: Callable[[], object], repeats: int = 12) -> float:
    """Median time of one call on the device, after two calls to warm up.

    The device first sleeps for some 20 ms, so that the calls queue up behind it: what is measured is the device's work,
    not how fast Python can launch it.
    """
    call(), call()
    torch.cuda.synchronize()
    torch.cuda._sleep(40_000_000)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in itertools.pairwise(events))[repeats // 2]


def matmul_tflops() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / milliseconds(lambda: a @ b, 20) / 1e9


def inputs(B: int, H: int, N: int, D: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    return [torch.randn(B, H, N, D, device="cuda", dtype=dtype) for _ in range(6)]


def hard_inputs(kind: str, N: int, D: int) -> list[torch.Tensor]:
    """Inputs on which rounding and cancellation bite, in float64. With one dominant key the errors of dv and dtv are
    those of a few hundred roundings of P, and differ by the draw: many heads, so that it averages out."""
    x = inputs(1, 48 if kind == "dominant key" else 2, N, D, torch.float64)
    if kind == "logits to 60":
        x[0] *= 60 / (x[0] @ x[1].mT * D**-0.5).abs().max()
    if kind == "dominant key":
        direction = torch.nn.functional.normalize(x[0].mean(2), dim=-1)
        x[0] += 4 * direction[:, :, None]
        x[1][:, :, 5] = 8 * direction * D**0.25
    return x


def eight_errors(run: Callable, x: list[torch.Tensor], dtype: torch.dtype, gradients: bool = True) -> list[float]:
    """||a - b|| / ||b|| of o, to (and dq, dk, dv, dtq, dtk, dtv) against float64 on the rounded inputs."""
    rounded = [t.to(dtype) for t in x]
    do, dto = (torch.randn_like(rounded[0]) for _ in range(2))

    def results(function: Callable, leaves: list[torch.Tensor], weights: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_(gradients) for t in leaves]
        out = function(*leaves)
        if not gradients:
            return list(out)
        return [*out, *torch.autograd.grad(out, leaves, weights)]

    want = results(exact_jvp, [t.double() for t in rounded], [do.double(), dto.double()])
    got = results(run, rounded, [do, dto])
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]


def measure(rival: Rival, shape: tuple[int, int, int, int], matmul: float) -> Iterator[dict]:
    """Rows for forward without and with gradients wanted, backward, and the last two together.

    Memory is what is beyond that allocated before the inputs (cuBLAS, say).
    """
    B, H, N, D = shape
    # Every shape compiles anew: one limit on recompilations is shared by all calls of a function.
    torch._dynamo.reset()
    error = None
    if rival.error:
        x = inputs(1, 2, min(N, 2048), D, torch.float64)
        error = max(eight_errors(rival.run, x, torch.bfloat16, rival.differentiable))
        del x
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    x = inputs(*shape)

    def row(name: str, ms: float, products: int, peak: float) -> dict:
        tflops = products * 2 * B * H * N * N * D / ms / 1e9
        return {
            "impl": rival.name, "pass": name, "B": B, "H": H, "N_q": N, "N_kv": N, "D": D, "dtype": "bfloat16",
            "causal": False, "ms": ms, "tflops": tflops, "fraction_of_matmul": tflops / matmul,
            "peak_mib": peak, "error": error,
        }  # fmt: skip

    def peak_of(call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    with torch.no_grad():
        forward = milliseconds(lambda: rival.run(*x))
        peak = peak_of(lambda: rival.run(*x))
    yield row("forward", forward, rival.products[0], peak)
    if not rival.differentiable:
        return
    leaves = [t.requires_grad_() for t in (x if rival.tangents else x[:3])]
    full = leaves if rival.tangents else [*leaves, *x[3:]]
    forward = milliseconds(lambda: rival.run(*full))
    yield row("forward with gradients wanted", forward, rival.products[0], peak_of(lambda: rival.run(*full)))
    out = rival.run(*full)
    weights = [torch.randn_like(t) for t in out]
    backward = milliseconds(functools.partial(torch.autograd.grad, out, leaves, weights, retain_graph=True))
    del out
    peak = peak_of(lambda: torch.autograd.grad(rival.run(*full), leaves, weights))
    yield row("backward", backward, rival.products[1], peak)
    yield row("both", forward + backward, sum(rival.products), peak)


def warm_up(result: dict) -> None:
    """Measure first calls, print them, and take over the kernels that they compiled."""
    caches = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, caches, ignore_errors=True)
    begin = time.time()
    result["first_calls"] = first_calls([shape for shape, *_ in SHAPES], caches)
    for r in result["first_calls"]:
        seconds = f"{r['seconds']:.1f} s (bar 20)" if r["seconds"] is not None else f"failed: {r['failure']}"
        print(f"  first call {r['shape']!s:22s} {r['dtype']:8s} {r['mask']:6s} {seconds}", flush=True)
    print(f"  first calls took {time.time() - begin:.0f} s, all at once", flush=True)
    os.environ["TRITON_CACHE_DIR"] = str(caches / "all")
    for folder in sorted(caches.iterdir()):
        shutil.copytree(folder, caches / "all", dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="JSON")
    parser.add_argument("--commit", default="", help="recorded in the file; default: what git says")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="start no further rival after this time; ours is always whole"
    )
    options = parser.parse_args()
    if options.plot:
        from attention_plot import plot

        return plot(options.plot)
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here; --plot draws a file that exists")
    import triton

    start = time.time()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "commit": options.commit or git.stdout.strip(), "autotune": os.environ.get("TVMATCH_AUTOTUNE", "1"),
        "matmul_tflops": matmul_tflops(), "first_calls": [], "rows": [], "memory": [],
        "errors": [],
    }  # fmt: skip
    print(f"{result['device']}, torch {torch.__version__}, matmul {result['matmul_tflops']:.0f} TFLOP/s", flush=True)

    def save() -> None:
        if options.json:  # whole or not at all, wherever a time limit strikes
            partial = options.json.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1) + "\n")
            partial.replace(options.json)

    def record(r: dict, bars: list[float]) -> None:
        ours = r["impl"] == "tvmatch"
        shape = (r["B"], r["H"], r["N_q"], r["D"])
        note = ""
        if ours and r["pass"] != "both":
            note = f"   bar {bars[r['pass'] == 'backward']:.2f}"
        if ours and r["pass"] == "backward":
            # six inputs, two outputs, their gradients (2 + 6) in 16 bits, two statistics a row in 32
            B, H, N, D = shape
            needed = (16 * B * H * N * D * 2 + 2 * B * H * N * 4) / 2**20
            ratio = r["peak_mib"] / needed
            result["memory"].append({"shape": shape, "peak_mib": r["peak_mib"], "needed_mib": needed, "ratio": ratio})
            note += f"   memory {ratio:.3f} of what is needed (bar 1.10)"
        result["rows"].append(r)
        save()
        print(f"  {r['impl']:42s} {shape!s:22s} {r['pass']:29s} {r['ms']:8.3f} ms {r['tflops']:5.0f} TFLOP/s "
              f"{r['fraction_of_matmul']:.3f} {r['peak_mib']:7.0f} MiB{note}", flush=True)  # fmt: skip

    warm_up(result)
    save()
    for rival in rivals():
        ours = rival.name == "tvmatch"
        for shape, *bars in SHAPES:
            if not ours and time.time() - start > options.seconds:
                print("out of time: not every rival was measured")
                return
            try:
                for r in measure(rival, shape, result["matmul_tflops"]):
                    record(r, bars)
            except Exception as error:  # a rival that fails must not lose the others
                print(f"  {rival.name} {shape}: {type(error).__name__} {str(error)[:100]}", flush=True)
        if ours:
            for kind, N in (("random", 256), ("logits to 60", 256), ("dominant key", 256), ("random", 8192)):
                for D in (64, 72, 128):
                    x = hard_inputs(kind, N, D)
                    found, plain = (eight_errors(f, x, torch.bfloat16) for f in (dual_attention, exact_jvp))
                    result["errors"].append({"inputs": kind, "N": N, "D": D, "tvmatch": found, "exact": plain})
                    save()
                    worst = max(a / b for a, b in zip(found, plain, strict=True))
                    print(f"  errors, {kind}, N {N}, D {D}: at most {worst:.2f} of exact attention's", flush=True)


if __name__ == "__main__":
    main()
