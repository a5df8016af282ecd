"""The fused kernels on a GPU: every table entry, every path, hard inputs, memory, compilers. ``pytest -m gpu``."""

import pytest
import torch

from tvmatch.kernels.dual_attention import dual_attention, scaled_dot_product_attention

from .attention_cases import dominant_key, problem, relative_errors, run, yardstick

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
BF16, F16 = torch.bfloat16, torch.float16


def check(B, H, n_q, n_kv, D, dtype=BF16, bound=None, **options):
    x = problem(B, H, n_q, n_kv, D, dtype, device="cuda")
    do, dto = torch.randn(2, B, H, n_q, D, device="cuda").to(dtype)
    got = run(dual_attention, x, do, dto, backend="triton", **options)
    want = yardstick(x, do, dto, causal=options.get("causal", False), lengths=options.get("kv_lengths"))
    errors = relative_errors(got, want)
    assert all(e < (bound or (6e-3 if dtype == BF16 else 1e-3)) for e in errors), errors
    return x, do, dto, got


@pytest.mark.parametrize("D", [16, 24, 48, 56, 64, 72, 80, 88, 96, 104, 128, 136, 200, 256])
def test_head_sizes(D):
    check(2, 3, 257, 200, D)


@pytest.mark.parametrize("n", [1, 7, 63, 65, 200, 257, 1024])
@pytest.mark.parametrize("D", [64, 72, 96, 128])
@pytest.mark.parametrize("hopper", ["1", "0"])
def test_odd_sizes_on_both_paths(monkeypatch, n, D, hopper):
    monkeypatch.setenv("TVMATCH_HOPPER", hopper)
    check(2, 2, n, max(n, 2) + 3, D)
    check(2, 2, n, 64, D, F16)


@pytest.mark.parametrize("D", [64, 72, 128])
def test_masks_and_dtypes(D):
    check(2, 2, 130, 200, D, causal=True)
    check(2, 2, 200, 130, D, F16, causal=True)
    check(2, 2, 130, 200, D, kv_lengths=torch.tensor([1, 77], device="cuda"))


@pytest.mark.parametrize("D", [64, 72])
def test_float32_is_full_precision(D):
    check(1, 2, 130, 100, D, torch.float32, bound=3e-6)


@pytest.mark.parametrize("table", ["_FORWARD", "_KEYS", "_QUERIES"])
def test_every_entry_of_the_tables(monkeypatch, table):
    from tvmatch.kernels.dual_attention import triton as fused

    monkeypatch.setenv("TVMATCH_HOPPER", "0")
    for width, configs in list(getattr(fused, table).items()):
        for config in configs:
            monkeypatch.setitem(getattr(fused, table), width, [config])
            for D in {32: (32,), 64: (64,), 96: (72, 80), 128: (128,), 256: (256,)}[width]:
                check(1, 2, 200, 160, D)


@pytest.mark.parametrize("D", [64, 72, 96, 128])
def test_twice_the_same_bits(D):
    x, do, dto, first = check(4, 40, 700, 1000, D)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(dual_attention, x, do, dto), strict=True))


@pytest.mark.parametrize("D", [64, 72, 128])
def test_packed_projections_need_no_copy(D):
    packed = torch.randn(2, 2, 200, 3, 4, D, device="cuda", dtype=BF16)
    x = [t.requires_grad_() for pair in packed for t in pair.permute(2, 0, 3, 1, 4).unbind(0)]
    o, to = dual_attention(*x)
    do, dto = torch.randn_like(o), torch.randn_like(o)
    grads = torch.autograd.grad([o, to], x, [do, dto])
    assert max(relative_errors([o, to, *grads], yardstick(tuple(x), do, dto))) < 6e-3


def hard(kind: str, D: int) -> tuple:
    """Inputs on which rounding and cancellation bite."""
    if kind == "dominant":
        return dominant_key(D, device="cuda")
    x = [t.clone() for t in problem(1, 2, 256, 4096 if kind == "long" else 256, D, device="cuda")]
    if kind == "large":
        x[0] *= 60 / (x[0] @ x[1].mT * D**-0.5).abs().max()  # logits up to +-60
    return tuple(t.to(BF16) for t in x)


