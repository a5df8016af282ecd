"""`scaled_dot_product_attention` in place of PyTorch's function of that name, for plain and for dual tensors."""

import inspect
import re

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F

from tvmatch.kernels.dual_attention import dual_attention, scaled_dot_product_attention

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


def test_a_mask_with_a_tangent_is_refused():
    mask = torch.zeros(7, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"attn_mask .* with a mask that is dual itself"):
        torch.func.jvp(lambda m: scaled_dot_product_attention(*PRIMALS, m), (mask,), (torch.ones_like(mask),))


def test_any_order_of_memory():
    """PyTorch's attention takes heads innermost in memory: so must the same call when a tangent comes."""
    q, k, v, *tangents = (x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in P)
    assert q.stride(-1) != 1
    got = torch.func.jvp(scaled_dot_product_attention, (q, k, v), tuple(tangents))
    same(got, torch.func.jvp(scaled_dot_product_attention, PRIMALS, TANGENTS))


def test_a_map_inside_of_a_jvp_says_where_it_must_be():
    def mapped(x):
        return torch.func.vmap(lambda one: scaled_dot_product_attention(one, one, one))(x)

    x = torch.randn(3, 1, 2, 5, 8)
    with pytest.raises(RuntimeError, match="Put the vmap outside"):
        torch.func.jvp(mapped, (x,), (x,))
    with pytest.raises(RuntimeError, match="Put the vmap outside"), fwAD.dual_level():
        mapped(x)
    once = torch.func.vmap(
        lambda one: torch.func.jvp(lambda y: scaled_dot_product_attention(y, x[0], y), (one,), (one,))
    )
    same(
        once(x)[1][2:],
        torch.func.jvp(lambda y: scaled_dot_product_attention(y, x[0], y), (x[2],), (x[2],))[1][None],
        1e-5,
    )


@pytest.mark.parametrize("dual", [False, True])
def test_lengths_can_be_traced(dual):
    from torch.fx.experimental.proxy_tensor import make_fx

    lengths = torch.tensor([2, 5])

    def attend(q, k, v, tangent):
        if not dual:
            return scaled_dot_product_attention(q, k, v, kv_lengths=lengths)
        return torch.func.jvp(lambda x: scaled_dot_product_attention(x, k, v, kv_lengths=lengths), (q,), (tangent,))[1]

    traced = make_fx(attend)(*PRIMALS, TANGENTS[0])
    same([traced(*PRIMALS, TANGENTS[0])], [attend(*PRIMALS, TANGENTS[0])])
    with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (*PRIMALS, lengths)]
        assert scaled_dot_product_attention(*fake[:3], kv_lengths=fake[3]).shape == PRIMALS[0].shape


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's own operator under vmap
def test_plain_tensors_with_lengths_are_held_to_what_dual_ones_are():
    """Else a model is right in training, under a jvp, and NaN when it samples."""
    q, k, v = (p.clone() for p in PRIMALS)
    clean = scaled_dot_product_attention(q, k, v, kv_lengths=torch.tensor([2, 5]))
    for x in (k, v):
        x[0, :, 2:] = float("nan")
    lengths = torch.tensor([2, 5])
    leaves = [x.requires_grad_() for x in (q, k, v)]
    got = scaled_dot_product_attention(*leaves, kv_lengths=lengths)
    assert torch.equal(got, clean)
    got.sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in leaves)
    inputs = tuple(x.detach() for x in leaves)
    primal, _ = torch.func.jvp(lambda *x: scaled_dot_product_attention(*x, kv_lengths=lengths), inputs, TANGENTS)
    torch.testing.assert_close(primal, clean)
    for bad in ([0, 5], [2, 6], [-1, 5]):
        with pytest.raises(ValueError, match=r"every sample needs between 1 and 5 keys"):
            scaled_dot_product_attention(*PRIMALS, kv_lengths=torch.tensor(bad))
    lengths = torch.tensor([[2, 5], [0, 5]])  # under vmap nobody can read them: that sample becomes NaN, as on a GPU
    both = torch.func.vmap(lambda one: scaled_dot_product_attention(*PRIMALS, kv_lengths=one))(lengths)
    torch.testing.assert_close(both[0], clean)
    assert both.isnan().flatten(2).all(2).tolist() == [[False, False], [True, False]]
    compiled = torch.compile(scaled_dot_product_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*PRIMALS, kv_lengths=torch.tensor([2, 5])), clean)


def test_lengths_under_autocast():
    q, k, v = (p.float() for p in PRIMALS)
    with torch.autocast("cpu", torch.bfloat16):
        got = scaled_dot_product_attention(q, k.bfloat16(), v.bfloat16(), kv_lengths=torch.tensor([2, 5]))
    assert got.dtype == torch.bfloat16


def test_no_heads_to_group_are_refused_in_words():
    q, k, v = PRIMALS
    with pytest.raises(ValueError, match="grouped queries need a multiple"):
        scaled_dot_product_attention(q, k[:, :0], v[:, :0], enable_gqa=True, kv_lengths=torch.tensor([2, 5]))


def test_shapes_alone() -> None:
    """On `meta`, to count operations."""
    q, k, v, tq, tk, tv = (torch.empty(2, 3, 7, 8, device="meta") for _ in range(6))
    assert [x.shape for x in dual_attention(q, k, v, tq, tk, tv)] == [q.shape] * 2
    assert scaled_dot_product_attention(q, k, v).shape == q.shape
