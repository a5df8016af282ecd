#!/usr/bin/env python3
"""What Triton makes of the fused layers for an H100 or H200 (sm_90), without one: instructions, registers, spills.

    python benchmarks/fused_layers_compiled.py [--kernels norm gelu heads] [--size 384]      (any machine with Triton)

A line a kernel: how often a tensor of two dimensions changes its layout on the way (`moves`: through shared memory or
by shuffles, and nowhere in the source), how many instructions there are, registers a thread, and bytes that it spills.
Shapes are those of DiT-S/4 and DiT-XL/2. `tests/kernels/test_layouts.py` holds moves of norm and GELU to 0.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tvmatch.kernels.biased_gelu import op as gelu
from tvmatch.kernels.biased_gelu import triton as gelu_kernels
from tvmatch.kernels.head_norm import op as heads
from tvmatch.kernels.head_norm import triton as head_kernels
from tvmatch.kernels.modulated_norm import op as norm
from tvmatch.kernels.modulated_norm import triton_backward, triton_forward
from tvmatch.kernels.short_attention import op as short
from tvmatch.kernels.short_attention import triton as short_kernels

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SIZES = {"norm": (384, 1152), "gelu": (1536,), "heads": (64,)}
# names of pointers among the kernels' arguments; a "t" before a name is its tangent's
FLOAT32 = {"x", "y", "gy", "gx", "gate", "shift", "scale", "sums", "bias", "q_weight", "k_weight"}
SIXTEEN = {"update", "h", "g", "gg", "gh", "gupdate", "qkv", "o", "do", "gqkv", "q", "k", "v", "gq", "gk", "gv"}
TANGENTS = {"gty": "gy", "gtx": "gx", "gtg": "gg", "gth": "gh", "gtupdate": "gupdate", "dto": "do", "gtqkv": "gqkv"}
TANGENTS |= {"gtq": "gq", "gtk": "gk", "gtv": "gv"}


def type_of(name: str, attention: bool) -> str:
    """Of an argument: a pointer, a number, or else a count or a stride."""
    if name == "eps" or (attention and name == "scale"):
        return "fp32"
    primal = TANGENTS.get(name, name if name in FLOAT32 | SIXTEEN else name.removeprefix("t"))
    return "*fp32" if primal in FLOAT32 else "*bf16" if primal in SIXTEEN else "i32"


def built(kernel: Any, constants: dict[str, Any], attention: bool = False, **options: int) -> Any:
    """A kernel compiled for sm_90 with these constants; pointers and sizes, but counts of rows, are multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else type_of(name, attention) for name in names}
    plain = {*constants, "eps", "rows", *(["scale"] if attention else [])}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in plain}
    values = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
    return triton.compile(
        ASTSource(kernel, signature, values, aligned), target=GPUTarget("cuda", 90, 32), options=options
    )


def compiled(kind: str, size: int, pair: bool) -> Iterator[tuple[str, Any]]:
    """Names and kernels of one kind, as the operators launch them."""
    ends = {"PAIR": pair}
    if kind == "norm":
        tile = norm._tile(size)
        ends |= {"SIZE": size, "HEAD": tile.head, "TAIL": tile.tail, "ROWS": tile.rows, "STAGES": tile.stages}
        ends |= {"TILES": 16, "ADD": True}
        yield "forward", built(triton_forward.forward_kernel, ends, num_warps=tile.warps)
        ends |= {"ONWARD": True, "AGAIN": False}
        yield "backward", built(triton_backward.backward_kernel, ends, num_warps=tile.warps)
    elif kind == "gelu":
        ends |= {"SIZE": size, "ROWS": gelu.ROWS, "COLUMNS": gelu.COLUMNS}
        yield "forward", built(gelu_kernels.biased_gelu_forward_kernel, ends, num_warps=gelu.WARPS)
        ends |= {"TILES": gelu.TILES, "STAGES": gelu.STAGES}
        yield "backward", built(gelu_kernels.biased_gelu_backward_kernel, ends, num_warps=gelu.WARPS)
    else:
        ends |= {"HEADS": 6, "SIZE": size, "BLOCK": size}
        for full in (True, False):
            mine = ends | {"ROWS": 64, "FULL": full, "EXACT": "tf32"}
            padded = "" if full else ", padded"
            limit = {"maxnreg": short.PAIR_FORWARD_REGISTERS} if pair else {}
            kernel = built(short_kernels.short_forward_kernel, mine, True, num_warps=short.WARPS, **limit)
            yield f"attention forward{padded}", kernel
            limit = {} if pair else {"maxnreg": short.REGISTERS}
            kernel = built(short_kernels.short_backward_kernel, mine, True, num_warps=short.WARPS, **limit)
            yield f"attention backward{padded}", kernel
        ends |= {"ROWS": heads.TILE_ELEMENTS // size}
        yield "norm forward", built(head_kernels.forward_kernel, ends, num_warps=heads.WARPS)
        ends |= {"TILES": heads.BACKWARD_TILES, "STAGES": heads.STAGES}
        yield "norm backward", built(head_kernels.backward_kernel, ends, num_warps=heads.WARPS)


def moves(kernel: Any) -> int:
    """How many tensors of two dimensions change their layout."""
    return len(re.findall(r"convert_layout .*: tensor<\d+x\d+x", kernel.asm["ttgir"]))


def figures(kernel: Any) -> tuple[int, int, int]:
    """Instructions, registers of a thread, and bytes that it spills, as NVIDIA's tools beside Triton say."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        listing = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True)
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True)
    lines = [line for line in listing.stdout.splitlines() if re.search(r"/\*[0-9a-f]{4,5}\*/\s+\S", line)]
    told = usage.stdout + usage.stderr
    registers, spilled = (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK"))
    return len([line for line in lines if " NOP" not in line]), registers, spilled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--size", type=int, help="of a row, or of a head (default: those of DiT-S/4 and DiT-XL/2)")
    options = parser.parse_args()
    print(f"Triton {triton.__version__}, sm_90")
    for kind in options.kernels:
        for size in SIZES[kind] if options.size is None else (options.size,):
            for pair in (True, False):
                for name, kernel in compiled(kind, size, pair):
                    instructions, registers, spilled = figures(kernel)
                    print(
                        f"{kind} {size} {name}{', pair' if pair else ''}: {moves(kernel)} moves, {instructions} "
                        f"instructions, {registers} registers, {spilled} bytes spilled"
                    )


if __name__ == "__main__":
    main()
