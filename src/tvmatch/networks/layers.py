"""The layers of the semi-Lipschitz transformer: Linear, RMS normalisation, attention, MLP (paper, section 5).

Each accepts plain and dual tensors. `Linear`, `rms_norm`, `gelu` and the attention operator compute their tangents
themselves, with less memory than PyTorch's forward-mode rules; everything else uses those rules. Under torch.func
transforms the norm and GELU use PyTorch's rules too. On a GPU, `add_norm_modulate` and `Attention` go to fused kernels;
what they say here otherwise is the reference that the kernels are tested against.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from tvmatch.kernels import biased_gelu, head_norm, linear_gelu, modulated_norm, modulation, short_attention
from tvmatch.kernels.dual_attention import scaled_dot_product_attention
from tvmatch.kernels.tangents import unpack
from tvmatch.networks.pairs import gelu_pair, rms_norm_pair

EPS = 1e-6  # added to mean squares before their root is taken
Norm = Literal["rms", "layer"]  # of tokens: RMSNorm (paper, section 5), or LayerNorm as in the original DiT (ablation)


def rms_norm(x: Tensor, eps: float = EPS) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension; unlike LayerNorm, Lipschitz away from zero."""
    primal, tangent = unpack(x)
    if tangent is None or torch._C._are_functorch_transforms_active():
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return forward_ad.make_dual(*rms_norm_pair(primal, tangent, eps))


def layer_norm(x: Tensor, eps: float = EPS) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last dimension, without affine parameters (arXiv 1607.06450)."""
    return rms_norm(x - x.mean(dim=-1, keepdim=True), eps)


NORMS = {"rms": rms_norm, "layer": layer_norm}


def at_least_float32(x: Tensor) -> Tensor:
    """16-bit numbers as float32: norms sum squares, which 16 bits cannot hold."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation (arXiv 1606.08415)."""
    primal, tangent = unpack(x)
    if tangent is None or torch._C._are_functorch_transforms_active():
        return functional.gelu(x, approximate="tanh")
    return forward_ad.make_dual(*gelu_pair(primal, tangent))


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight of shape [size], computed in float32 or better, returned in x's dtype."""

    def __init__(self, size: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(at_least_float32(x), self.eps) * self.weight).to(x.dtype)


