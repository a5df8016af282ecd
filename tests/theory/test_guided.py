"""The guided flow of a mixture: its two ends in closed form, and the velocity that guided training tends to."""

import pytest
import torch

from tvmatch.guidance import guided_target
from tvmatch.theory import GuidedMixture, eight_gaussians


def two_colours() -> GuidedMixture:
    return GuidedMixture(eight_gaussians(), torch.arange(8) % 2)


def test_without_guidance_it_is_the_flow_of_the_class() -> None:
    data, x = two_colours(), torch.randn(6, 2).double()
    label = torch.tensor([0, 1, 0, 1, -1, -1])
    end = data.flow(x, label, w=1.0)
    torch.testing.assert_close(end[:4:2], data.parts[0].flow(x[:4:2], 1.0, 0.0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end[4:], data.whole.flow(x[4:], 1.0, 0.0), rtol=1e-4, atol=1e-5)
    nearest = torch.cdist(end[:4], data.whole.means).argmin(1)
    assert torch.equal(data.classes[nearest], label[:4])


def test_velocity_is_the_guided_target_of_the_two_flows() -> None:
    data, x, t = two_colours(), torch.randn(5, 2).double(), torch.rand(5).double()
    w = torch.full((5,), 2.5).double()
    expected = guided_target(data.parts[1].velocity(x, t), data.whole.velocity(x, t), w)
    torch.testing.assert_close(data.velocity(x, t, 1, 2.5), expected)
    assert float((data.velocity(x, t, 1, 2.5) - data.velocity(x, t, 1, 1.0)).abs().max()) > 1e-3


def test_points_have_the_class_of_their_component() -> None:
    data = two_colours()
    x, label = data.sample(500, torch.Generator().manual_seed(0))
    assert torch.equal(data.classes[torch.cdist(x, data.whole.means).argmin(1)], label)


def test_bad_classes_are_named() -> None:
    with pytest.raises(ValueError, match="each of 8 components needs a class"):
        GuidedMixture(eight_gaussians(), torch.zeros(3).long())
    with pytest.raises(ValueError, match="each used"):
        GuidedMixture(eight_gaussians(), 2 * (torch.arange(8) % 2))
    x = torch.zeros(2, 2).double()
    for label, w, message in (
        (torch.tensor([0, 2]), 1.0, r"labels \[B\] are -1 .. 1"),
        (torch.zeros(3).long(), 1.0, "one a point"),
        (torch.zeros(2).long(), float("nan"), "w must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            two_colours().flow(x, label, w)
