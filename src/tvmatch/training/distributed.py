"""Data parallelism with PyTorch's own engines, applied from outside to networks that know nothing of it.

Both wrap the objective, not the network: every network call of a step happens inside one wrapped forward. (A call past
the wrapper would leave its gradients out of the exchange, and the ranks would drift apart without a word.)
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tvmatch.flow_map import FlowMap
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.objectives import Objective
from tvmatch.training.ranks import Ranks


def distribute(objective: Objective, averages: Iterable[FlowMap], ranks: Ranks) -> nn.Module:
    """The module to call in place of `objective`; gradients come back as the mean over ranks.

    ddp   every rank keeps everything.
    fsdp  the weights of the flow map, of its target and of the evaluation averages are sharded alike, block by block,
          and so are gradients and the optimiser's state, which must be made afterwards.

    The ranks must have the same weights (`Ranks.require_equal`); nothing is copied from one to the others here.
    """
    if ranks.strategy == "single":
        return objective
    # The check for a zero tangent may ask the network twice more, on one rank and not on another, which would wait for
    # ever; `verify_tangents` has asked the very same path before.
    objective.flow.tangent_seen = True
    if ranks.strategy == "ddp":
        with warnings.catch_warnings():  # the option that takes its place is not in torch 2.11
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
    return objective


def _shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Each block is a unit that is gathered when called and let go afterwards; the rest of the network is another."""
    blocks = network.blocks if isinstance(network, ModulatedNetwork) else ()
    for unit in (*blocks, network):
        # said of each: a network that is nobody's part would stay gathered, and its average could not be moved
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


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
