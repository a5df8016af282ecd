"""The fused kernel against the float64 yardstick: in Triton's interpreter on a CPU, compiled on a GPU."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmatch.kernels.dual_attention import dual_attention

from .attention_cases import problem, relative_errors, run, yardstick

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TANGENTS = [t for t in itertools.product((True, False), repeat=3) if any(t)]
BOUND = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
# The interpreter takes the bits of bfloat16 for integers; on a CPU float16 stands for the 16-bit types.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def check(B, H, n_q, n_kv, D, dtype=torch.float32, *, tangents=(True, True, True), seed=0, **options):
    x = problem(B, H, n_q, n_kv, D, dtype, tangents=tangents, device=DEVICE, seed=seed)
    do, dto = torch.randn(2, B, H, n_q, D, device=DEVICE).to(dtype)
    lengths = options.get("kv_lengths")
    if lengths is not None:
        options["kv_lengths"] = lengths = torch.tensor(lengths, device=DEVICE)
    got = run(dual_attention, x, do, dto, backend="triton", **options)
    want = yardstick(x, do, dto, scale=options.get("scale"), causal=options.get("causal", False), lengths=lengths)
    errors = relative_errors(got, want)
    assert all(e < BOUND[dtype] for e in errors), errors
    assert all(t.dtype == dtype for t in got)


def test_the_backend_that_was_asked_for_runs(monkeypatch):
    """A wrong choice gives right numbers, slowly: count calls, both ways."""
    from tvmatch.kernels.dual_attention import reference
    from tvmatch.kernels.dual_attention import triton as fused

    calls = []

    def spy(module, name):
        original = getattr(module, name)
        label = f"{module.__name__.rpartition('.')[2]}.{name}"
        monkeypatch.setattr(module, name, lambda *a: calls.append(label) or original(*a))

    for name in ("forward", "backward"):
        spy(fused, name)
        spy(reference, f"dual_attention_{name}")
    x = problem(1, 1, 9, 9, 16, torch.float32, device=DEVICE)
    do, dto = torch.randn(2, 1, 1, 9, 16, device=DEVICE)
    run(dual_attention, x, do, dto, backend="triton")
    assert calls == ["triton.forward", "triton.backward"]
    calls.clear()
    run(dual_attention, x, do, dto, backend="reference")
    assert calls == ["reference.dual_attention_forward", "reference.dual_attention_backward"]
    calls.clear()
    run(dual_attention, x, do, dto)
    assert calls[0].startswith("triton" if DEVICE == "cuda" else "reference")


@pytest.mark.parametrize("D", [16, 24, 32, 40, 64, 72])
def test_head_sizes(D):
    check(1, 2, 33, 40, D)


@pytest.mark.parametrize("n", [1, 7, 63, 65, 200, 257])
def test_odd_sizes(n):
    check(1, 1, n, max(n, 5), 16)


def test_a_single_key():
    """P is one, so o = v, to = tv, and q and k get no gradient."""
    x = problem(1, 1, 1, 1, 16, torch.float32, device=DEVICE)
    do, dto = torch.randn(2, 1, 1, 1, 16, device=DEVICE)
    o, to, dq, dk, dv, dtq, dtk, dtv = run(dual_attention, x, do, dto, backend="triton")
    torch.testing.assert_close([o, to, dv, dtv], [x[2], x[5], do, dto])
    assert max(g.abs().max().item() for g in (dq, dk, dtq, dtk)) < 1e-5


@pytest.mark.parametrize("tangents", TANGENTS)
def test_absent_tangents(tangents):
    check(1, 2, 17, 20, 16, tangents=tangents)
    check(1, 1, 20, 17, 16, tangents=tangents, causal=True)


@pytest.mark.parametrize(("n_q", "n_kv"), [(70, 40), (40, 70), (64, 64)])
def test_masks(n_q, n_kv):
    check(2, 1, n_q, n_kv, 16, causal=True)
    check(2, 1, n_q, n_kv, 16, kv_lengths=[1, n_kv - 3])
    check(2, 1, n_q, n_kv, 24, kv_lengths=[n_kv, 9], causal=True, scale=0.7)


@pytest.mark.parametrize("dtype", [HALF, torch.float16])
@pytest.mark.parametrize("D", [64, 72])
def test_half_precision(dtype, D):
    check(1, 2, 65, 70, D, dtype)


@pytest.mark.parametrize("lengths", [torch.tensor([[7, 40], [33, 1]])[:, 0], torch.tensor(9).expand(2)])
def test_lengths_in_any_order_of_memory(lengths):
    """A column of a table, and one number for all."""
    x = problem(2, 1, 40, 40, 16, torch.float32, device=DEVICE)
    do, dto = torch.randn(2, 2, 1, 40, 16, device=DEVICE)
    got = run(dual_attention, x, do, dto, backend="triton", kv_lengths=lengths.to(DEVICE))
    assert max(relative_errors(got, yardstick(x, do, dto, lengths=lengths.to(DEVICE)))) < 3e-6


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_maps_over_gradients_and_over_tangents_with_one_set_of_lengths(B, dtype):
    """Where only some tensors are mapped the others are views without a stride in what is mapped."""
    x = problem(B, 2, 8, 8, 16, dtype, device=DEVICE)
    gradients, tangents = torch.randn(2, 3, B, 2, 8, 16, device=DEVICE).to(dtype)
    lengths = torch.tensor([5, 8][:B], device=DEVICE)

    def both(backend):
        options = {"kv_lengths": lengths, "backend": backend}
        back = torch.func.vjp(lambda q: dual_attention(q, *x[1:], **options)[1], x[0])[1]
        forth = torch.func.vmap(lambda tq: dual_attention(*x[:3], tq, *x[4:], **options)[1])
        return torch.func.vmap(back)(gradients)[0], forth(tangents)

    assert max(relative_errors(both("triton"), both("reference"))) < BOUND[dtype]


def test_tokens_far_apart_in_memory():
    """As in the packed projection of a very long sequence: their distance has more than 31 bits."""
    x = [t.half() for t in problem(1, 1, 3, 3, 16, device=DEVICE)]
    step = 2**30 + 16
    far = torch.empty(2 * step + 16, dtype=torch.float16, device=DEVICE).as_strided((1, 1, 3, 16), (1, 1, step, 1))
    far.copy_(x[1])
    got = run(dual_attention, (x[0], far, *x[2:]), x[0], x[3], backend="triton")
    assert max(relative_errors(got, run(dual_attention, x, x[0], x[3], backend="triton"))) < 1e-6


def test_what_no_copy_brings_within_reach_is_refused():
    from tvmatch.kernels.dual_attention.triton import unsupported

    near, far = torch.empty(1, 16, 8, 64, device=DEVICE), torch.empty(1, 16, 2**21, 64, device="meta")
    assert unsupported(near, near) is None
    assert unsupported(near, far) == "a sample has 2147483648 numbers, and the fused kernel reaches 2147483647"


def test_packed_projections_need_no_copy():
    packed = torch.randn(2, 2, 33, 3, 2, 16, device=DEVICE)
    x = [t for pair in packed for t in pair.permute(2, 0, 3, 1, 4).unbind(0)]
    x = [t.requires_grad_() for t in x]
    assert not x[0].is_contiguous()
    o, to = dual_attention(*x, backend="triton")
    do, dto = torch.randn_like(o), torch.randn_like(o)
    grads = torch.autograd.grad([o, to], x, [do, dto])
    errors = relative_errors([o, to, *grads], yardstick(tuple(x), do, dto))
    assert max(errors) < 3e-6
    assert o.transpose(1, 2).is_contiguous()


def test_twice_the_same_bits():
    x = problem(2, 2, 70, 65, 16, torch.float32, device=DEVICE)
    do, dto = torch.randn(2, 2, 2, 70, 16, device=DEVICE)
    first, second = (run(dual_attention, x, do, dto, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=5, deadline=None)
@given(
    B=st.integers(1, 2), H=st.integers(1, 2), n_q=st.integers(1, 40), n_kv=st.integers(2, 40),
    D=st.sampled_from([16, 24]), causal=st.booleans(), tangents=st.sampled_from(TANGENTS), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(B, H, n_q, n_kv, D, causal, tangents, seed):
    x = problem(B, H, n_q, n_kv, D, torch.float32, tangents=tangents, device=DEVICE, seed=seed)
    do, dto = torch.randn(2, B, H, n_q, D, device=DEVICE)
    got = run(dual_attention, x, do, dto, causal=causal, backend="triton")
    want = yardstick(x, do, dto, causal=causal)
    size = max(w.abs().max().item() for w in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=3e-6 * max(1.0, size))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_bad_number_stays_in_its_sample_and_head(bad, which, backend):
    x = problem(2, 2, 20, 33, 16, torch.float32, device=DEVICE)
    do, dto = torch.randn(2, 2, 2, 20, 16, device=DEVICE)
    clean = run(dual_attention, x, do, dto, backend=backend)
    x[which][1, 0, 3, 5] = bad
    dirty = run(dual_attention, x, do, dto, backend=backend)
    for c, d in zip(clean, dirty, strict=True):
        assert torch.equal(c[0], d[0])
        assert torch.equal(c[1, 1], d[1, 1])
    assert any(not torch.isfinite(d[1, 0]).all() for d in dirty)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_nan_in_padded_keys_is_not_seen(backend):
    x = problem(2, 1, 20, 33, 16, torch.float32, device=DEVICE)
    do, dto = torch.randn(2, 2, 1, 20, 16, device=DEVICE)
    lengths = torch.tensor([10, 33], device=DEVICE)
    clean = run(dual_attention, x, do, dto, backend=backend, kv_lengths=lengths)
    for t in (x[1], x[2], x[4], x[5]):
        t[0, :, 10:] = float("nan")
    dirty = run(dual_attention, x, do, dto, backend=backend, kv_lengths=lengths)
    assert all(torch.equal(c, d) for c, d in zip(clean, dirty, strict=True))
    for grad in (dirty[3], dirty[4], dirty[6], dirty[7]):
        assert (grad[0, :, 10:] == 0).all()
