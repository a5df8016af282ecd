"""What DiT and MLP have in common: tokens, a conditioning vector, modulated blocks, tangents carried as pairs."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tvmatch.networks.base import Network, Tangents
from tvmatch.networks.duals import PairModule
from tvmatch.networks.embeddings import Conditioning
from tvmatch.networks.layers import (
    Linear,
    Modulation,
    Norm,
    RMSNorm,
    add_norm_modulate,
    init_spectral_,
    set_compute_dtype,
)

Initialisation = Literal["spectral", "xavier"]  # of weights: spectral norm 1 (paper, section 5), or as in DiT


def check_choices(config: Any) -> None:
    """Raise `ValueError` for a norm or an initialisation that does not exist: a header may say anything."""
    for name, hint in (("norm", Norm), ("initialisation", Initialisation)):
        if getattr(config, name) not in get_args(hint):
            raise ValueError(f"{name} must be {' or '.join(get_args(hint))}, got {getattr(config, name)!r}.")


class FinalLayer(PairModule):
    """(x, gate, update, conditioning [B, C]) -> tokens [B, N, token_size], from the residual stream x + gate update."""

    def __init__(self, size: int, token_size: int, modulation_norm: bool, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = Modulation(size, 2, modulation_norm)
        self.linear = Linear(size, token_size)

    def body(self, x: Tensor, gate: Tensor, update: Tensor, c: Tensor) -> Tensor:
        modulation = self.modulation(c)
        return self.linear(add_norm_modulate(x, *modulation, gate, update, norm=self.norm, again=True)[1])


class ModulatedNetwork(Network):
    """F(x, t, s, class, w) through equal blocks that are modulated by the embedded times, guidance scale and class.

    Subclasses say how data become tokens and back. With `tangents`, `forward` returns the pair (F, dF), dF the
    derivative along (x, t, s).
    """

    carries_tangents = True
    blocks_dtype: torch.dtype | None = None  # what the blocks compute in; None: the dtype of the weights

    def __init__(
        self,
        blocks: Iterable[PairModule],
        data_shape: tuple[int, ...],
        num_classes: int,
        token_size: int,
        hidden_size: int,
        modulation_norm: bool = True,
        norm: Norm = "rms",
        initialisation: Initialisation = "spectral",
        initialise: bool = True,
    ) -> None:
        super().__init__(num_classes, data_shape)
        self.initialisation = initialisation
        self.patches = Linear(token_size, hidden_size)
        self.conditioning = Conditioning(hidden_size, num_classes)
        self.blocks = nn.ModuleList(blocks)
        self.final = FinalLayer(hidden_size, token_size, modulation_norm, norm)
        if initialise:
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initial weights: spectral norm 1 (or Xavier's uniform ones); modulation and output zero; class embeddings
        N(0, 0.02^2); weights of norms one; biases zero."""
        with torch.no_grad():
            self.conditioning.label.weight.normal_(std=0.02, generator=generator)
            for name, module in self.named_modules():
                if isinstance(module, RMSNorm):
                    module.weight.fill_(1)
                if isinstance(module, Linear):
                    module.bias.zero_()
                    if name.endswith("modulation.linear") or name == "final.linear":
                        module.weight.zero_()
                    elif self.initialisation == "spectral":
                        init_spectral_(module.weight, generator)
                    else:
                        nn.init.xavier_uniform_(module.weight, generator=generator)

    def set_compute_dtype(self, dtype: torch.dtype | None) -> None:
        """Compute the blocks in `dtype` (bfloat16, say). Times, the residual stream and the final layer keep the dtype
        of the weights: 8 bits of mantissa would blur neighbouring times together."""
        set_compute_dtype(self.blocks, dtype)
        self.blocks_dtype = dtype

    def to_tokens(self, x: Tensor) -> Tensor:
        """Data [B, *data_shape] -> tokens [B, N, token_size]; linear, so that tangents pass through it too."""
        raise NotImplementedError

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, token_size] -> data [B, *data_shape]; linear."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Data [B, *data_shape] -> hidden tokens [B, N, hidden_size]."""
        return self.patches(self.to_tokens(x))

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, tangents: Tangents | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        h = self.embed(x)
        if tangents is None:
            c = self.conditioning(t, s, 1 / w, label)
            stream = self.nothing_added(h)
            for block in self.blocks:
                stream = block(*stream, c)
            return self.from_tokens(self.final(*stream, c))
        if tangents.t is None and tangents.s is None:
            c = self.conditioning(t, s, 1 / w, label)
            tc = like_a_result(torch.zeros_like(c), c)
        else:
            c, tc = self.conditioning(t, s, 1 / w, label, tangents=(tangents.t, tangents.s, None, None))
        if tangents.x is not None:
            th = self.to_tokens(tangents.x).to(self.patches.weight.dtype) @ self.patches.weight.T
        else:
            th = like_a_result(torch.zeros_like(h), h)
        stream, slope = self.nothing_added(h), self.nothing_added(th)
        for block in self.blocks:
            stream, slope = block(*stream, c, tangents=(*slope, tc))
        y, ty = self.final(*stream, c, tangents=(*slope, tc))
        return self.from_tokens(y), self.from_tokens(ty)

    def nothing_added(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as a residual stream (x, gate, update) between blocks, the addend zero."""
        dtype = self.blocks_dtype or h.dtype
        gate, update = (
            torch.zeros_like(h[:, :1], memory_format=torch.contiguous_format),
            torch.zeros_like(h, dtype=dtype),
        )
        return h, like_a_result(gate, h), like_a_result(update, h)


def like_a_result(zeros: Tensor, result: Tensor) -> Tensor:
    """Zeros that require a gradient where what blocks give does: the first block is then called like all others, and
    compiled with them."""
    wanted = result.requires_grad and not torch._C._are_functorch_transforms_active()
    return zeros.requires_grad_() if wanted else zeros
