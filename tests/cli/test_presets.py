import pytest

from tests.cli.support import assert_one_line, tvmatch
from tvmatch.networks.presets import NETWORKS


def test_lists_every_network_that_fits(capsys: pytest.CaptureFixture) -> None:
    answer = tvmatch(capsys, "presets")
    assert answer.code == 0
    assert all(name in answer.out for name in NETWORKS)
    line = next(line for line in answer.out.splitlines() if "DiT-XL/2 " in line)
    assert "1152" in line
    assert "256" in line  # tokens of 32 x 32 at patch 2
    assert "678.1 M" in line
    assert "…" not in answer.out  # nothing is cut off in a pipe


def test_patches_that_do_not_tile_the_picture_are_left_out(capsys: pytest.CaptureFixture) -> None:
    answer = tvmatch(capsys, "presets", "--image-size", "6", "--channels", "1", "--classes", "0")
    assert "DiT-S/2" in answer.out
    assert "DiT-S/4" not in answer.out


def test_bad_values(capsys: pytest.CaptureFixture) -> None:
    assert_one_line(tvmatch(capsys, "presets", "--image-size", "0"), "image_size must be at least 1, got 0")
    assert_one_line(tvmatch(capsys, "presets", "--classes", "-1"), "num_classes must be 0 (unconditional) or more")
