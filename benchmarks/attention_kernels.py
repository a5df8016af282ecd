#!/usr/bin/env python3
"""The Hopper kernels of dual attention one by one, and variants of them side by side.

    python benchmarks/attention_kernels.py --json benchmarks/results/attention_kernels_h200.json
    python benchmarks/attention_kernels.py --source idea=.carry/idea --source other=.carry/other --processes 12

A folder given with --source holds the files of `src/tvmatch/kernels/dual_attention` that a variant changes; the others
are those of the package. Every variant is first checked against float64 and for the same bits twice. Then the variants
take turns, so that clocks and temperature are the same for all; times are medians of single launches between two
events. Fractions are of the matmul rate of the run, for the products that a kernel really does: 6 forward, 9 and 12 in
the two kernels of the backward, and 15 for both together (`attention.py` goes through the operator and has the rivals).
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from attention import hard_inputs, matmul_tflops
from attention_rivals import exact_jvp

PACKAGE = Path(__file__).parent.parent / "src/tvmatch/kernels/dual_attention"
# B, H, N, D: those of attention.py, without the longest
SHAPES = {
    "N1024": (16, 18, 1024, 64), "N256": (128, 18, 256, 64), "N4096": (4, 16, 4096, 64),
    "D128": (1, 24, 4096, 128), "D72": (64, 16, 256, 72),
}  # fmt: skip
# (B, H, N_q, N_kv, D): on 132 multiprocessors blocks do one or two tiles, whole or in halves; even and odd lengths.
# Strides keep the divisibility that `compile_some` has, so that nothing is compiled anew.
CHECKS = [
    (2, 40, 256, 256, 64), (1, 100, 256, 192, 64), (1, 70, 200, 333, 64), (1, 300, 64, 64, 64),
    (1, 80, 256, 256, 72), (1, 70, 208, 136, 72), (1, 80, 256, 256, 128), (1, 50, 130, 70, 128),
]  # fmt: skip
DOMINANT_KEY = [(1, 2, 256, 256, 64), (1, 2, 256, 256, 72)]  # where the gradients of q and k depend on the rest
PRODUCTS = {"forward": 6, "forward with rest": 6, "queries": 9, "keys": 12, "backward": 15}
NAMES = ["o", "to", "dq", "dk", "dv", "dtq", "dtk", "dtv"]


class Timed:
    """Stands for a kernel and records events around its launches."""

    def __init__(self, kernel: object) -> None:
        self.kernel, self.events = kernel, []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: object, **options: object) -> None:
            self.events.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            self.events[-1][0].record()
            self.kernel[grid](*args, **options)
            self.events[-1][1].record()

        return launch


def copy_package(copies: Path, name: str, folder: str) -> Path:
    """A package that holds the kernels with the files of `folder`, if there is one, in place of their own."""
    package = copies / f"variant_{name}"
    package.mkdir()
    for source in (PACKAGE, Path(folder) if folder else PACKAGE):
        for path in source.glob("*.py"):
            shutil.copy(path, package)
    (package / "__init__.py").write_text("")  # the operator is registered once, by the package itself
    return package


def load(package: Path) -> ModuleType:
    """The module that launches the kernels."""
    if str(package.parent) not in sys.path:
        sys.path.insert(0, str(package.parent))
    return importlib.import_module(f"{package.name}.hopper")


def inputs(B: int, H: int, n_q: int, n_kv: int, D: int) -> list[torch.Tensor]:
    """q, k, v, tq, tk, tv, do, dto"""
    torch.manual_seed(0)
    lengths = (n_q, n_kv, n_kv, n_q, n_kv, n_kv, n_q, n_q)
    return [torch.randn(B, H, n, D, device="cuda").bfloat16() for n in lengths]


def run(hopper: ModuleType, x: list[torch.Tensor], rest: bool) -> list[torch.Tensor]:
    """The eight results."""
    scale = x[0].shape[3] ** -0.5
    saved = hopper.forward(*x[:6], scale, rest)
    return [*saved[:2], *hopper.backward(*x[:6], *saved, *x[6:], scale)]


def compile_some(job: tuple[str, Path, int, int]) -> str:
    """Fill Triton's cache for one variant and head size, a third of it; the error, if there is one."""
    name, package, D, third = job
    try:
        hopper = load(package)
        even, odd = inputs(1, 1, 128, 128, D), inputs(1, 1, 112, 112, D)
        if third == 0:
            run(hopper, even, True)
        elif third == 1:
            hopper.forward(*even[:6], 1.0, False)
            hopper.forward(*odd[:6], 1.0, True)
        else:  # what the forward would have saved
            q = torch.zeros_like(odd[0])
            rows = torch.zeros(q.shape[:3], device="cuda")
            rest = torch.zeros(1, 1, 112, D, 2, device="cuda", dtype=torch.uint8)
            hopper.backward(*odd[:6], q, q, rows, rows, rest, *odd[6:], 1.0)
        torch.cuda.synchronize()
    except Exception as error:  # one variant that fails must not lose the others
        return f"{name}, D {D}: {type(error).__name__} {str(error)[:300]}"
    return ""


def errors(hopper: ModuleType, shape: tuple[int, ...]) -> list[float]:
    """||a - b|| / ||b|| of the eight results against float64; the same bits twice or RuntimeError."""
    x = inputs(*shape)
    if shape in DOMINANT_KEY:
        x[:6] = [t.bfloat16() for t in hard_inputs("dominant key", shape[2], shape[4])]
    got = run(hopper, x, True)
    if not all(torch.equal(a, b) for a, b in zip(got, run(hopper, x, True), strict=True)):
        raise RuntimeError(f"{shape}: two runs differ")
    leaves = [t.double().requires_grad_() for t in x[:6]]
    out = exact_jvp(*leaves)
    want = [*out, *torch.autograd.grad(out, leaves, [t.double() for t in x[6:]])]
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]


