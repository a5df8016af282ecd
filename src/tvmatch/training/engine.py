"""How a network runs on the hardware: 16-bit compute, compiled blocks, recomputed activations.

All of it is applied from outside to networks that know nothing of it, one equal block at a time, so that 28 blocks
compile once. The order matters: copies of the flow map (target, averages) are made first, recomputation is wrapped
around a block before the block is compiled.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.objectives import Objective
from tvmatch.training.config import Compile, Graphs, Precision, Recompute
from tvmatch.training.weight_copies import WeightCopies

Result = TypeVar("Result")


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """`auto`: bfloat16 on a GPU; on a CPU, where it may be emulated, the dtype of the weights (None)."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def should_compile(option: Compile, device: torch.device) -> bool:
    """`auto`: on a GPU. On two CPU cores compiling takes longer than a short run saves (docs/engine.md)."""
    return option == "on" or (option == "auto" and device.type == "cuda")


def start_compilers(device: torch.device) -> None:
    """Start the processes in which PyTorch compiles GPU kernels in parallel, which takes seconds, and go on. PyTorch
    starts them when it has the first kernel, and compiles one by one until they are there."""
    if device.type == "cuda":
        from torch._inductor.async_compile import maybe_warm_pool  # heavy, and of no use without compiling

        maybe_warm_pool()


def should_capture(option: Graphs, device: torch.device, ranks: int, accumulate: int) -> bool:
    """`auto`: where a recorded step can run, on one GPU and without accumulation. `on`: on several GPUs too."""
    possible = device.type == "cuda" and accumulate == 1
    if option == "on" and not possible:
        raise ValueError(
            f"--graphs on needs a GPU for each process and --accumulate 1; here are {ranks} process(es) on "
            f"{device.type}, accumulate {accumulate}. Leave --graphs auto."
        )
    return possible and (option == "on" or (option == "auto" and ranks == 1))


@contextlib.contextmanager
def outer_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """On a GPU whose blocks compute in 16 bits: products of float32 (patches, conditioning, final layer) in TF32.

    TF32 keeps 10 bits of a factor, bfloat16 7, and both add up in float32: what is outside the blocks stays more exact
    than what is inside. Whole float32 without tensor cores took 2.3 of 105 ms of DiT-S/4's step. The setting is the
    process's, so it is put back at the end; float32 runs do not get it.
    """
    before = torch.get_float32_matmul_precision()
    if compute_dtype(precision, device) is not None and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# PyTorch counts the compiled variants of all modules that share a method together, and stops at 8: block, conditioning
# and final layer, each with gradients and as target, are 6 at every size of batch.
COMPILED_VARIANTS = 64


def prepare_network(network: nn.Module, dtype: torch.dtype | None, compiled: bool, recompute: Recompute) -> None:
    """Apply 16-bit compute, recomputation of activations and compilation to the blocks of one network."""
    if not isinstance(network, ModulatedNetwork):
        if dtype is not None or compiled or recompute != "none":
            raise ValueError(
                f"{type(network).__name__} has no equal blocks; it runs with precision float32, compile off and "
                "recompute none only."
            )
        return
    network.set_compute_dtype(dtype)
    if compiled:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
        # Under DDP, Dynamo would cut a graph where a bucket of gradients ends, and so through an open dual level. A
        # block is a graph of its own here: its gradients leave while the block before it runs, without any cut.
        torch._dynamo.config.optimize_ddp = False
    for block in network.blocks:
        if recompute != "none":
            block.plain, block.pair = (recomputed(call, recompute, compiled) for call in (block.plain, block.pair))
    if compiled:
        for part in (*network.blocks, network.conditioning, network.final):
            part.plain, part.pair = (
                torch.compile(call, fullgraph=True, dynamic=False) for call in (part.plain, part.pair)
            )


def recomputed(call: Callable[..., Result], recompute: Recompute, compiled: bool) -> Callable[..., Result]:
    """`call`, keeping only its inputs (`full`), or also what products and attention give (`selective`).

    A block draws no random numbers, so no state of a generator is kept for the second run; reading it is not allowed
    while a step is recorded.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if recompute == "selective":
        options["context_fn"] = _keep_products
    elif compiled:
        options["context_fn"] = _keep_nothing

    def wrapped(*inputs: Any) -> Result:
        return checkpoint(call, *inputs, **options)

    return wrapped


def prepare_objective(
    objective: Objective, dtype: torch.dtype | None, compiled: bool, recompute: Recompute, sharded: bool = False
) -> None:
    """The same for the network that is trained and for its target, which never needs activations. `sharded`: their
    weights will be spread over ranks, and so cannot be copied in 16 bits once a step."""
    prepare_network(objective.flow.network, dtype, compiled, recompute)
    if objective.target is not None:
        prepare_network(objective.target.network, dtype, compiled, "none")
    if dtype is not None and not sharded:
        WeightCopies(objective)


def _keep_nothing() -> tuple:
    """Full recomputation, said for each operator. Where nothing is said, PyTorch 2.11 compiles blocks that keep what
    operators inside `torch.autograd.Function`s give (XL/2, batch 64, at 7b1f52d: 53.5 GiB)."""
    return create_selective_checkpoint_contexts(lambda *_, **__: CheckpointPolicy.MUST_RECOMPUTE)


def _keep_products() -> tuple:
    """Selective recomputation: keep what products, attention and fused norms give; compute GELU and the like again."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _products() else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _products() -> frozenset:
    aten = torch.ops.aten
    return frozenset(
        {
            aten.mm.default,
            aten.addmm.default,
            aten.bmm.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            torch.ops.tvmatch.dual_attention.default,
            torch.ops.tvmatch.short_attention.default,
            torch.ops.tvmatch.head_norm.default,
            torch.ops.tvmatch.modulated_norm.default,
        }
    )
