"""`scaled_dot_product_attention` in place of PyTorch's function of that name, for plain and for dual tensors."""

import inspect
import re

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F

from tvmatch.kernels.dual_attention import scaled_dot_product_attention

from .attention_cases import plain_attention, problem, relative_errors

P = problem(2, 2, 7, 5, 8)
PRIMALS, TANGENTS = P[:3], P[3:]


def same(a, b, bound=1e-12):
    assert max(relative_errors(list(a), list(b))) < bound


def test_plain_tensors_go_to_pytorch(monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or original(*a, **k))
    lengths = torch.tensor([2, 5])
    for causal in (False, True):
        for kv in (None, lengths):
            got = scaled_dot_product_attention(*PRIMALS, scale=0.4, causal=causal, kv_lengths=kv)
            same([got], [plain_attention(*PRIMALS, 0.4, causal, kv)])
    assert len(calls) == 4


def test_dual_and_plain_agree_on_the_primal():
    for options in ({}, {"causal": True}, {"kv_lengths": torch.tensor([2, 5])}, {"scale": 0.2}):
        with fwAD.dual_level():
            y = scaled_dot_product_attention(fwAD.make_dual(P[0], P[3]), *P[1:3], **options)
            same([fwAD.unpack_dual(y).primal], [scaled_dot_product_attention(*PRIMALS, **options)])


def test_every_argument_of_pytorch_is_there_in_its_place():
    theirs = re.search(r"\((query.*?)\) ->", F.scaled_dot_product_attention.__doc__, re.DOTALL)[1]
    names = [part.split("=")[0].split(":")[0].strip() for part in theirs.replace("*,", "").split(",")]
    names = [name for name in names if name]
    assert names == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"], names
    ours = list(inspect.signature(scaled_dot_product_attention).parameters)
    assert ours[:8] == ["q", "k", "v", *names[3:]]


@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (4, 6, 8), (6, 8)])
def test_plain_calls_are_those_of_pytorch(shape):
    q, k, v = (torch.randn(shape) for _ in range(3))
    mask = torch.rand(6, 6) < 0.5
    mask[:, 0] = True
    for arguments, options in (
        ((mask,), {}),
        ((mask, 0.0, False), {"scale": 0.3}),
        ((None, 0.0, True), {}),
        ((), {"is_causal": True}),
        ((), {"attn_mask": mask.float()}),
    ):
        ours = scaled_dot_product_attention(q, k, v, *arguments, **options)
        assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v, *arguments, **options))
    torch.manual_seed(0)
    ours = scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"kv_lengths": torch.tensor([2, 5])}])
def test_grouped_queries(options):
    q, tq = PRIMALS[0].repeat(1, 3, 1, 1), TANGENTS[0].repeat(1, 3, 1, 1)
    k, v, tk, tv = P[1], P[2], P[4], P[5]

    def plain(q, k, v):
        wide = (x.repeat_interleave(3, 1) for x in (k, v))
        return plain_attention(q, *wide, None, "is_causal" in options, options.get("kv_lengths"))

    def ours(q, k, v):
        return scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)

    same([ours(q, k, v)], [plain(q, k, v)])
    primals, tangents = (q, k, v), (tq, tk, tv)
    same(torch.func.jvp(ours, primals, tangents), torch.func.jvp(plain, primals, tangents))
    with pytest.raises(ValueError, match="q has 3 heads and k or v 2; grouped queries need a multiple"):
        torch.func.jvp(ours, (q[:, :3], k, v), (tq[:, :3], tk, tv))


def test_what_has_no_derivative_here_is_refused():
    mask = torch.ones(7, 5, dtype=torch.bool)
    for options, message in (({"attn_mask": mask}, r"attn_mask has shape \[7, 5\]"), ({"dropout_p": 0.1}, "is 0.1")):
        with pytest.raises(ValueError, match=message + ".* with dual tensors"):
            torch.func.jvp(lambda *p, o=options: scaled_dot_product_attention(*p, **o), PRIMALS, TANGENTS)
        with pytest.raises(ValueError, match=message + ".* with kv_lengths"):
            scaled_dot_product_attention(*PRIMALS, kv_lengths=torch.tensor([2, 5]), **options)
    with pytest.raises(ValueError, match="backend is 'fast'"):
        scaled_dot_product_attention(*PRIMALS, backend="fast")