@contextmanager
def timed_kernels(hopper: ModuleType) -> Iterator[dict[str, Timed]]:
    names = {"queries": "queries_kernel", "keys": "keys_kernel"}
    timed = {kernel: Timed(getattr(hopper, name)) for kernel, name in names.items()}
    for kernel, name in names.items():
        setattr(hopper, name, timed[kernel])
    yield timed
    for kernel, name in names.items():
        setattr(hopper, name, timed[kernel].kernel)


def measure(modules: dict[str, ModuleType], shape: tuple[int, int, int, int], rounds: int) -> dict:
    """Times in ms by (variant, kernel). The variants take turns; the device sleeps first, so that launches queue up."""
    B, H, N, D = shape
    x = inputs(B, H, N, N, D)
    scale = D**-0.5
    saved = {name: hopper.forward(*x[:6], scale, True) for name, hopper in modules.items()}
    events: dict[tuple[str, str], list] = {(name, kernel): [] for name in modules for kernel in PRODUCTS}

    def between(key: tuple[str, str], call: Callable[[], object]) -> None:
        events[key].append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        events[key][-1][0].record()
        call()
        events[key][-1][1].record()

    for turn in range(rounds + 1):
        if turn == 1:  # the first one warmed up
            for found in events.values():
                found.clear()
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000 + 4_000_000 * len(modules))
        for name, hopper in modules.items():
            forward, backward = hopper.forward, hopper.backward
            between((name, "forward"), lambda: forward(*x[:6], scale, False))  # noqa: B023
            between((name, "forward with rest"), lambda: forward(*x[:6], scale, True))  # noqa: B023
            between((name, "backward"), lambda: backward(*x[:6], *saved[name], *x[6:], scale))  # noqa: B023
            with timed_kernels(hopper) as timed:
                hopper.backward(*x[:6], *saved[name], *x[6:], scale)
            for kernel, stand_in in timed.items():
                events[name, kernel] += stand_in.events
    torch.cuda.synchronize()
    return {key: sorted(a.elapsed_time(b) for a, b in found) for key, found in events.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER", help="a variant; repeatable")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=1, help="that compile before all else; 0: where needed")
    parser.add_argument("--skip-checks", action="store_true", help="only measure")
    parser.add_argument("--commit", default="", help="recorded in the file; default: what git says")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here")
    import triton

    begin = time.time()
    copies = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, copies, ignore_errors=True)
    sources = {"base": "", **dict(s.split("=", 1) for s in options.source)}
    packages = {name: copy_package(copies, name, folder) for name, folder in sources.items()}
    modules = {name: load(package) for name, package in packages.items()}
    sizes = sorted({shape[4] for shape in CHECKS} | {SHAPES[s][3] for s in options.shapes})
    jobs = [(name, package, D, third) for D in sizes for name, package in packages.items() for third in range(3)]
    failures: list[str] = []
    if options.processes:
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            failures = [f for f in pool.map(compile_some, jobs) if f]
    print(*failures, f"compiled after {time.time() - begin:.0f} s", sep="\n", flush=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result: dict = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "commit": options.commit or git.stdout.strip(), "variants": sources, "failures": failures,
        "shapes": {s: SHAPES[s] for s in options.shapes}, "checks": [], "matmul_tflops": [], "rows": [],
    }  # fmt: skip

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")

    for shape in () if options.skip_checks else CHECKS + DOMINANT_KEY:
        base = None
        for name, hopper in modules.items():
            try:
                found = errors(hopper, shape)
            except Exception as error:  # as above
                print(f"  {name} {shape}: {type(error).__name__} {str(error)[:200]}", flush=True)
                result["failures"].append(f"{name} {shape}: {str(error)[:200]}")
                continue
            base = base or found
            result["checks"].append({"variant": name, "shape": shape, "errors": dict(zip(NAMES, found, strict=True))})
            worst = max(range(8), key=lambda i: found[i] / base[i])
            print(f"  {name:10s} {shape!s:24s} error at most {max(found):.4f}, {found[worst] / base[worst]:.2f} of the "
                  f"package's ({NAMES[worst]})", flush=True)  # fmt: skip
        save()
    for shape_name in options.shapes:
        B, H, N, D = SHAPES[shape_name]
        rate = matmul_tflops()
        result["matmul_tflops"].append(rate)
        print(f"{shape_name}: matmul {rate:.0f} TFLOP/s, {time.time() - begin:.0f} s", flush=True)
        usable = {n: m for n, m in modules.items() if not any(f.startswith(f"{n}, D {D}:") for f in failures)}
        times = measure(usable, SHAPES[shape_name], options.rounds)
        for kernel, products in PRODUCTS.items():
            for name in usable:
                ms = times[name, kernel]
                median = ms[len(ms) // 2]
                fraction = products * 2 * B * H * N * N * D / median / 1e9 / rate
                result["rows"].append({"shape": shape_name, "kernel": kernel, "variant": name, "ms": median,
                                       "fastest_ms": ms[0], "fraction_of_matmul": fraction})  # fmt: skip
                print(f"  {kernel:18s} {name:10s} {median:7.4f} ms (fastest {ms[0]:7.4f}) {fraction:.3f}", flush=True)
        save()


if __name__ == "__main__":
    main()