@pytest.mark.parametrize("kind", ["random", "large", "dominant", "long"])
@pytest.mark.parametrize("D", [64, 72, 128])
@pytest.mark.parametrize("hopper", ["1", "0"])
def test_at_least_as_exact_as_plain_attention(monkeypatch, kind, D, hopper):
    monkeypatch.setenv("TVMATCH_HOPPER", hopper)
    x = hard(kind, D)
    do, dto = torch.randn(2, 1, 2, 256, D, device="cuda").to(BF16)
    exact = yardstick(x, do, dto)
    ours = relative_errors(run(dual_attention, x, do, dto), exact)
    plain = relative_errors(yardstick(x, do, dto, dtype=BF16), exact)
    assert all(a <= 1.02 * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


@pytest.mark.parametrize(("N", "D"), [(1024, 64), (4096, 128)])
def test_peak_memory(N, D):
    x = [t.requires_grad_() for t in problem(2, 24, N, N, D, BF16, device="cuda")]
    do, dto = torch.randn_like(x[0]), torch.randn_like(x[0])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    o, to = dual_attention(*x)
    grads = torch.autograd.grad([o, to], x, [do, dto])
    peak = torch.cuda.max_memory_allocated() - before
    needed = sum(t.numel() * t.element_size() for t in (o, to, *grads)) + 2 * 4 * 48 * N
    inputs = 8 * x[0].numel() * 2
    assert peak + inputs <= 1.1 * (needed + inputs), (peak, needed, inputs)


def test_compile_with_inductor():
    def f(*x):
        o, to = dual_attention(*(t * 1.0 for t in x))
        return o.sin(), to.cos()

    x = [t.requires_grad_() for t in problem(2, 2, 128, 128, 64, BF16, device="cuda")]
    results = []
    for g in (f, torch.compile(f, fullgraph=True)):
        out = g(*x)
        results.append([*out, *torch.autograd.grad([t.sum() for t in out], x)])
    assert max(relative_errors(results[1], results[0])) < 1e-2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("D", [64, 72, 128])
@pytest.mark.parametrize("hopper", ["1", "0"])
def test_a_bad_number_stays_in_its_sample_and_head(monkeypatch, bad, D, hopper):
    """With lengths that end within a tile, so that a neighbour's rows would be read first."""
    monkeypatch.setenv("TVMATCH_HOPPER", hopper)
    for which in range(6):
        x, do, dto, clean = check(2, 2, 200, 130, D)
        with torch.no_grad():
            x[which][0, 1, 3, 5] = bad
        dirty = run(dual_attention, x, do, dto, backend="triton")
        for c, d in zip(clean, dirty, strict=True):
            assert torch.equal(c[1], d[1])
            assert torch.equal(c[0, 0], d[0, 0])
        assert any(not torch.isfinite(d[0, 1]).all() for d in dirty)


def test_a_bad_length_poisons_its_own_sample_only():
    x = problem(3, 2, 100, 130, 64, BF16, device="cuda")
    for bad in (0, -1, 131):
        o, to = dual_attention(*x, kv_lengths=torch.tensor([5, bad, 130], device="cuda"))
        assert o[1].isnan().all()
        assert to[1].isnan().all()
        assert o[[0, 2]].isfinite().all()


def test_backend_auto_falls_back_where_the_kernel_does_not_apply():
    x = problem(1, 1, 20, 20, 12, torch.float32, device="cuda")
    torch.testing.assert_close(dual_attention(*x), dual_attention(*x, backend="reference"))
    with pytest.raises(ValueError, match="head size is 12"):
        dual_attention(*x, backend="triton")
    assert scaled_dot_product_attention(*x[:3]).shape == x[0].shape


def test_the_first_call_tunes_and_is_not_slow(monkeypatch):
    import time

    from tvmatch.kernels.dual_attention import triton as fused

    monkeypatch.setenv("TVMATCH_AUTOTUNE", "1")
    monkeypatch.setattr(fused, "_chosen", {})
    start = time.time()
    check(4, 4, 333, 333, 64, causal=True)
    assert time.time() - start < 20
    assert sorted(key[0] for key in fused._chosen) == ["forward", "keys", "queries"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_plain_tensors_with_lengths():
    """Without derivatives another way is taken: it ignores the padding, and a length of 0 becomes NaN, as a kernel
    that nobody waits for must."""
    q, k, v = torch.randn(3, 2, 4, 40, 64, device="cuda").to(BF16)
    lengths = torch.tensor([17, 40], device="cuda")
    dirty = [x.clone() for x in (k, v)]
    for x in dirty:
        x[0, :, 17:] = float("nan")
    got = scaled_dot_product_attention(q, *dirty, kv_lengths=lengths)
    for sample, length in enumerate((17, 40)):
        alone = (x[sample : sample + 1, :, :length].double() for x in (k, v))
        want = torch.nn.functional.scaled_dot_product_attention(q[sample : sample + 1].double(), *alone)
        torch.testing.assert_close(got[sample : sample + 1].double(), want, rtol=0, atol=2e-2)
    none = scaled_dot_product_attention(q, k, v, kv_lengths=torch.tensor([0, 40], device="cuda"))
    assert bool(none[0].isnan().all())
    assert bool(none[1].isfinite().all())
