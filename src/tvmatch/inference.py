"""Fast sampling: a flow map made ready for nothing but drawing, and a sampler recorded as a CUDA graph."""

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tvmatch.checks import check_data, check_guidance, check_labels
from tvmatch.flow_map import FlowMap
from tvmatch.networks.layers import Linear
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.times import check_grid, uniform_grid

COMPILED_VARIANTS = 64
WARM_CALLS = 3  # before recording: everything must be compiled and allocated


def ready_to_draw(flow: FlowMap, dtype: torch.dtype | None = None, compiled: bool = False) -> FlowMap:
    """A copy of `flow` without gradients, whose blocks compute in `dtype` with weights cast once; `compiled`: and are
    compiled.

    Times, the residual stream and the final layer keep the dtype of the weights, as in training. `ValueError` for a
    network without equal blocks.
    """
    if not isinstance(flow.network, ModulatedNetwork):
        raise ValueError(f"{type(flow.network).__name__} has no equal blocks; sample it with tvmatch.sampling.sample.")
    flow = copy.deepcopy(flow).requires_grad_(False).eval()
    network = flow.network
    if dtype is not None:
        network.set_compute_dtype(dtype)
        for layer in network.blocks.modules():
            if isinstance(layer, Linear):
                layer.to(dtype)
    if compiled:
        # PyTorch counts the variants of all blocks together, one for each size of batch, and would stop at 8
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
        for part in (*network.blocks, network.conditioning, network.final):
            part.plain = torch.compile(part.plain, fullgraph=True, dynamic=False)
    return flow


class RecordedSampler:
    """Draws batches of one size by replaying a CUDA graph: the host launches one thing a batch.

    flow   on a GPU, as `ready_to_draw` gives it (compiled or not)
    steps  equal steps from 1 to 0, or a grid `times` of your own; w is the guidance scale of all samples
    """

    @torch.no_grad()
    def __init__(
        self, flow: FlowMap, batch: int, w: float = 1.0, steps: int = 1, times: Sequence[float] | None = None
    ) -> None:
        weight = next(flow.network.patches.parameters())
        if weight.device.type != "cuda":
            raise ValueError(f"a recorded sampler needs a GPU; the weights are on {weight.device.type}.")
        self.flow = flow
        self.grid = uniform_grid(steps) if times is None else check_grid(list(times))
        self.noise = torch.randn((batch, *flow.network.data_shape), device=weight.device, dtype=weight.dtype)
        self.label = torch.full((batch,), -1, dtype=torch.int64, device=weight.device)
        self.w = torch.full((batch,), float(w), device=weight.device, dtype=weight.dtype)
        check_guidance(self.w.cpu(), batch)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_CALLS):
                self._walk()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.drawn = self._walk()

    def _walk(self) -> Tensor:
        x = self.noise
        for t, s in itertools.pairwise(self.grid):
            x = self.flow.jump(x, x.new_full((len(x),), t), x.new_full((len(x),), s), self.label, self.w)
        return x

    def __call__(self, noise: Tensor, label: Tensor) -> Tensor:
        """Noise [B, ...] and classes [B] (-1: none) -> samples, which the next call overwrites."""
        self._check(noise, label)
        self.noise.copy_(noise)
        self.label.copy_(label)
        self.graph.replay()
        return self.drawn

    def _check(self, noise: Tensor, label: Tensor) -> None:
        if noise.shape != self.noise.shape:
            check_data(noise, self.flow.network.data_shape)
            raise ValueError(f"this sampler was recorded for batches of {len(self.noise)}, got {len(noise)}.")
        if label.device.type == "cpu":
            check_labels(label, self.flow.network.num_classes, len(self.label))
        elif label.shape != self.label.shape:  # what `copy_` would spread over the batch
            raise ValueError(f"label must have shape [{len(self.label)}], got {list(label.shape)}.")
