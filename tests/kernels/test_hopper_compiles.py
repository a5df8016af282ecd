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
from tvmatch.kernels.dual_attention.hopper import BACKWARD, FORWARD
from tvmatch.kernels.dual_attention.hopper_backward import hopper_backward_kernel
from tvmatch.kernels.dual_attention.hopper_forward import hopper_forward_kernel

def window(rows, D):
    layout = gl.NVMMASharedLayout.get_default_for([1, 1, rows, D], gl.bfloat16)
    return f"tensordesc<bf16[1, 1, {rows}, {D}],{layout!r}>"

def build(kernel, types, constants):
    types = iter(types)
    signature = {n: "constexpr" if n in constants else next(types) for n in kernel.arg_names}
    values = {(i,): constants[n] for i, n in enumerate(kernel.arg_names) if n in constants}
    source = GluonASTSource(kernel, signature, values, {})
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert built.metadata.shared <= 232448, built.metadata.shared
    return built

D = int(sys.argv[1])
keys, stages, q_regs, overlap, alternate = FORWARD[D]
build(hopper_forward_kernel,
      [window(64, D), window(keys, D), window(keys, D)] * 2
      + ["*bf16"] * 2 + ["*fp32"] * 2 + ["i64", "i64", "i32", "fp32"] + ["i32"] * 4,
      dict(HEAD=D, BN=keys, D=D, STAGES=stages, EVEN=True, Q_REGS=q_regs, OVERLAP=overlap, PINGPONG=alternate))
stages, _ = BACKWARD[D]
rows = f"tensordesc<fp32[64],{gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)!r}>"
build(hopper_backward_kernel,
      [window(64, D)] * 8 + [rows] + ["*bf16"] * 6 + ["i64", "i64", "i32"] * 6 + ["*fp32", "*i32", "fp32"]
      + ["i32"] * 7,
      dict(HEAD=D, D=D, STAGES=stages, EVEN=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("D", ["64", "128"])
def test_kernels_compile(D):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, D], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
