import pytest

from tests.cli.support import assert_one_line, tvmatch
from tvmatch.networks.presets import NETWORKS
from tvmatch.training.recipes import RECIPES


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
    table = answer.out.split("Recipes")[0]
    assert "DiT-S/2" in table
    assert "DiT-S/4" not in table


def test_lists_every_recipe(capsys: pytest.CaptureFixture) -> None:
    recipes = tvmatch(capsys, "presets").out.split("Recipes")[1]
    assert all(name in recipes for name in RECIPES)
    assert "DiT-XL/2 on 4x64x64; ImageNet 512, 4 calls: FID 2.94 (paper)" in recipes


def test_bad_values(capsys: pytest.CaptureFixture) -> None:
    assert_one_line(tvmatch(capsys, "presets", "--image-size", "0"), "image_size must be at least 1, got 0")
    assert_one_line(tvmatch(capsys, "presets", "--classes", "-1"), "num_classes must be 0 (unconditional) or more")
