"""Data parallelism with PyTorch's own engines, applied from outside to networks that know nothing of it.

Both wrap the objective, not the network: every network call of a step happens inside one wrapped forward. (A call past
the wrapper would leave its gradients out of the exchange, and the ranks would drift apart without a word.)
"""

import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tvmatch.flow_map import FlowMap
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.objectives import Objective
from tvmatch.training.config import FsdpGather
from tvmatch.training.ranks import Ranks


def distribute(
    objective: Objective,
    averages: Iterable[FlowMap],
    ranks: Ranks,
    gather: FsdpGather = "auto",
    recorded: bool = False,
) -> nn.Module:
    """The module to call in place of `objective`; gradients come back as the mean over ranks.

    ddp   every rank keeps everything.
    fsdp  the weights of the flow map, of its target and of the evaluation averages are sharded alike, block by block,
          and so are gradients and the optimiser's state, which must be made afterwards. `gather` says for how long
          the trained weights are whole: from the first use in a call of the objective until `release`, which must
          follow the backward pass (`step`, and `auto`), or during each use (`use`).

    `recorded` says that steps will be recorded as a CUDA graph, on `recording_stream`.
    The ranks must have the same weights (`Ranks.require_equal`); nothing is copied from one to the others here.
    """
    if ranks.strategy == "single":
        return objective
    # The check for a zero tangent may ask the network twice more, on one rank and not on another, which would wait for
    # ever; `verify_tangents` has asked the very same path before.
    objective.flow.tangent_seen = True
    if ranks.strategy == "ddp":
        # DDP keeps the nodes that add up gradients, and a node runs on the stream on which it was made
        stream = torch.cuda.stream(recording_stream(ranks.device)) if recorded else contextlib.nullcontext()
        with stream, warnings.catch_warnings():  # the option that takes its place is not in torch 2.11
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            return DistributedDataParallel(
                objective, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )
    # True: a block's output may be a view. Nothing here writes into one.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for flow in (objective.flow, objective.target):
        if flow is not None:
            _shard(flow.network, mesh)
    # One root above both: its backward pass ends the bookkeeping of the target, which has none of its own
    fully_shard(objective, mesh=mesh)
    for average in averages:
        _shard(average.network, mesh)
    if gather != "use":
        _gather_once(objective)
    return objective


def _units(network: nn.Module) -> tuple[nn.Module, ...]:
    """Each block is a unit that is gathered and let go as one; the rest of the network is another."""
    return (*network.blocks, network) if isinstance(network, ModulatedNetwork) else (network,)


def _shard(network: nn.Module, mesh: DeviceMesh) -> None:
    for unit in _units(network):
        # said of each: a network that is nobody's part would stay gathered, and its average could not be moved
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def _gather_once(objective: Objective) -> None:
    """Let the trained network keep what it has gathered through all its uses in a step: a TVM step calls it twice and
    differentiates both calls, and FSDP2's Python costs the host some microseconds a weight each time.

    Weights that stay gathered while the optimiser moves their shards would be old without a word. So calls from outside
    the objective let go as ever, and whatever is left over is let go before the objective begins.
    """
    network = objective.flow.network
    network.set_reshard_after_backward(False)
    for unit in _units(network):
        # Itself, which is there already: the default is whatever was called before it, and so once a part of the target
        unit.set_modules_to_backward_prefetch([unit])

    def begin(*_: object) -> None:
        release(objective)
        network.set_reshard_after_forward(False)

    objective.register_forward_pre_hook(begin)
    objective.register_forward_hook(lambda *_: network.set_reshard_after_forward(True), always_call=True)


def release(module: nn.Module) -> None:
    """After a backward pass: let go of the weights that FSDP2 has gathered for it."""
    if isinstance(module, FSDPModule):
        for unit in _units(module.flow.network):
            unit.reshard()


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU on which its steps are recorded; no work may be recorded on the default one."""
    return torch.cuda.Stream(device)


def join_streams(module: nn.Module) -> None:
    """While a step is recorded: let the current stream wait for those on which FSDP2 gathers and reduces. A recording
    must not end with one still going on its own."""
    if isinstance(module, FSDPModule):
        streams = module._get_fsdp_state()._comm_ctx
        for stream in (
            streams.all_gather_copy_in_stream,
            streams.all_gather_stream,
            streams.reduce_scatter_stream,
            streams.all_reduce_stream,
        ):
            with torch.cuda.stream(stream):
                used = torch.cuda.is_current_stream_capturing()
            if used:
                torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def gradient_exchange(module: nn.Module, now: bool) -> Iterator[None]:
    """A forward and its backward, whose gradients are exchanged at once, or kept for a later micro-step of the step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    if isinstance(module, DistributedDataParallel) and not now:
        with module.no_sync():
            yield
    else:
        yield
