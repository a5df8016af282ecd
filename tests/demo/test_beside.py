"""What the page puts beside a run, and what it says of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvmatch.data.source import to_pictures
from tvmatch.demo.drawing import Artist
from tvmatch.demo.page import build_page, headings_of, introduction
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.training.trained import TrainedRun, load_run


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedRun:
    return load_run(run)


def pictures(x: torch.Tensor) -> np.ndarray:
    return to_pictures(x).numpy()


@pytest.mark.parametrize(
    ("objective", "beside", "headings"),
    [
        (
            "terminal-velocity",
            None,
            ("Jumps, as many calls as asked for", "Flow matching: 50 Euler steps of the same network"),
        ),
        (
            "flow-matching",
            "mean-flow",
            ("Euler steps, as many as asked for", "The run beside, of mean-flow: 50 Euler steps"),
        ),
        (
            "consistency-training",
            "flow-matching",
            (
                "Jumps to the end, as many calls as asked for, with new noise between them",
                "The run beside, of flow-matching: 50 Euler steps",
            ),
        ),
    ],
)
def test_headings_say_what_is_drawn(
    trained: TrainedRun, objective: str, beside: str | None, headings: tuple[str, str]
) -> None:
    other = None if beside is None else replace(trained, objective=beside)
    artist = Artist(replace(trained, objective=objective), pictures, other, pictures)
    assert headings_of(artist) == headings
    assert introduction(artist) == "Both sides start from the same noise."


def test_a_velocity_that_was_never_taught_is_not_drawn(trained: TrainedRun) -> None:
    pytest.importorskip("gradio")
    artist = Artist(replace(trained, objective="consistency-training"), pictures)
    assert "consistency-training teaches no velocity" in introduction(artist)
    page = build_page(artist, "x")
    seen = {block.label: block.visible for block in page.blocks.values() if getattr(block, "label", None)}
    assert (seen["50 Euler steps beside it"], seen["seed"]) == (False, True)
    answers = list(ask(page, "bee", 2, 1.5, 0, 1, True))
    assert len(answers) == 1
    assert answers[0][3:] == (None, None)
    both = list(ask(build_page(Artist(trained, pictures), "x"), "bee", 2, 1.5, 0, 1, True))
    assert len(both) == 2
    assert both[1][3] is not None


def ask(page: Any, *values: Any) -> Any:
    (function,) = [one.fn for one in page.fns.values() if one.api_name == "draw"]
    return function(*values)


def test_a_run_beside_needs_a_velocity_and_the_same_noise(trained: TrainedRun) -> None:
    with pytest.raises(ValueError, match=r"beside is of consistency-training, .* such as flow-matching\."):
        Artist(trained, pictures, replace(trained, objective="consistency-training"), pictures)
    wider = FlowMap(DiT(DiTConfig(16, 3, 3, patch_size=2, hidden_size=16, depth=1, num_heads=2)))
    with pytest.raises(ValueError, match=r"from noise of \[3, 16, 16\] and this one of \[3, 8, 8\]; they must be"):
        Artist(trained, pictures, replace(trained, flow=wider), pictures)
