"""What comes over the network is checked before anything is drawn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tvmatch.demo.request import EACH, LARGEST_SEED, NO_CLASS, DrawRequest, class_choices, read_request
from tvmatch.training.trained import TrainedRun, load_run

GOOD = {"name": "wasp", "calls": 2, "w": 1.5, "seed": 7, "pictures": 3}


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedRun:
    return load_run(run)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ({}, (1, 1, 1)),
        ({"name": "0"}, (0, 0, 0)),
        ({"name": 2}, (2, 2, 2)),
        ({"name": EACH, "pictures": 5}, (0, 1, 2, 0, 1)),
    ],
)
def test_requests(trained: TrainedRun, values: dict[str, Any], labels: tuple[int, ...]) -> None:
    assert read_request(trained, **{**GOOD, **values}) == DrawRequest(labels, 2, 1.5, 7)


def test_whole_numbers_may_come_as_floats(trained: TrainedRun) -> None:
    assert read_request(trained, "bee", 4.0, 2, 9.0, 1.0) == DrawRequest((0,), 4, 2.0, 9)
    assert read_request(trained, "bee", 1, 2, LARGEST_SEED, 1).seed == LARGEST_SEED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "999"}, "no class is called '999'; there are bee, wasp, ant [x]."),
        ({"name": "wsp"}, "did you mean 'wasp'?"),
        ({"name": -1}, "no class is called '-1'"),
        ({"name": None}, "the class must be a name or a number, got None"),
        ({"name": {"a": 1}}, "the class must be a name or a number, got {'a': 1}"),
        ({"name": True}, "the class must be a name or a number, got True"),
        ({"name": "x" * 10**6}, "the class is no name of this run"),
        ({"calls": 10**6}, "the number of calls must be 1 to 128, got 1000000."),
        ({"calls": 0}, "the number of calls must be 1 to 128, got 0."),
        ({"calls": 1.5}, "the number of calls must be a whole number from 1 to 128, got 1.5."),
        ({"calls": True}, "must be a whole number from 1 to 128, got True."),
        ({"w": 0}, "the guidance scale w must be positive and finite (1 is no guidance), got 0."),
        ({"w": -1}, "got -1."),
        ({"w": float("nan")}, "got nan."),
        ({"w": float("inf")}, "got inf."),
        ({"w": 10**400}, "w must be a finite number, got 1000"),
        ({"w": "2"}, "the guidance scale w must be a number, got '2'."),
        ({"w": None}, "the guidance scale w must be a number, got None."),
        ({"seed": "seven"}, "the seed must be a whole number from 0 to 9007199254740991, got 'seven'."),
        ({"seed": -1}, "the seed must be 0 to 9007199254740991, got -1."),
        ({"seed": 2**53}, f"got {2**53}."),
        ({"seed": float("nan")}, "got nan."),
        ({"seed": float("inf")}, "got inf."),
        ({"seed": [1]}, "got [1]."),
        ({"pictures": 10**6}, "the number of pictures must be 1 to 64, got 1000000."),
        ({"pictures": 0}, "the number of pictures must be 1 to 64, got 0."),
        ({"pictures": ["x" * 10**6]}, "…."),
    ],
)
def test_bad_values(trained: TrainedRun, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"[.?]$") as caught:
        read_request(trained, **{**GOOD, **values})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_what_is_offered(trained: TrainedRun) -> None:
    assert class_choices(trained) == [EACH, "bee", "wasp", "ant [x]"]
    for name in class_choices(trained):
        read_request(trained, **{**GOOD, "name": name})


def test_a_run_without_classes(trained: TrainedRun) -> None:
    network = SimpleNamespace(num_classes=0)
    run = replace(trained, flow=SimpleNamespace(network=network), class_names=())  # type: ignore[arg-type]
    assert class_choices(run) == [NO_CLASS]
    for name in (NO_CLASS, None):
        assert read_request(run, name, 1, 1, 0, 2) == DrawRequest((-1, -1), 1, 1.0, 0)
    for values, message in (
        (("bee", 1, 1, 0, 2), "no class is called 'bee': this run was trained without classes."),
        ((NO_CLASS, 1, 2, 0, 2), "this run was trained without classes, so w must be 1, got 2."),
    ):
        with pytest.raises(ValueError, match=message):
            read_request(run, *values)
