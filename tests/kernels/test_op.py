"""The operator around the kernels: forward-mode AD, torch.func, compilers, and loud failures."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD

from tvmatch.kernels.dual_attention import dual_attention, scaled_dot_product_attention

from .attention_cases import plain_attention, problem, relative_errors, run, yardstick

P = problem(2, 2, 7, 5, 8)
PRIMALS, TANGENTS = P[:3], P[3:]


def model(q, k, v):
    return scaled_dot_product_attention(q.sin(), k.cos(), 2 * v).tanh()


def plain_model(q, k, v):
    return plain_attention(q.sin(), k.cos(), 2 * v).tanh()


def loss(function):
    """A number that depends on the primal and on the tangent of `function`."""

    def value(*primals):
        o, to = torch.func.jvp(function, primals, TANGENTS)
        return (o.sin() * to).sum()

    return value


def same(a, b, bound=1e-12):
    assert max(relative_errors(list(a), list(b))) < bound


def test_dual_level():
    with fwAD.dual_level():
        y = fwAD.unpack_dual(model(*(fwAD.make_dual(p, t) for p, t in zip(PRIMALS, TANGENTS, strict=True))))
    same(y, torch.func.jvp(plain_model, PRIMALS, TANGENTS))


def test_only_some_inputs_are_dual():
    with fwAD.dual_level():
        y = fwAD.unpack_dual(scaled_dot_product_attention(fwAD.make_dual(PRIMALS[0], TANGENTS[0]), *PRIMALS[1:]))
    zero = [torch.zeros_like(t) for t in TANGENTS[1:]]
    same(y, torch.func.jvp(plain_attention, PRIMALS, (TANGENTS[0], *zero)))


def test_func_jvp_of_a_model():
    same(torch.func.jvp(model, PRIMALS, TANGENTS), torch.func.jvp(plain_model, PRIMALS, TANGENTS))


def test_backward_through_func_jvp():
    grads = []
    for f in (model, plain_model):
        leaves = [p.clone().requires_grad_() for p in PRIMALS]
        loss(f)(*leaves).backward()
        grads.append([x.grad for x in leaves])
    same(*grads)


def test_func_grad_of_func_jvp():
    same(*(torch.func.grad(loss(f), (0, 1, 2))(*PRIMALS) for f in (model, plain_model)))


def test_jacfwd():
    same(*(torch.func.jacfwd(f, (0, 1, 2))(*PRIMALS) for f in (model, plain_model)))


def test_vmap():
    batch = [torch.stack([x, x + 1, 2 * x]) for x in P]
    got = torch.func.vmap(dual_attention)(*batch)
    same(got, [torch.stack(t) for t in zip(*(dual_attention(*(x[i] for x in batch)) for i in range(3)), strict=True)])

    def value(*x):
        o, to = dual_attention(*x)
        return (o.sin() * to).sum()

    derivative = torch.func.grad(value, tuple(range(6)))
    got = torch.func.vmap(derivative)(*batch)
    want = [derivative(*(x[i] for x in batch)) for i in range(3)]
    same(got, [torch.stack(t) for t in zip(*want, strict=True)])


def test_vmap_over_one_input_only():
    queries = torch.stack([PRIMALS[0], PRIMALS[0] + 1])
    lengths = torch.tensor([2, 5])
    rest = (PRIMALS[1], PRIMALS[2], TANGENTS[0], None, None)
    got = torch.func.vmap(lambda q: dual_attention(q, *rest, kv_lengths=lengths), randomness="error")(queries)
    want = [dual_attention(q, *rest, kv_lengths=lengths) for q in queries]
    same(got, [torch.stack(t) for t in zip(*want, strict=True)])


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 5])])
def test_opcheck(lengths):
    leaves = [x.clone().requires_grad_() for x in P]
    torch.library.opcheck(torch.ops.tvmatch.dual_attention.default, (*leaves, lengths, 0.3, False, "auto"))
    some = (*leaves[:3], None, leaves[4], None)
    torch.library.opcheck(torch.ops.tvmatch.dual_attention.default, (*some, lengths, 0.3, True, "auto"))


class Layer(torch.nn.Module):
    """A block as in the networks: opens its own dual level and hands out a pair of plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24, dtype=torch.float64)

    def body(self, x):
        p, t = fwAD.unpack_dual(x)
        y = self.qkv(p)
        if t is not None:
            y = fwAD.make_dual(y, t @ self.qkv.weight.T)
        q, k, v = y.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return scaled_dot_product_attention(q.sin(), k, v).transpose(1, 2).flatten(2)

    def forward(self, x, tx=None):
        if tx is None:
            return self.body(x)
        with fwAD.dual_level():
            y = fwAD.unpack_dual(self.body(fwAD.make_dual(x, tx)))
            return y.primal, y.tangent


def test_compile_of_a_block_forward_and_backward():
    layer, x, tx = Layer(), torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for f in (layer, compiled):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        o, to = f(leaf, tx)
        (o.sin() * to).sum().backward()
        results.append([o, to, leaf.grad, layer.qkv.weight.grad.clone()])
    same(*results)
    same([compiled(x)], [layer(x)])