class Linear(nn.Linear):
    """Affine map [..., in] -> [..., out]; of a dual tensor, two plain products with the bias on the primal only.

    PyTorch's own forward-mode rule stores zero tensors that break compiled backward passes (DESIGN section 2).
    With a `compute_dtype` (see `set_compute_dtype`) input and weights are cast to it, and so is the output; where
    there are `copies` of the weights, these are taken instead of a cast in every call (`training.weight_copies`).
    """

    compute_dtype: torch.dtype | None = None
    # of weight and bias in compute_dtype, and of the weight again for tangents, which the engine keeps equal
    copies: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        primal, tangent = unpack(input)
        weight, bias, for_tangent = self.cast()
        output = functional.linear(primal.to(weight.dtype), weight, bias)
        if tangent is None:
            return output
        return forward_ad.make_dual(output, functional.linear(tangent.to(weight.dtype), for_tangent))

    def product(self, primal: Tensor, tangent: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both times the weight, without the bias: whatever reads the result next adds it, and so its gradient."""
        weight, _, for_tangent = self.cast()
        slope = None if tangent is None else functional.linear(tangent.to(weight.dtype), for_tangent)
        return functional.linear(primal.to(weight.dtype), weight), slope

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return self.compute_dtype or self.weight.dtype

    def cast(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and bias in the dtype of the products, and the weight for products of tangents; gradients go to the
        parameters."""
        if self.copies is not None:
            if torch.is_grad_enabled() and self.weight.requires_grad and not self.copies[0].requires_grad:
                raise RuntimeError(
                    "a layer with 16-bit copies of its weights was called past its block, so its weights would get no "
                    "gradient. Call the network or the block itself, not its forward."
                )
            return self.copies
        weight = self.weight.to(self.dtype)
        return weight, self.bias.to(self.dtype), weight

    def __getstate__(self) -> dict[str, Any]:
        """Without the copies: nobody would keep those of a copied layer equal to its weights."""
        return {name: value for name, value in self.__dict__.items() if name != "copies"}


def set_compute_dtype(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let every `Linear` inside `module`, and so the attention between them, compute in `dtype` (bfloat16, say);
    weights, norms and the residual stream keep their own. None: compute in the dtype of the weights."""
    if dtype not in (None, torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(f"compute dtype must be a floating-point dtype of torch or None, got {dtype}.")
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.compute_dtype = dtype


def coarsest_rounding(module: nn.Module) -> float:
    """The largest distance from 1 to the next number among the dtypes in which the layers of `module` compute: 2^-7 for
    bfloat16, 2^-23 for float32."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    dtypes |= {layer.compute_dtype for layer in module.modules() if isinstance(layer, Linear) and layer.compute_dtype}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


class Attention(nn.Module):
    """Multi-head self-attention [B, N, C] -> [B, N, C] with RMS-normalised queries and keys."""

    def __init__(self, size: int, num_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        if size % num_heads:
            raise ValueError(f"hidden size {size} is not a multiple of num_heads={num_heads}.")
        self.num_heads = num_heads
        self.qkv = Linear(size, 3 * size)
        self.q_norm = RMSNorm(size // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size // num_heads) if qk_norm else nn.Identity()
        self.qk_norm = qk_norm
        self.proj = Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        primal, tangent = unpack(qkv)
        if not self.qk_norm or not head_norm.applies(primal, self.num_heads):
            return self.proj(self.attend(qkv))
        norm = (self.q_norm.weight, self.k_norm.weight, self.num_heads, self.q_norm.eps)
        if short_attention.applies(primal, self.num_heads):
            results = short_attention.attention_of_qkv(primal, tangent, *norm)
            return self.proj(results[0] if tangent is None else forward_ad.make_dual(*results))
        if tangent is not None:
            return self.proj(forward_ad.make_dual(*head_norm.dual_attention_of_qkv(primal, tangent, *norm)))
        o = scaled_dot_product_attention(*head_norm.normalised_heads(primal, *norm))
        return self.proj(o.transpose(1, 2).flatten(2))

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention over the heads of a packed projection [B, N, 3 C] -> [B, N, C]."""
        batch, tokens, size = qkv.shape
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        o = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return o.transpose(1, 2).reshape(batch, tokens, size // 3)


class FeedForward(nn.Module):
    """Two affine maps with a tanh-approximated GELU between them; inside the first where no gradient needs what lies
    between (the target of a training step, sampling)."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = Linear(size, hidden_size)
        self.fc2 = Linear(hidden_size, size)

    def forward(self, x: Tensor) -> Tensor:
        primal, tangent = unpack(x)
        if tangent is None and linear_gelu.applies(primal, self.fc1.dtype):
            return self.fc2(linear_gelu.linear_gelu(primal.to(self.fc1.dtype), *self.fc1.cast()[:2]))
        if biased_gelu.applies(primal, self.fc1.dtype):
            results = biased_gelu.biased_gelu(*self.fc1.product(primal, tangent), self.fc1.bias)
            return self.fc2(results[0] if tangent is None else forward_ad.make_dual(*results))
        return self.fc2(gelu(self.fc1(x)))


class Modulation(nn.Module):
    """Conditioning vector [B, C] -> `chunks` vectors [B, 1, C], each RMS-normalised (paper, section 5). The last is in
    memory of its own: what leaves a compiled block must not be a view of what stays inside."""

    def __init__(self, size: int, chunks: int, normalised: bool = True) -> None:
        super().__init__()
        self.chunks, self.normalised = chunks, normalised
        self.linear = Linear(size, chunks * size)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        m = self.linear(functional.silu(c))
        primal, tangent = unpack(m)
        if self.normalised and modulation.applies(primal, self.chunks):
            results = modulation.normalised_chunks(primal, tangent, self.chunks, EPS)
            if tangent is None:
                return results
            pairs = zip(results[: self.chunks], results[self.chunks :], strict=True)
            return tuple([forward_ad.make_dual(*pair) for pair in pairs])
        m = at_least_float32(m.view(c.shape[0], self.chunks, 1, c.shape[1]))
        *others, last = (rms_norm(m) if self.normalised else m).unbind(dim=1)
        return *others, last.clone(memory_format=torch.contiguous_format)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update, in x's dtype: the residual stream."""
    return torch.addcmul(x, gate, update.to(x.dtype))


def add_norm_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate: Tensor | None = None,
    update: Tensor | None = None,
    dtype: torch.dtype | None = None,
    norm: Norm = "rms",
    again: bool = False,
) -> tuple[Tensor, Tensor]:
    """The residual stream y = x + gate update (without both: x), and norm(y) (1 + scale) + shift in `dtype` (x's).

    x, update: [B, N, C]; shift, scale, gate: [B, 1, C]; plain or dual. `again`: a norm before has kept x, so that the
    backward may add the update again instead of keeping y too. The fused kernels know the RMS norm only; the other is
    always computed plainly.
    """
    inputs = (x, shift, scale) if gate is None else (x, shift, scale, gate, update)
    primals, tangents = zip(*(unpack(part) for part in inputs), strict=True)
    if norm != "rms" or not modulated_norm.applies(primals[0]):
        y = x if gate is None else add_gated(x, gate, update)
        h = modulate(NORMS[norm](y), shift, scale)
        return y, h if dtype is None else h.to(dtype)
    if all(tangent is None for tangent in tangents):
        return modulated_norm.add_norm_modulate(primals, (), EPS, dtype or x.dtype, again)
    tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True))
    y, h, ty, th = modulated_norm.add_norm_modulate(primals, tangents, EPS, dtype or x.dtype, again)
    return forward_ad.make_dual(y, ty), forward_ad.make_dual(h, th)


def init_spectral_(weight: Tensor, generator: torch.Generator | None = None) -> None:
    """Fill a matrix with Gaussian numbers and divide it by its largest singular value (paper, section 5)."""
    with torch.no_grad():
        weight.normal_(generator=generator)
        flat = weight if weight.shape[0] <= weight.shape[1] else weight.T
        if weight.is_cuda:  # where a hundred eigenvalue decompositions would be seconds of every start
            wide = flat.double()
            largest = largest_eigenvalue(wide @ wide.T)
        else:  # far cheaper than a singular value decomposition
            largest = torch.linalg.eigvalsh((flat @ flat.T).double())[-1]
        weight.div_(largest.sqrt().to(weight.dtype))


def largest_eigenvalue(gram: Tensor, squarings: int = 20) -> Tensor:
    """Of a positive matrix [n, n], from products alone: with G_0 = gram, n_k = |G_k| (Frobenius) and
    G_(k+1) = (G_k / n_k)^2,

        log lambda = sum over k of log(n_k) / 2^k

    Relative error at most log(n) / 2^(squarings + 1), where all eigenvalues are equal, and nothing where the largest
    stands out.
    """
    size = gram.norm()
    logarithm = size.log()
    for k in range(1, squarings + 1):
        gram = gram / size
        gram = gram @ gram
        size = gram.norm()
        logarithm = logarithm + size.log() / 2**k
    return logarithm.exp()
