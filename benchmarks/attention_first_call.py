#!/usr/bin/env python3
"""Seconds of the first call of a shape, forward and joint backward, in a fresh process with an empty cache of kernels.

    python benchmarks/attention_first_call.py 16 18 1024 64 bfloat16 causal

`attention.py` starts one process a shape, all at once. They compile what it then measures: `first_calls` says where.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

CAUSAL = ((16, 18, 1024, 64), "bfloat16", "causal")  # not on the Hopper path: the first call also tunes
FLOAT32 = ((4, 16, 1024, 64), "float32", "full")


def first_call(B: int, H: int, N: int, D: int, dtype: str, mask: str) -> float:
    """Seconds, with the inputs there and CUDA up."""
    import torch

    from tvmatch.kernels.dual_attention import dual_attention

    x = [torch.randn(B, H, N, D, device="cuda", dtype=getattr(torch, dtype), requires_grad=True) for _ in range(6)]
    weights = [torch.randn_like(t) for t in x[:2]]
    torch.cuda.synchronize()
    begin = time.perf_counter()
    torch.autograd.grad(dual_attention(*x, causal=mask == "causal"), x, weights)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    with torch.no_grad():  # for the cache: without gradients it is another kernel
        dual_attention(*x, causal=mask == "causal")
    torch.cuda.synchronize()
    return seconds


def first_calls(shapes: list[tuple[int, int, int, int]], folder: Path) -> list[dict]:
    """A row for each shape and for two problems beside the Hopper path; kernels end up in subfolders of `folder`."""
    cases = [*((shape, "bfloat16", "full") for shape in shapes), CAUSAL, FLOAT32]
    started = []
    for i, (shape, dtype, mask) in enumerate(cases):
        environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / str(i)), "TVMATCH_AUTOTUNE": "1"}
        command = [sys.executable, __file__, *map(str, shape), dtype, mask]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    rows = []
    for (shape, dtype, mask), process in zip(cases, started, strict=True):
        output, errors = process.communicate()
        seconds = float(output.split()[-1]) if process.returncode == 0 else None
        failure = {} if seconds is not None else {"failure": errors.strip()[-300:]}
        rows.append({"shape": shape, "dtype": dtype, "mask": mask, "seconds": seconds, **failure})
    return rows


if __name__ == "__main__":
    print(first_call(*map(int, sys.argv[1:5]), *sys.argv[5:]))
