"""Attention that forward-mode differentiation can pass through, fused, with one joint backward.

Example::

    from tvmatch.kernels.dual_attention import dual_attention

    o, to = dual_attention(q, k, v, tq, tk, tv)      # all [batch, heads, tokens, head size]
"""

from .op import dual_attention, scaled_dot_product_attention

__all__ = ["dual_attention", "scaled_dot_product_attention"]
