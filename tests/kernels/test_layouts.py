"""What Triton makes of the fused layers for an H100 or H200, without one: no row is moved from one layout to another.

Such a move stands nowhere in the source and changes no number, and was a third of the time of some of these kernels.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = r"""
import re
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tvmatch.kernels.biased_gelu import op as gelu, triton as gelu_kernels
from tvmatch.kernels.head_norm import triton as head_kernels
from tvmatch.kernels.modulated_norm import op as norm, triton_backward, triton_forward
from tvmatch.kernels.short_attention import op as short, triton as short_kernels

def moves(kernel, warps, pointers, constants, **options):
    "Tensors of two dimensions that change their layout."
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "fp32" if name in ("eps", "scale") else "i32")
        for name in kernel.arg_names
    }
    plain = (*constants, "eps", "scale", "rows")
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n not in plain}
    values = {(i,): constants[n] for i, n in enumerate(kernel.arg_names) if n in constants}
    source = ASTSource(kernel, signature, values, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps} | options)
    return re.findall(r"convert_layout .*: tensor<\d+x\d+x.*", built.asm["ttgir"])

kind, size, pair = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
if kind == "norm":
    streams = {n: "*fp32" for n in "x tx y ty gy gty gx gtx sums".split()}
    streams |= {n: "*bf16" for n in "update tupdate h th gh gth gupdate gtupdate".split()}
    streams |= {n: "*fp32" for n in "gate tgate shift tshift scale tscale".split()}
    tile = norm._tile(size)
    constants = dict(SIZE=size, HEAD=tile.head, TAIL=tile.tail, ROWS=tile.rows, TILES=16, STAGES=tile.stages)
    constants |= dict(ADD=True, PAIR=pair)
    found = moves(triton_forward.forward_kernel, tile.warps, streams, constants)
    found += moves(triton_backward.backward_kernel, tile.warps, streams, constants | dict(ONWARD=True, AGAIN=False))
elif kind == "gelu":
    streams = {n: "*bf16" for n in "h th g tg gg gtg gh gth".split()} | dict(bias="*fp32", sums="*fp32")
    constants = dict(SIZE=size, ROWS=gelu.ROWS, COLUMNS=gelu.COLUMNS, PAIR=pair)
    found = moves(gelu_kernels.biased_gelu_forward_kernel, gelu.WARPS, streams, constants)
    backward = constants | dict(TILES=gelu.TILES, STAGES=gelu.STAGES)
    found += moves(gelu_kernels.biased_gelu_backward_kernel, gelu.WARPS, streams, backward)
else:  # whose products want other layouts than memory does; it must compile, which the interpreter does not show
    streams = {n: "*bf16" for n in "qkv tqkv o to do dto gqkv gtqkv q k v tq tk gq gk gv gtq gtk gtv".split()}
    streams |= dict(q_weight="*fp32", k_weight="*fp32", sums="*fp32")
    constants = dict(HEADS=6, SIZE=64, BLOCK=64, PAIR=pair)
    for full in (True, False):
        attention = constants | dict(ROWS=size, FULL=full, EXACT="tf32")
        limit = {"maxnreg": short.PAIR_FORWARD_REGISTERS} if pair else {}
        moves(short_kernels.short_forward_kernel, short.WARPS, streams, attention, **limit)
        limit = {} if pair else {"maxnreg": short.REGISTERS}
        moves(short_kernels.short_backward_kernel, short.WARPS, streams, attention, **limit)
    moves(head_kernels.forward_kernel, 4, streams, constants | dict(ROWS=size))
    moves(head_kernels.backward_kernel, 4, streams, constants | dict(ROWS=size, TILES=4, STAGES=2))
    found = []
print(*found, sep="\n")
"""


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(("kind", "size"), [("norm", 384), ("norm", 1152), ("gelu", 1536), ("heads", 64)])
def test_no_row_changes_its_layout(kind: str, size: int, pair: bool) -> None:
    # in a process of its own: the tests beside this one have Triton's kernels run by its interpreter
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM, kind, str(size), str(pair)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ""
