"""An evaluation on two processes of which one is killed in the middle ends, when it is run again, to the same bits."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.metrics.test_evaluation import PLAN, measure
from tests.metrics.test_evaluation import run as run  # the fixture
from tests.metrics.test_evaluation_hazards import figures
from tests.training.pool import Pool
from tests.training.support import tiny_network
from tvmatch.metrics import collecting
from tvmatch.metrics.features import FeatureNetwork
from tvmatch.training.ranks import join_ranks


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    processes = Pool(2)
    yield processes
    processes.close()


def measure_until(run: Path, out: Path, statistics: Path | None, victim: int, batch: int) -> int:
    """What each process does: rank `victim` is killed in its batch of that number; how many batches others had."""
    call, seen = FeatureNetwork.__call__, []

    def counted(self: FeatureNetwork, pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        if rank == victim and len(seen) == batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, pictures)

    with pytest.MonkeyPatch.context() as patch, tiny_network(), join_ranks("ddp", "cpu") as ranks:
        rank = ranks.rank
        patch.setattr(collecting, "SAVE_SECONDS", -1.0)  # after every batch
        patch.setattr(FeatureNetwork, "__call__", counted)
        measure(run, out, dataclasses.replace(PLAN, batch_size=3, statistics=statistics), ranks)
    return len(seen)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(run: Path, tmp_path: Path, pool: Pool, victim: int) -> None:
    """Four cases of two times 12 samples, four batches each; the kill comes in the third of the second case."""

    def on_two(name: str, *arguments: Any) -> list[Any]:
        return pool.run(measure_until, 2, run, tmp_path / f"{name}.json", *arguments)

    assert on_two("whole", None, -1, 0) == [7 + 16, 7 + 16]  # two times 20 pictures of the data before
    statistics = tmp_path / "whole" / "statistics.safetensors"
    answers = on_two("killed", statistics, victim, 7)
    assert answers[victim] is None  # it is dead
    assert "another process of this run is gone" in answers[1 - victim]
    assert not (tmp_path / "killed.json").exists()
    assert len(list((tmp_path / "killed" / "rows").iterdir())) == 1
    assert len(list((tmp_path / "killed" / "unfinished").rglob("rank_*_of_2.safetensors"))) == 2
    again = on_two("killed", statistics, -1, 0)
    assert again[victim] == 10  # two of the second case were saved
    assert again[1 - victim] == 9  # it had done all four, and the last is not saved by itself
    assert figures(tmp_path / "killed.json") == figures(tmp_path / "whole.json")  # to the bit
    assert not (tmp_path / "killed" / "unfinished").exists()