@pytest.mark.slow
def test_compile_with_the_default_compiler():
    layer, x, tx = Layer(), torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    same(torch.compile(layer, fullgraph=True)(x, tx), layer(x, tx))


def test_compile_of_func_jvp():
    compiled = torch.compile(lambda *p: torch.func.jvp(model, p, TANGENTS), fullgraph=True, backend="aot_eager")
    same(compiled(*PRIMALS), torch.func.jvp(plain_model, PRIMALS, TANGENTS))


def test_gradient_of_one_result_only():
    x = [t.clone().requires_grad_() for t in P]
    for i in range(2):
        got = torch.autograd.grad(dual_attention(*x)[i].sum(), x)
        weights = [torch.full_like(x[0], float(i == j)) for j in range(2)]
        want = yardstick(P, *weights)[2:]
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


def test_second_derivatives_raise():
    x = [t.clone().requires_grad_() for t in P]
    o, to = dual_attention(*x)
    (g,) = torch.autograd.grad((o * to).sum(), x[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        g.sum().backward()

    def value(q):
        o, to = dual_attention(q, *P[1:])
        return (o * to).sum()

    with pytest.raises(NotImplementedError, match="no double backward"):
        torch.func.grad(lambda q: torch.func.grad(value)(q).sum())(P[0])


def test_a_tangent_of_an_input_raises():
    with fwAD.dual_level(), pytest.raises(RuntimeError, match="would be dropped"):
        dual_attention(fwAD.make_dual(P[0], TANGENTS[0]), *P[1:])
    with pytest.raises(RuntimeError, match="would be dropped"):
        torch.func.jvp(lambda *p: dual_attention(*p, *TANGENTS), PRIMALS, TANGENTS)
    with pytest.raises(RuntimeError, match="would be dropped"):
        torch.func.jvp(lambda *t: dual_attention(*PRIMALS, *t), TANGENTS, TANGENTS)


def test_forward_mode_twice_raises():
    with pytest.raises(RuntimeError, match="would be dropped"):
        torch.func.jvp(lambda *p: torch.func.jvp(model, p, TANGENTS)[1], PRIMALS, TANGENTS)
    with pytest.raises(RuntimeError, match="would be dropped"):
        torch.func.jvp(torch.func.grad(loss(model)), PRIMALS, TANGENTS)


def test_autocast():
    x = [t.float() for t in P]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(t.dtype == torch.bfloat16 for t in dual_attention(*x))
    assert dual_attention(*x)[0].dtype == torch.float32


def test_no_grad_keeps_no_graph():
    x = [t.clone().requires_grad_() for t in P]
    with torch.no_grad():
        o, to = dual_attention(*x)
    assert not o.requires_grad
    assert not to.requires_grad
    same(run(dual_attention, P, o, to)[:2], [o, to])


Q, K = P[0], P[1]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({0: Q[0]}, {}, r"q has shape \[2, 7, 8\]"),
        ({0: Q.float()}, {}, "dtype torch.float64 and q has torch.float32"),
        ({3: Q.float()}, {}, "tq has dtype torch.float32"),
        ({0: Q.long()}, {}, "q has dtype torch.int64"),
        ({1: K[:1]}, {}, r"k has shape \[1, 2, 5, 8\]"),
        ({2: K[:, :, :4]}, {}, r"v has shape \[2, 2, 4, 8\]"),
        ({4: K[:, :, :4]}, {}, r"tk has shape \[2, 2, 4, 8\]"),
        ({0: Q[:, :, :0]}, {}, "must be at least 1"),
        ({0: Q.mT.contiguous().mT}, {}, "inner stride must be 1"),
        ({1: K.to("meta")}, {}, "move all inputs to one device"),
        ({3: None, 4: None, 5: None}, {}, "all None"),
        ({}, {"scale": -1.0}, "scale is -1.0"),
        ({}, {"scale": float("nan")}, "scale is nan"),
        ({}, {"backend": "cuda"}, "backend is 'cuda'"),
        ({}, {"kv_lengths": [3, 5]}, "integer tensor"),
        ({}, {"kv_lengths": torch.tensor([3])}, r"shape \[1\]"),
        ({}, {"kv_lengths": torch.tensor([3.0, 5.0])}, "dtype torch.float32"),
        ({}, {"kv_lengths": torch.tensor([0, 5])}, r"kv_lengths is \[0, 5\]"),
        ({}, {"kv_lengths": torch.tensor([3, 6])}, r"kv_lengths is \[3, 6\]"),
        ({}, {"backend": "triton"}, "dtype torch.float64|needs a CUDA device"),
    ],
)
def test_bad_input_is_named(change, options, message):
    x = [change.get(i, t) for i, t in enumerate(P)]
    with pytest.raises(ValueError, match=message):
        dual_attention(*x, **options)
