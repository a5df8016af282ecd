import json

import pytest
import torch
from torch import Tensor

from tvmatch.objectives import SampleFigures, StepLoss
from tvmatch.training.instruments import Instruments
from tvmatch.training.skipping import SkippedSteps


def instruments() -> Instruments:
    return Instruments(SkippedSteps(torch.device("cpu")))


def result(loss: float, samples: int = 8) -> StepLoss:
    """A batch whose terminal and boundary losses are `loss` for every sample."""
    each, times = torch.full((samples,), loss), torch.linspace(0.1, 1, samples)
    jumps = SampleFigures({"terminal": each, "output_rms": each + 1}, times, times / 2)
    terms = {"terminal": each.mean(), "boundary": each.mean()}
    return StepLoss(2 * each.mean(), terms, (jumps, SampleFigures({"boundary": each}, times)))


def one_step(ours: Instruments, loss: float, norm: float, step: int) -> Tensor:
    ours.observe(result(loss))
    return ours.decide(torch.tensor(norm), step)


def test_means_over_the_steps_since_the_last_reading() -> None:
    ours = instruments()
    for step, loss in enumerate((1.0, 3.0)):
        assert float(one_step(ours, loss, 5.0 * loss, step)) == 0
    reading = ours.read()
    assert reading.figures == {"loss": 4, "terminal": 2, "boundary": 2, "gradient_norm": 10, "output_rms": 3}
    assert (reading.steps, reading.skipped, reading.longest_row) == (2, 0, 0)
    assert {name: sum(row[-1] for row in rows) for name, rows in reading.by_time.items()} == {
        **dict.fromkeys(("terminal", "output_rms", "boundary"), 16)
    }
    assert {row[-2] for row in reading.by_time["terminal"]} == {2.0}
    one_step(ours, 7.0, 1.0, 2)
    assert ours.read().figures["loss"] == 14  # nothing of what was read before
    assert ours.read().steps == 0


def test_a_step_of_several_batches_counts_once() -> None:
    ours = instruments()
    for loss in (1.0, 2.0, 6.0):
        ours.observe(result(loss))
    ours.decide(torch.tensor(1.0), 0)
    reading = ours.read()
    assert (reading.steps, reading.figures["terminal"]) == (1, 3.0)
    assert sum(row[-1] for row in reading.by_time["terminal"]) == 24


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (float("inf"), float("nan"))])
def test_a_step_that_is_not_finite_is_in_no_mean_and_is_reported(loss: float, norm: float) -> None:
    ours = instruments()
    one_step(ours, 1.0, 5.0, 10)
    assert float(one_step(ours, loss, norm, 11)) == 1
    one_step(ours, 3.0, 7.0, 12)
    reading = ours.read()
    assert reading.figures["loss"] == 4
    assert reading.figures["gradient_norm"] == 6
    assert sum(row[-1] for row in reading.by_time["terminal"]) == 16
    assert (reading.steps, reading.skipped, reading.skipped_total, reading.longest_row) == (3, 1, 1, 1)
    assert reading.scalars()["skipped_share"] == pytest.approx(1 / 3)
    assert reading.last_skipped_step == 11
    assert reading.last_skipped["gradient_norm"] == pytest.approx(norm, nan_ok=True)
    assert reading.skipped_text().startswith("step 11: loss ")
    counted = {name: sum(row[-1] for row in rows) for name, rows in reading.not_finite_by_time.items()}
    assert counted == ({} if loss == 1.0 else dict.fromkeys(("terminal", "output_rms", "boundary"), 8))
    json.dumps([reading.scalars(), reading.tables()], allow_nan=False)


def test_when_every_step_was_skipped_there_are_no_means() -> None:
    ours = instruments()
    for step in range(3):
        one_step(ours, float("nan"), 1.0, step)
    reading = ours.read()
    assert reading.figures == {}
    assert reading.by_time == {}
    assert (reading.skipped, reading.longest_row) == (3, 3)
    one_step(ours, 1.0, 1.0, 3)
    assert ours.read().longest_row == 3  # the row that went on into this reading
    one_step(ours, 1.0, 1.0, 4)
    assert ours.read().longest_row == 0


def test_names_on_tensorboard() -> None:
    ours = instruments()
    one_step(ours, 2.0, 1.0, 0)
    scalars = ours.read().scalars_by_time()
    assert scalars["terminal_by_time/t0.875-1.000_s0.500-0.625"] == 2.0
    assert scalars["boundary_by_time/t0.875-1.000"] == 2.0
