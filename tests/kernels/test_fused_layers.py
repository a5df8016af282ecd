"""The fused norms in Triton's interpreter, against the layers' own formulas under torch.func.jvp in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tvmatch.kernels import head_norm, modulated_norm
from tvmatch.kernels.elementwise import launches_triton, two_parts
from tvmatch.kernels.head_norm import op as head_norm_op
from tvmatch.kernels.modulated_norm import op as modulated_norm_op
from tvmatch.networks.dit import Block, DiTConfig
from tvmatch.networks.layers import Attention, add_gated, modulate, rms_norm, set_compute_dtype

EPS = 1e-6


def relative_errors(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    return [float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(ours, exact, strict=True)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def single(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().float().requires_grad_() for x in tensors]


def weighted_sum(weights: list[Tensor], results: tuple[Tensor, ...]) -> Tensor:
    return sum((w.to(r.dtype) * r).sum() for w, r in zip(weights, results, strict=True))


def formula(x: Tensor, shift: Tensor, scale: Tensor, *update: Tensor) -> tuple[Tensor, Tensor]:
    y = add_gated(x, *update) if update else x
    return y, modulate(rms_norm(y), shift, scale)


@pytest.mark.parametrize("size", [16, 48, 144])  # one part, two parts, a padded second part
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_modulated_norm(size: int, add: bool, pair: bool) -> None:
    tokens = 19  # no multiple of the rows of a program
    shapes = [(2, tokens, size), (2, 1, size), (2, 1, size), (2, 1, size), (2, tokens, size)][: 5 if add else 3]
    primals, tangents = [random(*s) for s in shapes], [random(*s) for s in shapes]
    if pair:
        y, ty = torch.func.jvp(formula, tuple(primals), tuple(tangents))
        exact, inputs = (*y, *ty), primals + tangents
    else:
        exact, inputs = formula(*primals), primals
    ours_in = single(inputs)
    ours = modulated_norm.add_norm_modulate(
        tuple(ours_in[: len(shapes)]), tuple(ours_in[len(shapes) :]), EPS, torch.float32
    )
    assert max(relative_errors(ours, exact)) < 1e-6
    weights = [torch.randn_like(r) for r in exact]
    gradients = torch.autograd.grad(weighted_sum(weights, exact), inputs)
    ours_gradients = torch.autograd.grad(weighted_sum(weights, ours), ours_in)
    assert max(relative_errors(ours_gradients, gradients)) < 2e-6


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


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let the layers go to the kernels (in the interpreter) or not."""

    def choose(yes: bool) -> None:
        for module in (head_norm_op, modulated_norm_op):
            monkeypatch.setattr(module, "launches_triton", lambda x: yes and x.dtype in (torch.float32, torch.bfloat16))

    return choose


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 0.03)])
def test_a_block_is_the_same_with_and_without_the_kernels(
    fused: Callable[[bool], None], dtype: torch.dtype | None, tolerance: float
) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=48, num_heads=3))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    set_compute_dtype(block, dtype)
    inputs = [torch.randn(2, 4, 48), torch.randn(2, 48), torch.randn(2, 4, 48), torch.randn(2, 48)]
    results = {}
    for yes in (False, True):
        fused(yes)
        block.zero_grad()
        x, c, tx, tc = (i.clone().requires_grad_() for i in inputs)
        pair = block(x, c, tangents=(tx, tc))
        plain = block(x, c)
        (pair[0].sum() + pair[1].square().sum() + plain.square().sum()).backward()
        gradients = [i.grad for i in (x, c, tx, tc)] + [p.grad for p in block.parameters()]
        results[yes] = [r.detach().double() for r in (*pair, plain, *gradients)]
    assert max(relative_errors(results[True], results[False])) < tolerance
    assert not all(torch.equal(a, b) for a, b in zip(results[True], results[False], strict=True)), "one path ran twice"


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "heads"), [(1152, 18), (384, 6), (1024, 16), (288, 4)])
def test_on_a_gpu_a_block_agrees_with_the_formulas(fused: Callable[[bool], None], size: int, heads: int) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=size, num_heads=heads)).cuda()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=size**-0.5)
    inputs = [torch.randn(s, device="cuda") for s in ((3, 50, size), (3, size)) * 2]
    results = []
    for yes in (False, True):
        fused(yes)
        block.zero_grad()
        x, c, tx, tc = (i.clone().requires_grad_() for i in inputs)
        pair, plain = block(x, c, tangents=(tx, tc)), block(x, c)
        (pair[0].sum() + pair[1].square().sum() + plain.square().sum()).backward()
        gradients = [i.grad for i in (x, c, tx, tc)] + [p.grad for p in block.parameters()]
        results.append([r.detach().double() for r in (*pair, plain, *gradients)])
    assert max(relative_errors(*results)) < 1e-3  # attention's own float32 products differ between its two forms


def test_without_tangents_of_the_stream_zeros_stand_in(fused: Callable[[bool], None]) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=48, num_heads=3))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, c, tx = torch.randn(2, 4, 48), torch.randn(2, 48), torch.randn(2, 4, 48)
    slopes = []
    for yes in (False, True):
        fused(yes)
        slopes.append(block(x, c, tangents=(tx, None))[1])  # c has none
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_double_backward_raises() -> None:
    x, shift, scale = (torch.randn(s, requires_grad=True) for s in ((2, 4, 16), (2, 1, 16), (2, 1, 16)))
    _, h = modulated_norm.add_norm_modulate((x, shift, scale), (), EPS, torch.float32)
    (gradient,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        gradient.sum().backward()


def test_where_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launches_triton(torch.zeros(1))  # a CPU
    assert not Attention(16, 2).forward(torch.zeros(1, 2, 16)).isnan().any()
    with pytest.raises(ValueError, match="3 or 5 primals"):
        modulated_norm.add_norm_modulate((torch.zeros(1, 2, 16),), (), EPS, torch.float32)


@pytest.mark.parametrize(
    ("size", "parts"), [(1152, (1024, 128)), (1024, (1024, 0)), (384, (256, 128)), (144, (128, 16)), (1000, (1024, 0))]
)
def test_widths_as_powers_of_two(size: int, parts: tuple[int, int]) -> None:
    assert two_parts(size) == parts
