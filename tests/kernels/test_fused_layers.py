"""The fused norms in Triton's interpreter, against the layers' own formulas under torch.func.jvp in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tvmatch.kernels import biased_gelu, head_norm, linear_gelu, modulated_norm, modulation, short_attention
from tvmatch.kernels.elementwise import launches_triton, two_parts
from tvmatch.kernels.modulated_norm import op as modulated_norm_op
from tvmatch.kernels.modulation import op as modulation_op
from tvmatch.networks.layers import Attention, add_gated, modulate, rms_norm

from .layer_cases import relative_errors

EPS = 1e-6


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def single(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().float().requires_grad_() for x in tensors]


def weighted_sum(weights: list[Tensor], results: tuple[Tensor, ...]) -> Tensor:
    return sum((w.to(r.dtype) * r).sum() for w, r in zip(weights, results, strict=True))


def formula(x: Tensor, shift: Tensor, scale: Tensor, *update: Tensor) -> tuple[Tensor, Tensor]:
    y = add_gated(x, *update) if update else x
    return y, modulate(rms_norm(y), shift, scale)


@pytest.mark.parametrize("size", [16, 48, 144, 272])  # one part, two parts, a padded second part, one row at a time
@pytest.mark.parametrize(
    ("add", "again", "pair"),
    [(False, False, False), (False, False, True), (True, False, False), (True, False, True), (True, True, False)],
)
def test_modulated_norm(monkeypatch: pytest.MonkeyPatch, size: int, add: bool, again: bool, pair: bool) -> None:
    monkeypatch.setattr(modulated_norm_op, "AGAIN_SIZE", 1)
    if size == 48:  # with many rows to a program
        monkeypatch.setattr(modulated_norm_op, "FORWARD_PROGRAMS", 2)
        monkeypatch.setattr(modulated_norm_op, "BACKWARD_PROGRAMS", 2)
    tokens = 3 if size == 272 else 19  # no multiple of the rows of a program
    shapes = [(2, tokens, size), (2, 1, size), (2, 1, size), (2, 1, size), (2, tokens, size)][: 5 if add else 3]
    primals, tangents = [random(*s) for s in shapes], [random(*s) for s in shapes]
    if pair:
        y, ty = torch.func.jvp(formula, tuple(primals), tuple(tangents))
        exact, inputs = (*y, *ty), primals + tangents
    else:
        exact, inputs = formula(*primals), primals
    ours_in = single(inputs)
    ours = modulated_norm.add_norm_modulate(
        tuple(ours_in[: len(shapes)]), tuple(ours_in[len(shapes) :]), EPS, torch.float32, again
    )
    assert max(relative_errors(ours, exact)) < 1e-6
    weights = [torch.randn_like(r) for r in exact]
    # all results go on; or not the stream, as behind the last norm; or only the tangent of what was normalised
    for used in (slice(None), slice(1, None, 2), slice(-1, None)):
        graph = {"retain_graph": True, "materialize_grads": True}
        gradients = torch.autograd.grad(weighted_sum(weights[used], exact[used]), inputs, **graph)
        ours_gradients = torch.autograd.grad(weighted_sum(weights[used], ours[used]), ours_in, **graph)
        compared = [(a, b) for a, b in zip(ours_gradients, gradients, strict=True) if b.any() or a.any()]
        assert max(relative_errors(*zip(*compared, strict=True))) < 2e-6


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(("count", "size"), [(6, 48), (2, 144)])
def test_normalised_chunks(count: int, size: int, pair: bool) -> None:
    inputs = [random(3, count * size), random(3, count * size)][: 2 if pair else 1]

    def formula(m: Tensor) -> tuple[Tensor, ...]:
        return rms_norm(m.view(3, count, 1, size)).unbind(1)

    exact = sum(torch.func.jvp(formula, *[(part,) for part in inputs]), ()) if pair else formula(inputs[0])
    ours_in = single(inputs)
    ours = modulation.normalised_chunks(ours_in[0], ours_in[1] if pair else None, count, EPS)
    assert max(relative_errors(ours, exact)) < 1e-6
    assert len({result.untyped_storage().data_ptr() for result in ours}) == len(ours), "results share memory"
    # gradients with a stride of their own between samples, one of a chunk that nothing needs, and one not in one piece
    wide = torch.randn(len(exact), 3, 5, size, dtype=torch.float64)[:, :, 1:2].unbind(0)
    directions = [*wide[:-1], torch.randn(3, 1, 2 * size, dtype=torch.float64)[..., ::2]]
    used = slice(1, None)
    gradients = torch.autograd.grad(exact[used], inputs, directions[used])
    ours_gradients = torch.autograd.grad(ours[used], ours_in, [part.float() for part in directions[used]])
    assert max(relative_errors(ours_gradients, gradients)) < 2e-6


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("size", [24, 300])  # a part of a tile, and more than one
def test_biased_gelu(size: int, pair: bool) -> None:
    inputs = [random(3, 50, size), random(size), random(3, 50, size)][: 3 if pair else 2]
    inputs[0].data *= 2  # where GELU bends, and where it no longer does

    def formula(x: Tensor) -> Tensor:
        return functional.gelu(x + inputs[1], approximate="tanh")

    exact = torch.func.jvp(formula, (inputs[0],), (inputs[2],)) if pair else (formula(inputs[0]),)
    ours_in = single(inputs)
    ours = biased_gelu.biased_gelu(ours_in[0], ours_in[2] if pair else None, ours_in[1])
    assert max(relative_errors(ours, exact)) < 1e-6
    directions = [torch.randn_like(r) for r in exact]
    gradients = torch.autograd.grad(weighted_sum(directions, exact), inputs)
    assert max(relative_errors(torch.autograd.grad(weighted_sum(directions, ours), ours_in), gradients)) < 4e-6


def attention_of_qkv(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int) -> Tensor:
    q, k, v = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = rms_norm(q) * q_weight, rms_norm(k) * k_weight
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("heads", "size"), [(2, 16), (3, 24), (1, 72)])
def test_attention_of_a_packed_projection(heads: int, size: int) -> None:
    inputs = [random(2, 7, 3 * heads * size), random(2, 7, 3 * heads * size), random(size), random(size)]
    qkv, tqkv, *weights = inputs
    exact = torch.func.jvp(lambda x: attention_of_qkv(x, *weights, heads), (qkv,), (tqkv,))
    ours_in = single(inputs)
    ours = head_norm.dual_attention_of_qkv(*ours_in, heads, EPS)
    assert max(relative_errors(ours, exact)) < 2e-6
    directions = [torch.randn_like(r) for r in exact]
    gradients = torch.autograd.grad(weighted_sum(directions, exact), inputs)
    assert max(relative_errors(torch.autograd.grad(weighted_sum(directions, ours), ours_in), gradients)) < 4e-6


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(("heads", "size", "tokens"), [(2, 16, 7), (3, 24, 64), (1, 64, 17)])
def test_short_attention(heads: int, size: int, tokens: int, pair: bool) -> None:
    shapes = [(2, tokens, 3 * heads * size), (size,), (size,), (2, tokens, 3 * heads * size)]
    inputs = [random(*shape) for shape in shapes[: 4 if pair else 3]]
    qkv, *weights = inputs[:3]

    def formula(x: Tensor) -> Tensor:
        return attention_of_qkv(x, *weights, heads)

    exact = torch.func.jvp(formula, (qkv,), (inputs[3],)) if pair else (formula(qkv),)
    ours_in = single(inputs)
    ours = short_attention.attention_of_qkv(ours_in[0], ours_in[3] if pair else None, *ours_in[1:3], heads, EPS)
    assert max(relative_errors(ours, exact)) < 1e-6
    directions = [torch.randn_like(r) for r in exact]
    gradients = torch.autograd.grad(weighted_sum(directions, exact), inputs)
    assert max(relative_errors(torch.autograd.grad(weighted_sum(directions, ours), ours_in), gradients)) < 2e-6


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "size", "tokens"), [(6, 64, 64), (3, 64, 50), (4, 32, 16), (2, 48, 4)])
def test_on_a_gpu_short_attention_in_16_bits(heads: int, size: int, tokens: int) -> None:
    """As exact as the kernels for any length, from the same rounded projections."""
    inputs = [random(5, tokens, 3 * heads * size), random(5, tokens, 3 * heads * size), random(size), random(size)]
    inputs = [x.detach().cuda().bfloat16().double().requires_grad_() for x in inputs]
    qkv, tqkv, *weights = inputs
    exact = torch.func.jvp(lambda x: attention_of_qkv(x, *weights, heads), (qkv,), (tqkv,))
    directions = [torch.randn_like(r).bfloat16().double() for r in exact]
    gradients = torch.autograd.grad(weighted_sum(directions, exact), inputs)
    plain = torch.autograd.grad((directions[0] * attention_of_qkv(qkv, *weights, heads)).sum(), [qkv, *weights])
    low = [x.detach().bfloat16().requires_grad_() for x in inputs[:2]] + single(inputs[2:])
    assert short_attention.applies(low[0], heads)
    ours = short_attention.attention_of_qkv(*low, heads, EPS)
    ours_gradients = torch.autograd.grad(weighted_sum(directions, ours), low)
    (o,) = short_attention.attention_of_qkv(low[0], None, *low[2:], heads, EPS)
    ours_plain = torch.autograd.grad((directions[0].to(o.dtype) * o).sum(), [low[0], *low[2:]])
    errors = relative_errors((*ours, *ours_gradients, o, *ours_plain), (*exact, *gradients, exact[0], *plain))
    others = head_norm.dual_attention_of_qkv(*low, heads, EPS)
    yardstick = relative_errors(
        (*others, *torch.autograd.grad(weighted_sum(directions, others), low)), (*exact, *gradients)
    )
    assert max(errors) < 1.5 * max(*yardstick, 4e-3), (errors, yardstick)


def test_normalised_heads_take_gradients_in_any_order_of_memory() -> None:
    heads, size = 3, 24
    inputs = [random(2, 7, 3 * heads * size), random(size), random(size)]

    def exact_heads(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, ...]:
        q, k, v = qkv.view(2, 7, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        return rms_norm(q) * q_weight, rms_norm(k) * k_weight, v

    exact, ours_in = exact_heads(*inputs), single(inputs)
    ours = head_norm.normalised_heads(*ours_in, heads, EPS)
    assert max(relative_errors(ours, exact)) < 1e-6
    directions = [
        torch.randn(2, 7, heads, size, dtype=torch.float64).transpose(1, 2),
        *map(torch.randn_like, exact[1:]),
    ]
    gradients = torch.autograd.grad(weighted_sum(directions, exact), inputs)
    assert max(relative_errors(torch.autograd.grad(weighted_sum(directions, ours), ours_in), gradients)) < 2e-6


@pytest.mark.gpu
def test_on_a_gpu_gelu_is_taken_into_the_product_before_it() -> None:
    x, weight, bias = (torch.randn(s, device="cuda").bfloat16() for s in ((3, 50, 64), (96, 64), (96,)))
    exact = functional.gelu(functional.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    with torch.no_grad():
        assert linear_gelu.applies(x, x.dtype)
        assert relative_errors((linear_gelu.linear_gelu(x, weight, bias),), (exact,))[0] < 4e-3


@pytest.mark.parametrize(("batch", "count", "yes"), [(256, 6, True), (255, 6, False), (256, 2, False), (256, 9, False)])
def test_chunks_of_many_samples_go_to_the_kernels(
    monkeypatch: pytest.MonkeyPatch, batch: int, count: int, yes: bool
) -> None:
    monkeypatch.setattr(modulation_op, "launches_triton", lambda x: True)
    assert modulation.applies(torch.empty(batch, count * 4), count) == yes


def test_weights_in_any_order_of_memory() -> None:
    """Columns of a matrix, and one number for all, as torch.func.functional_call may give them."""
    h, table = torch.randn(5, 16), torch.randn(16, 2)
    for bias in (table[:, 0], torch.ones(1).expand(16)):
        ours = [biased_gelu.biased_gelu(h, h, x) for x in (bias, bias.contiguous())]
        assert all(torch.equal(a, b) for a, b in zip(*ours, strict=True))
    qkv, columns = torch.randn(2, 9, 96), list(table.unbind(1))
    for operator in (short_attention.attention_of_qkv, head_norm.dual_attention_of_qkv):
        results = []
        for weights in (columns, [x.contiguous() for x in columns]):
            inputs = [x.clone().requires_grad_() for x in (qkv, qkv)]
            outputs = operator(*inputs, *weights, 2, EPS)
            results.append((*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_tangent_of_a_gradient_is_refused() -> None:
    """What a backward has saved has no tangent: forward mode over it would be wrong without a word."""
    h, bias, qkv, weight = torch.randn(5, 16), torch.randn(16), torch.randn(2, 9, 96), torch.randn(16)
    x, row = torch.randn(2, 4, 16), torch.randn(2, 1, 16)
    calls = {
        "gelu": (lambda x: biased_gelu.biased_gelu(x, None, bias)[0], h),
        "attention": (lambda x: short_attention.attention_of_qkv(x, None, weight, weight, 2, EPS)[0], qkv),
        "the norm of queries": (lambda x: head_norm.normalised_heads(x, weight, weight, 2, EPS)[0], qkv),
        "the modulated norm": (lambda x: modulated_norm.add_norm_modulate((x, row, row), (), EPS, x.dtype)[1], x),
    }
    for name, (call, given) in calls.items():
        leaf = given.clone().requires_grad_()
        with torch.autograd.forward_ad.dual_level():
            y = call(leaf)
            factor = torch.autograd.forward_ad.make_dual(torch.randn_like(y), torch.randn_like(y))
            with pytest.raises(RuntimeError, match=f"the tangent of a gradient of {name}"):
                torch.autograd.grad((y * factor).sum(), leaf)


def test_double_backward_raises() -> None:
    x, shift, scale = (torch.randn(s, requires_grad=True) for s in ((2, 4, 16), (2, 1, 16), (2, 1, 16)))
    _, h = modulated_norm.add_norm_modulate((x, shift, scale), (), EPS, torch.float32)
    (gradient,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        gradient.sum().backward()


def test_where_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launches_triton(torch.zeros(1))  # a CPU
    assert not Attention(16, 2).forward(torch.zeros(1, 2, 16)).isnan().any()
    x, row = torch.zeros(1, 2, 16), torch.zeros(1, 1, 16)
    with pytest.raises(ValueError, match="3 or 5 primals"):
        modulated_norm.add_norm_modulate((x,), (), EPS, torch.float32)
    with pytest.raises(ValueError, match="no gate and update were given"):
        modulated_norm.add_norm_modulate((x, row, row), (), EPS, torch.float32, again=True)


@pytest.mark.parametrize(
    ("size", "parts"), [(1152, (1024, 128)), (1024, (1024, 0)), (384, (256, 128)), (144, (128, 16)), (1000, (1024, 0))]
)
def test_widths_as_powers_of_two(size: int, parts: tuple[int, int]) -> None:
    assert two_parts(size) == parts
