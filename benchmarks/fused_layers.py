#!/usr/bin/env python3
"""The fused layers' kernels against the time that their memory traffic needs.

    python benchmarks/fused_layers.py [--json FILE]      (a GPU)

Shapes are those of DiT-XL/2 at batch 64 and of DiT-S/4 at batch 1024. `ideal` reads every input once and writes every
output once at the rate of a device-to-device copy in the same run.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

import tvmatch.kernels.biased_gelu  # these imports define the operators
import tvmatch.kernels.head_norm
import tvmatch.kernels.modulated_norm
import tvmatch.kernels.modulation
import tvmatch.kernels.short_attention
from tvmatch.provenance import commit

SHAPES = ((64, 256, 1152, 18), (1024, 64, 384, 6))  # batch, tokens, size, heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: these kernels are timed on one")
    rate = copy_rate()
    rows = [row for shape in SHAPES for row in measure(*shape, rate)]
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "copy_terabytes_per_second": rate / 1e12,
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def copy_rate() -> float:
    """Bytes read and written a second by a copy of 2 GiB."""
    source = torch.empty(2**29, device="cuda")
    target = torch.empty_like(source)
    # plus zero: a recorded copy is no kernel, and slower
    return 2 * source.numel() * 4 / (microseconds(lambda: torch.add(source, 0, out=target)) * 1e-6)


def measure(batch: int, tokens: int, size: int, heads: int, rate: float) -> list[dict]:
    ops = torch.ops.tvmatch
    x, tx, gy, gty = (torch.randn(batch, tokens, size, device="cuda") for _ in range(4))
    u, tu, gh, gth = (torch.randn(batch, tokens, size, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    shift, scale, gate, tshift, tscale, tgate = torch.randn(batch, 6, 1, size, device="cuda").unbind(1)
    primals, tangents = [x, shift, scale, gate, u], [tx, tshift, tscale, tgate, tu]
    qkv, tqkv = (torch.randn(batch, tokens, 3 * size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    weights = [torch.ones(size // heads, device="cuda") for _ in range(2)]
    g = [torch.randn(batch, tokens, heads, size // heads, device="cuda", dtype=torch.bfloat16) for _ in range(6)]
    g = [part.transpose(1, 2) for part in g]
    w, tw, gw, gtw = (torch.randn(batch, tokens, 4 * size, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    bias = torch.zeros(4 * size, device="cuda")
    m, tm = (torch.randn(batch, 6 * size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    chunks = list(torch.randn(12, batch, 1, size, device="cuda").unbind())
    cases: dict[str, tuple[Callable[[], object], float]] = {  # with the number of 16-bit streams that they move
        "norm, added, pair": (lambda: ops.modulated_norm(primals, tangents, 1e-6, torch.bfloat16), 12),
        "norm, added": (lambda: ops.modulated_norm(primals, [], 1e-6, torch.bfloat16), 6),
        "norm, pair": (lambda: ops.modulated_norm(primals[:3], tangents[:3], 1e-6, torch.bfloat16), 6),
        "norm, added, pair, backward": (
            lambda: ops.modulated_norm_backward(
                [x, scale, gate, u], [tx, tscale, tgate, tu], [gy, gh, gty, gth], 1e-6, False
            ),
            18,
        ),
        "norm, added, backward": (
            lambda: ops.modulated_norm_backward([x, scale, gate, u], [], [gy, gh], 1e-6, False),
            9,
        ),
        "norm, pair, backward": (
            lambda: ops.modulated_norm_backward([x, scale], [tx, tscale], [gy, gh, gty, gth], 1e-6, False),
            14,
        ),
        "heads, pair": (lambda: ops.head_norm(qkv, tqkv, weights, heads, 1e-6), 8),
        "heads": (lambda: ops.head_norm(qkv, None, weights, heads, 1e-6), 4),
        "heads, pair, backward": (lambda: ops.head_norm_backward(qkv, tqkv, weights, g, heads, 1e-6), 16),
        "heads, backward": (lambda: ops.head_norm_backward(qkv, None, weights, g[:3], heads, 1e-6), 8),
        "gelu, pair": (lambda: ops.biased_gelu(w, tw, bias), 16),
        "gelu": (lambda: ops.biased_gelu(w, None, bias), 8),
        "gelu, pair, backward": (lambda: ops.biased_gelu_backward(w, tw, bias, [gw, gtw]), 24),
        "gelu, backward": (lambda: ops.biased_gelu_backward(w, None, bias, [gw]), 12),
        # of a sample 6 rows each, not of a token; the gradients lie as the backward of the norm leaves them
        "modulation, pair": (lambda: ops.normalised_chunks(m, tm, 6, 1e-6), 36 / tokens),
        "modulation, pair, backward": (lambda: ops.normalised_chunks_backward(m, tm, chunks, 1e-6), 48 / tokens),
        "modulation, backward": (lambda: ops.normalised_chunks_backward(m, None, chunks[:6], 1e-6), 24 / tokens),
    }
    if tokens <= tvmatch.kernels.short_attention.op.MAX_TOKENS:
        cases |= {
            "attention, pair": (lambda: ops.short_attention(qkv, tqkv, weights, heads, 1e-6), 8),
            "attention": (lambda: ops.short_attention(qkv, None, weights, heads, 1e-6), 4),
            "attention, pair, backward": (
                lambda: ops.short_attention_backward(qkv, tqkv, weights, [gh, gth], heads, 1e-6),
                14,
            ),
            "attention, backward": (
                lambda: ops.short_attention_backward(qkv, None, weights, [gh], heads, 1e-6),
                7,
            ),
        }
    rows = []
    for name, (call, streams) in cases.items():
        ideal = streams * 2 * batch * tokens * size / rate * 1e6
        rows.append(
            {"kernel": name, "shape": [batch, tokens, size, heads], "us": microseconds(call), "ideal_us": ideal}
        )
        print(f"{batch}x{tokens}x{size} {name:>28}: {rows[-1]['us']:7.0f} us, ideal {ideal:5.0f} us", flush=True)
    return rows


CALLS = 10  # recorded one after another


def microseconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Median time of a call on the device. Recorded as a CUDA graph, as in a training step: launched one by one, most
    of these calls take the host longer than the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # everything must be compiled before recording
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / CALLS)
    return statistics.median(times)


if __name__ == "__main__":
    main()
