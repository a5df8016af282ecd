import pytest
import torch

from tvmatch.guidance import (
    FixedGuidance,
    UniformGuidance,
    UniformInverseGuidance,
    check_scale,
    drop_labels,
    guided_target,
    parse_guidance,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_schemes_draw_in_their_range() -> None:
    assert bool((FixedGuidance(2.0)(5, generator()) == 2).all())
    w = UniformGuidance(1.0, 3.0)(10_000, generator())
    assert 1 <= w.min() < 1.01
    assert 2.99 < w.max() <= 3
    inverse = 1 / UniformInverseGuidance()(10_000, generator())
    assert abs(inverse.mean() - 0.5) < 0.02
    assert inverse.min() > 0
    assert inverse.max() <= 1


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("2", FixedGuidance(2.0)), ("1:3", UniformGuidance(1.0, 3.0)), ("inverse", UniformInverseGuidance())],
)
def test_text_form(text: str, scheme: object) -> None:
    assert parse_guidance(text) == scheme


@pytest.mark.parametrize("text", ["", "two", "0", "-1", "3:1", "1:", "nan", "inf", "0:2"])
def test_bad_text_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="guidance"):
        parse_guidance(text)


def test_dropped_labels_lose_class_and_guidance_together() -> None:
    label, w = drop_labels(torch.arange(10_000) % 10, torch.full((10_000,), 2.0), 0.1, generator())
    assert 0.08 < (label < 0).float().mean() < 0.12
    assert bool((w[label < 0] == 1).all())
    assert bool((w[label >= 0] == 2).all())


def test_samples_that_come_without_a_class_have_no_guidance() -> None:
    _, w = drop_labels(torch.tensor([-1, 3]), torch.tensor([2.0, 2.0]), 0.0, generator())
    assert w.tolist() == [1.0, 2.0]


def test_guided_target() -> None:
    v, u = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(guided_target(v, u, torch.tensor([1.0, 3.0])), torch.stack([v[0], 3 * v[1] - 2 * u[1]]))


@pytest.mark.parametrize("probability", [10, -1, float("nan")])
def test_a_dropout_that_is_no_share_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=r"label_dropout is the share .* in \[0, 1\], got"):
        drop_labels(torch.zeros(4, dtype=torch.int64), torch.ones(4), probability, generator())


@pytest.mark.parametrize(
    ("trained_with", "seen", "unseen"),
    [("2", (2.0,), (1.0, 1.99)), ("1:3", (1.0, 3.0), (0.99, 3.01)), ("inverse", (1.0, 100.0), (0.99, 101.0))],
)
def test_a_scale_that_no_draw_has_is_warned_of(trained_with: str, seen: tuple, unseen: tuple) -> None:
    assert [check_scale(w, trained_with, 3) for w in seen] == [None] * len(seen)
    for w in unseen:
        assert f"w={w:g} was not seen in training (--guidance {trained_with})" in check_scale(w, trained_with, 3)
