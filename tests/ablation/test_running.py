"""Results of several processes, and what becomes of the work when some of them end before it is done."""

import dataclasses
import queue
from pathlib import Path
from types import SimpleNamespace

import pytest

from tvmatch.ablation import running
from tvmatch.ablation.running import _collect, run_cell
from tvmatch.ablation.study import Cell
from tvmatch.ablation.tasks import base_config


def workers(*codes: int | None) -> list[SimpleNamespace]:
    return [SimpleNamespace(exitcode=code) for code in codes]


def test_a_run_that_no_worker_is_left_for_is_not_waited_for() -> None:
    """A worker that alone was sent SIGTERM has ended as it should, with code 0, and the others have done the rest."""

    class Asked(queue.Queue):
        def get(self, block: bool = True, timeout: float | None = None) -> dict:
            asked.append(timeout)
            assert len(asked) < 5, "it waits for ever"
            return super().get(block, timeout)

    asked: list[float | None] = []
    results = Asked()
    results.put({"key": "of the other"})
    found = _collect(results, workers(0, 0), 2, [])
    assert next(found) == {"key": "of the other"}
    with pytest.raises(RuntimeError, match="all workers have ended, and 1 run has no result; the same command cont"):
        next(found)


def test_what_the_last_worker_gives_before_it_ends_is_collected() -> None:
    class Late(queue.Queue):
        """Empty when it is asked first; then the worker gives a result and ends."""

        def get(self, block: bool = True, timeout: float | None = None) -> dict:
            if processes[0].exitcode is None:
                processes[0].exitcode = 0
                self.put({"key": "last"})
                raise queue.Empty
            return super().get(block, timeout)

    processes = workers(None)
    assert list(_collect(Late(), processes, 1, [])) == [{"key": "last"}]


@pytest.mark.parametrize("length", [{"steps": 2}, {"steps": 10**6, "minutes": 0.002}])
def test_a_run_that_was_stopped_while_it_was_judged_is_judged_and_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: dict
) -> None:
    config = dataclasses.replace(base_config("points"), network="MLP-8x1", batch_size=8, log_every=1, **length)
    cell = Cell("points", config, (1.5,), (1,), 20)
    with monkeypatch.context() as patch:
        patch.setattr(running, "judge", lambda *rest: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_cell(cell, tmp_path)
    assert run_cell(cell, tmp_path)["rows"][0]["map_error"] > 0
