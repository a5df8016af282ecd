"""The Hopper kernels compile for sm_90a without a GPU and fit into its shared memory."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

PROGRAM = r"""
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from tvmatch.kernels.dual_attention.hopper import PLANS, split_head
from tvmatch.kernels.dual_attention.hopper_forward import hopper_forward_kernel
from tvmatch.kernels.dual_attention.hopper_keys import keys_kernel
from tvmatch.kernels.dual_attention.hopper_queries import queries_kernel

def build(kernel, types, constants):
    types = iter(types)
    signature = {n: "constexpr" if n in constants else next(types) for n in kernel.arg_names}
    values = {(i,): constants[n] for i, n in enumerate(kernel.arg_names) if n in constants}
    source = GluonASTSource(kernel, signature, values, {})
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert built.metadata.shared <= 232448, built.metadata.shared
    return built

def windows(tensors):
    widths = [w for w in (d1, d2) if w]
    layouts = [gl.NVMMASharedLayout.get_default_for([1, 1, 64, w], gl.bfloat16) for w in widths]
    return [f"tensordesc<bf16[1, 1, 64, {w}],{l!r}>" for _ in range(tensors) for w, l in zip(widths, layouts)]

D, kernel = int(sys.argv[1]), sys.argv[2]
d1, d2 = split_head(D)
plan = PLANS[d1, d2]
constants = dict(D1=d1, D2=d2, EVEN=False)

def absent(kernel):  # a head in one part has no second windows
    return {} if d2 else {n: None for n in kernel.arg_names if n.endswith("2_desc")}

strides, sizes = ["i64", "i64", "i32"], ["fp32"] + ["i32"] * 4
if kernel == "forward":
    build(hopper_forward_kernel, windows(6) + ["*bf16"] * 2 + ["*fp32"] * 2 + ["*i16"] + strides + sizes,
          dict(constants, HEAD=D, STAGES=plan.stages, OVERLAP=plan.overlap, HELD=plan.held,
               HAS_REST=True, **absent(hopper_forward_kernel)))
if kernel == "queries":
    build(queries_kernel, windows(10) + ["*bf16"] * 2 + ["*fp32"] * 2 + ["*i16", "*fp32"] + strides + sizes
          + ["i32"] * 2, dict(constants, HEAD=D, SLOTS=plan.slots, BUFFERS=plan.buffers,
                               HELD=plan.query_held, HAS_REST=True, **absent(queries_kernel)))
if kernel == "keys":
    rows = f"tensordesc<fp32[64],{gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)!r}>"
    build(keys_kernel, windows(12) + [rows] + sizes + ["i32"] * 2,
          dict(constants, STAGES=plan.key_stages, KEY_BUFFERS=plan.key_buffers, HELD=plan.key_held,
               AHEAD=plan.key_ahead, **absent(keys_kernel)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("D", ["64", "72", "96", "128"])
@pytest.mark.parametrize("kernel", ["forward", "queries", "keys"])
def test_kernels_compile(D, kernel):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, D, kernel], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_head_size_has_tiles():
    from tvmatch.kernels.dual_attention.hopper import HEADS, split_head

    for D in HEADS:
        first, rest = split_head(D)
        assert first in (64, 128), D
        assert rest in (0, 16, 32), D
        assert max(first, D) <= first + rest, D
        assert rest == 0 or first < D, D
