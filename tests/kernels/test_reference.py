"""The CPU path of dual attention against an independent float64 yardstick, and gradcheck."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmatch.kernels.dual_attention import dual_attention, reference

from .attention_cases import dominant_key, problem, relative_errors, run, yardstick

TANGENTS = [t for t in itertools.product((True, False), repeat=3) if any(t)]


@pytest.mark.parametrize("tangents", TANGENTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 6])])
def test_all_results_match_autograd(tangents, causal, lengths):
    x = problem(2, 2, 7, 6, 8, tangents=tangents)
    do, dto = torch.randn(2, 2, 2, 7, 8, dtype=torch.float64)
    got = run(dual_attention, x, do, dto, causal=causal, kv_lengths=lengths)
    assert max(relative_errors(got, yardstick(x, do, dto, causal=causal, lengths=lengths))) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_chunks_change_nothing(monkeypatch, causal):
    x = problem(2, 3, 9, 11, 8)
    do, dto = torch.randn(2, 2, 3, 9, 8, dtype=torch.float64)
    lengths = torch.tensor([4, 11])
    whole = run(dual_attention, x, do, dto, causal=causal, kv_lengths=lengths)
    for elements in (1, 25, 200, 400):
        monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", elements)
        parts = run(dual_attention, x, do, dto, causal=causal, kv_lengths=lengths)
        assert max(relative_errors(parts, whole)) < 1e-13


def test_memory_grows_linearly(monkeypatch):
    largest = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: largest.append(a.numel()) or bmm(a, b))
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 1 << 12)
    for n in (256, 1024):
        largest.clear()
        dual_attention(*problem(1, 1, n, n, 8, torch.float32))
        assert max(largest) <= 1 << 12


def test_gradcheck():
    x = [t.requires_grad_() for t in problem(1, 2, 3, 4, 4)]
    assert torch.autograd.gradcheck(lambda *a: dual_attention(*a, kv_lengths=torch.tensor([3])), x)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), H=st.integers(1, 3), n_q=st.integers(1, 20), n_kv=st.integers(1, 20), D=st.integers(1, 12),
    causal=st.booleans(), tangents=st.sampled_from(TANGENTS), scale=st.floats(0.01, 3.0), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(B, H, n_q, n_kv, D, causal, tangents, scale, seed):
    x = problem(B, H, n_q, n_kv, D, tangents=tangents, seed=seed)
    do, dto = torch.ones(2, B, H, n_q, D, dtype=torch.float64)
    do = do + torch.arange(D)
    got = run(dual_attention, x, do, dto, causal=causal, scale=scale)
    want = yardstick(x, do, dto, causal=causal, scale=scale)
    # Some gradients vanish (one key, for instance): compare on the scale of the largest result.
    size = max(w.abs().max().item() for w in want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-11 * max(1.0, size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_at_least_as_exact_as_plain_attention(dtype):
    x = problem(2, 2, 33, 40, 16, dtype)
    do, dto = torch.randn(2, 2, 2, 33, 16).to(dtype)
    exact = yardstick(x, do, dto)
    ours = relative_errors(run(dual_attention, x, do, dto), exact)
    plain = relative_errors(yardstick(x, do, dto, dtype=dtype), exact)
    slack = 2.0 if dtype == torch.float32 else 1.05  # at 1e-7 the order of the sums decides
    assert all(a <= slack * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


def test_results_have_the_memory_order_of_q():
    packed = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    o, to = dual_attention(q, k, v, *(torch.randn_like(t) for t in (q, k, v)))
    assert o.transpose(1, 2).is_contiguous()
    assert to.stride() == o.stride()


@pytest.mark.parametrize("D", [64, 72])
def test_what_rounding_drops_is_kept_for_the_backward(D):
    """With one dominant key the gradients of q and k are small differences of o and to with themselves."""
    x = dominant_key(D)
    do, dto = torch.randn(2, 1, 2, 256, D).bfloat16()
    exact = yardstick(x, do, dto)
    plain = relative_errors(yardstick(x, do, dto, dtype=torch.bfloat16), exact)
    ours = relative_errors(run(dual_attention, x, do, dto), exact)
    q_and_k = [2, 3, 5, 6]
    assert all(ours[i] < 0.2 * plain[i] for i in q_and_k), (ours, plain)
    scale = D**-0.5
    saved = reference.dual_attention_forward(*x, None, scale, False, False)
    without = relative_errors(
        [*saved[:2], *reference.dual_attention_backward(*x, None, *saved, do, dto, scale, False)], exact
    )
    assert all(without[i] > 5 * ours[i] for i in q_and_k), (without, ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_rest_is_kept_only_for_gradients_of_16_bit_numbers(dtype):
    x = [t.requires_grad_() for t in problem(1, 1, 5, 5, 16, dtype)]
    outputs = torch.ops.tvmatch.dual_attention(*x, None, 0.25, False, "auto")
    width = 0 if dtype == torch.float32 else 16
    assert outputs[4].shape == (1, 1, 5, width, 2)
    with torch.no_grad():
        assert torch.ops.tvmatch.dual_attention(*x, None, 0.25, False, "auto")[4].numel() == 0


def test_a_rest_beyond_the_range_of_float8_stays_finite():
    x = [t * 3e6 if i == 2 else t for i, t in enumerate(problem(1, 1, 5, 5, 16, torch.bfloat16))]
    do, dto = torch.randn(2, 1, 1, 5, 16).bfloat16()
    assert all(t.isfinite().all() for t in run(dual_attention, tuple(x), do, dto))


@pytest.mark.parametrize("D", [64, 72, 128])
def test_probabilities_rounded_once_are_as_exact_as_plain_attention(D: int) -> None:
    """One dominant key: what the fused kernels do for dtv, P^T dto with P rounded to bfloat16, over 24 draws
    of two heads: by the draw, one alone may come out above plain attention's error."""
    ours, plain = [], []
    for seed in range(24):
        x = dominant_key(D, seed=seed)
        do, dto = torch.randn(2, 1, 2, 256, D, generator=torch.Generator().manual_seed(seed)).bfloat16()
        exact = yardstick(x, do, dto)[-1:]
        P = (x[0].float() @ x[1].float().mT * D**-0.5).softmax(-1).bfloat16()
        dtv = (P.float().mT @ dto.float()).bfloat16()
        ours += relative_errors([dtv], exact)
        plain += relative_errors(yardstick(x, do, dto, dtype=torch.bfloat16)[-1:], exact)
    assert torch.tensor(ours).norm() < torch.tensor(plain).norm()
