"""The largest attention logit of a network: the number that grows first where attention becomes unstable.

Measured from outside, without gradients, in a forward pass of its own on a few samples: the training path knows nothing
of it, compiled or not.
"""

import contextlib
import math
import sys

import torch
from torch import Tensor, nn

from tvmatch.interpolant import interpolate
from tvmatch.networks.base import Network
from tvmatch.networks.layers import Attention

SAMPLES = 4  # of the batch; a forward pass of 4 of 64 samples is 1/176 of a TVM step
MOST_LOGITS = 2**24  # held at once


@torch.no_grad()
def largest_logits(network: Network, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> list[float]:
    """max |q k^T| / sqrt(head size) over samples, heads and tokens, for each attention of `network`, in order of use.

    Inputs as of the network. A network without `Attention` gives an empty list; what is not finite is passed on.
    """
    found: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: found.append(_largest(module, *inputs)))
        for module in network.modules()
        if isinstance(module, Attention)
    ]
    try:
        if hooks:
            with _eagerly():
                network(x, t, s, label, w)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).tolist() if found else []


def _eagerly() -> contextlib.AbstractContextManager:
    """Compiled blocks would not call a hook; run eagerly they do, and what was compiled stays as it is. Where the
    compiler was never imported, which takes seconds, nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _largest(attention: nn.Module, x: Tensor) -> Tensor:
    """max |q k^T| / sqrt(head size) of one attention with input x [B, N, C], float32, in slices of bounded size."""
    batch, tokens, _ = x.shape
    q, k, _ = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = (norm(part).flatten(0, 1).float() for norm, part in ((attention.q_norm, q), (attention.k_norm, k)))
    rows = max(1, MOST_LOGITS // (tokens * tokens))
    largest = [(q_ @ k_.mT).abs().amax() for q_, k_ in zip(q.split(rows), k.split(rows), strict=True)]
    return torch.stack(largest).amax() / math.sqrt(q.shape[-1])


def probe(network: Network, x0: Tensor, label: Tensor, w: float) -> list[float]:
    """`largest_logits` on the first samples of a batch of data, at times t from 1/4 to 1 with jumps of every length,
    and with noise that is always the same: nothing of training's random draws is touched."""
    x0, label = x0[:SAMPLES], label[:SAMPLES]
    share = torch.arange(1, len(x0) + 1, device=x0.device, dtype=x0.dtype) / SAMPLES
    t, s = share, share * (1 - share)
    generator = torch.Generator(x0.device).manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    scale = torch.where(label < 0, 1.0, w).to(x0.dtype)
    return largest_logits(network, interpolate(x0, noise, t), t, s, label, scale)


def logit_figures(logits: list[float]) -> tuple[dict[str, float], dict[str, list[float | None]]]:
    """What metrics say of a probe: figures (the largest finite logit, and how many blocks have none, if some do), and
    the table by block, null where a block's logit is not finite. Both empty without attention."""
    if not logits:
        return {}, {}
    by_block = [value if math.isfinite(value) else None for value in logits]
    finite = [value for value in by_block if value is not None]
    figures: dict[str, float] = {"largest_attention_logit": max(finite)} if finite else {}
    if len(finite) < len(logits):
        figures["attention_blocks_not_finite"] = len(logits) - len(finite)
    return figures, {"largest_attention_logit_by_block": by_block}
