"""The clock of a run and its learning rate; whole runs that end by the minute; starts from another run's weights."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.support import tiny_config, tiny_network
from tvmatch.training import schedule as module
from tvmatch.training.checkpoint import list_checkpoints, read_header
from tvmatch.training.loop import train
from tvmatch.training.run_folder import RunFolderError
from tvmatch.training.schedule import Schedule


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


class Clock:
    """Seconds that the test sets, or that pass with each look at the clock."""

    now, tick = 100.0, 0.0

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_by_steps(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=100, warmup_steps=10, learning_rate=1.0, decay_share=0.2)
    schedule = Schedule(config)
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:81] == pytest.approx([1.0] * 71)
    assert rates[81:] == pytest.approx([(100 - step) / 20 for step in range(81, 100)])
    assert not schedule.over(99)
    assert schedule.over(100)
    assert schedule.expected_steps(50) == 100


def test_by_minutes(tmp_path: Path, clock: Clock) -> None:
    config = tiny_config(tmp_path, steps=10**6, warmup_steps=0, learning_rate=2.0, decay_share=0.5, minutes=2)
    schedule = Schedule(config, spent=20.0)
    clock.now += 40
    assert schedule.progress(7) == 0.5
    assert schedule.learning_rate(7) == 2.0
    assert schedule.expected_steps(7) == 14
    clock.now += 30
    assert schedule.learning_rate(9) == pytest.approx(1.0)
    assert not schedule.over(9)
    clock.now += 30
    assert schedule.over(9)
    assert schedule.expected_steps(9) == 9
    assert Schedule(dataclasses.replace(config, steps=9)).over(9)  # whichever comes first


def test_a_constant_rate_is_the_default(tmp_path: Path) -> None:
    schedule = Schedule(tiny_config(tmp_path, steps=50, warmup_steps=0, learning_rate=0.5))
    assert {schedule.learning_rate(step) for step in range(50)} == {0.5}


def test_minutes_are_refused_for_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--minutes is for one process; with 2"):
        Schedule(tiny_config(tmp_path, minutes=1.0), processes=2)


def test_a_run_ends_in_time_and_goes_on_with_more(tmp_path: Path, clock: Clock) -> None:
    clock.tick = 0.1
    config = tiny_config(tmp_path / "run", steps=10**6, minutes=0.1, checkpoint_every=10**6, log_every=1)
    first = train(config, show=False)
    assert 2 <= first.step <= 30  # a few looks a step, of 60
    header = read_header(list_checkpoints(config.run)[-1])
    assert 6 <= header["seconds"] < 7
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["training_seconds"] for line in lines] == sorted(line["training_seconds"] for line in lines)
    assert all(line["learning_rate"] > 0 for line in lines)
    with pytest.raises(RunFolderError, match=r"complete with 0\.1 minutes.*give more --minutes"):
        train(config, show=False)
    second = train(dataclasses.replace(config, minutes=0.2), show=False)
    assert second.step > first.step
    assert 12 <= read_header(list_checkpoints(config.run)[-1])["seconds"] < 13


@pytest.mark.parametrize(("name", "value"), [("minutes", 0.0), ("minutes", "1"), ("decay_share", 1.5), ("initial", 3)])
def test_wrong_values_are_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        tiny_config(tmp_path, **{name: value})
