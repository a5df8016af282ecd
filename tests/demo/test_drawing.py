from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tvmatch.data.source import to_pictures
from tvmatch.demo.drawing import EULER_STEPS, Artist
from tvmatch.demo.request import DrawRequest
from tvmatch.pictures import enlarge, tile
from tvmatch.sampling import draw, euler, seeded_noise
from tvmatch.training.trained import TrainedRun, load_run

REQUEST = DrawRequest((2, 0, 1, 1, 0), calls=3, w=1.5, seed=11)


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedRun:
    return load_run(run)


def pictures(x: torch.Tensor) -> np.ndarray:
    return to_pictures(x).numpy()


def sheet(x: torch.Tensor) -> np.ndarray:
    """Five pictures of 8 pixels in 3 columns, each about 512 / 3 wide."""
    return enlarge(tile(pictures(x), 3), 170, 8)


def test_pictures_are_those_of_the_sampler(trained: TrainedRun) -> None:
    drawn = Artist(trained, pictures).draw(REQUEST)
    label = torch.tensor(REQUEST.labels)
    np.testing.assert_array_equal(drawn.sheet, sheet(draw(trained.flow, label, 1.5, 3, seed=11)))
    assert drawn.milliseconds > 0
    one = Artist(trained, pictures).draw(replace(REQUEST, labels=(2,)))  # the first picture, whatever the batch
    np.testing.assert_array_equal(
        one.sheet, enlarge(tile(pictures(draw(trained.flow, label[:1], 1.5, 3, seed=11)), 1), 512, 8)
    )


def test_flow_matching_is_fifty_steps_of_the_same_network(trained: TrainedRun) -> None:
    noise, label = seeded_noise(11, range(5), (3, 8, 8)), torch.tensor(REQUEST.labels)
    expected = sheet(euler(trained.flow, noise, label, 1.5, EULER_STEPS))
    np.testing.assert_array_equal(Artist(trained, pictures).flow_matching(REQUEST).sheet, expected)
    assert EULER_STEPS == 50


def test_a_run_beside_may_have_its_classes_in_another_order(trained: TrainedRun) -> None:
    other = replace(trained, class_names=("ant [x]", "bee", "wasp"))
    drawn = Artist(trained, pictures, other, pictures).flow_matching(REQUEST)
    same = torch.tensor([0, 1, 2, 2, 1])  # what was asked for, in the order of `other`
    np.testing.assert_array_equal(
        drawn.sheet, sheet(draw(trained.flow, same, 1.5, EULER_STEPS, seed=11, method="euler"))
    )


def test_a_run_beside_must_know_the_same_classes(trained: TrainedRun) -> None:
    with pytest.raises(ValueError, match="has a class 'owl' that this one has not"):
        Artist(trained, pictures, replace(trained, class_names=("bee", "wasp", "owl")), pictures)
