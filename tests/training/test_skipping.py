"""Steps that are not finite: skipped without a trace, counted, and the end of the run if they do not stop."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.support import assert_same_bits, last_tensors, tiny_command, tiny_config
from tvmatch.cli import main
from tvmatch.objectives import Objective, StepLoss, TerminalVelocityMatching
from tvmatch.training.checkpoint import list_checkpoints, read_checkpoint
from tvmatch.training.loop import TrainingError, _Run, step_seed, train
from tvmatch.training.skipping import SkippedSteps

Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """`spoil(3, 4)` makes the loss of steps 3 and 4 (counted from 0, seed 0) a value that is not finite."""
    forward = TerminalVelocityMatching.forward

    def spoiled(*steps: int, value: float = float("nan")) -> None:
        seeds = {step_seed(0, step) for step in steps}

        def failing(self: Objective, *arguments: object) -> StepLoss:
            result = forward(self, *arguments)
            return result._replace(loss=result.loss * value) if self.generator.initial_seed() in seeds else result

        monkeypatch.setattr(TerminalVelocityMatching, "forward", failing)

    return spoiled


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_counting() -> None:
    skipped = SkippedSteps(torch.device("cpu"))
    rows = []
    for norm in (1.0, float("nan"), float("inf"), 1.0, float("-inf"), 2.0):
        skip = skipped.decide(torch.tensor([1.0, norm]))
        rows.append((float(skip), int(skipped.total), int(skipped.in_a_row), int(skipped.longest)))
    assert rows == [(0, 0, 0, 0), (1, 1, 1, 1), (1, 2, 2, 2), (0, 2, 0, 2), (1, 3, 1, 2), (0, 3, 0, 2)]
    assert skip.dtype == torch.float32
    skipped.forget()
    assert int(skipped.longest) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 3])
def test_a_skipped_step_leaves_every_bit_as_it_was(tmp_path: Path, spoil: Spoil, value: float, step: int) -> None:
    spoil(step, value=value)
    config = tiny_config(tmp_path / "run", steps=5, checkpoint_every=1, keep_checkpoints=9, weight_decay=0.1)
    train(config, show=False)
    saved = [read_checkpoint(path) for path in list_checkpoints(config.run)]
    after = saved[step]
    if step == 0:
        train(tiny_config(tmp_path / "other", steps=1), show=False)  # the same seed, so the same initial weights ...
        before = {k: v for k, v in last_tensors(tmp_path / "other").items() if k.startswith(("target.", "ema."))}
        assert not any(bool(v.any()) for k, v in after.items() if k.startswith("optimizer."))
        weights = {k.removeprefix("flow."): v for k, v in after.items() if k.startswith("flow.")}
        for prefix in ("target.", "ema.0.5.", "ema.0.9."):  # ... in weights, target and averages alike
            copies = {k.removeprefix(prefix): v for k, v in after.items() if k.startswith(prefix)}
            assert copies.keys() == weights.keys()
            assert all(torch.equal(value, weights[name]) for name, value in copies.items())
    else:
        before = {k: v for k, v in saved[step - 1].items() if not k.startswith("skipped.")}
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert int(after["skipped.total"]) == 1
    assert any(not torch.equal(saved[-1][name], value) for name, value in before.items())  # and then it goes on
    assert all(bool(value.isfinite().all()) for value in saved[-1].values())
    shares = [line["skipped_share"] for line in lines(config.run)]
    assert shares == [float(number == step) for number in range(5)]
    assert lines(config.run)[-1]["skipped_total"] == 1


def test_a_skipped_step_has_consumed_its_batch_and_its_draws(tmp_path: Path, spoil: Spoil) -> None:
    """With a learning rate of nearly 0 the losses of the other steps are those of a run that skips nothing."""
    train(tiny_config(tmp_path / "whole", learning_rate=1e-30), show=False)
    spoil(2)
    train(tiny_config(tmp_path / "run", learning_rate=1e-30), show=False)
    whole, run = lines(tmp_path / "whole"), lines(tmp_path / "run")
    assert "loss" not in run[2]
    assert [line["loss"] for line in run if line["step"] != 3] == [line["loss"] for line in whole if line["step"] != 3]


def test_metrics_are_strict_json_and_means_of_the_others(tmp_path: Path, spoil: Spoil) -> None:
    spoil(1)
    train(tiny_config(tmp_path / "each"), show=False)
    train(tiny_config(tmp_path / "all", log_every=6, checkpoint_every=6), show=False)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (json.loads(text, parse_constant=refuse) for text in (tmp_path / "all/metrics.jsonl").open())
    losses = [line["loss"] for line in lines(tmp_path / "each") if "loss" in line]
    assert len(losses) == 5
    assert line["loss"] == pytest.approx(sum(losses) / 5)
    assert line["skipped_share"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(("allowed", "stop"), [(0, 3), (1, 4), (2, None)])
def test_the_run_stops_after_so_many_in_a_row(
    tmp_path: Path, spoil: Spoil, capsys: pytest.CaptureFixture, allowed: int, stop: int | None
) -> None:
    spoil(2, 3)
    command = tiny_command(tmp_path / "run", max_skipped=allowed, log_every=100)
    assert main(command) == (0 if stop is None else 1)
    message = capsys.readouterr().err.splitlines()[-1]
    if stop is not None:
        assert message.startswith(f"tvmatch train: step {stop}: {allowed + 1} steps in a row were not finite, and ")
        assert f"--max-skipped allows {allowed} (step {stop - 1}: loss nan, terminal " in message
        assert "The last good checkpoint is" in message
        assert "step_00000002" in message
        assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000002"]
        last = lines(tmp_path / "run")[-1]  # what shows why
        assert (last["step"], last["skipped_total"]) == (stop, allowed + 1)
        assert main(tiny_command(tmp_path / "run", max_skipped=2)) == 0  # more patience continues the run
    assert all(bool(value.isfinite().all()) for value in last_tensors(tmp_path / "run").values())
    assert int(last_tensors(tmp_path / "run")["skipped.total"]) == 2


def test_on_a_gpu_too_many_are_found_before_the_next_checkpoint(
    tmp_path: Path, spoil: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There nobody waits for the figures of every step; the report that comes before every save looks at the row."""
    spoil(2)
    monkeypatch.setattr(_Run, "look", lambda self: None)
    with pytest.raises(TrainingError, match=r"step 4: 1 steps in a row were not finite.*\(step 2: .*step_00000002"):
        train(tiny_config(tmp_path / "run", log_every=100, max_skipped=0), show=False)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000002"]


@pytest.mark.parametrize("stop", [3, 4])
def test_resuming_after_a_skip_gives_the_same_bits(tmp_path: Path, spoil: Spoil, stop: int) -> None:
    spoil(2, 3)
    config = tiny_config(tmp_path / "parts", steps=stop)
    train(config, show=False)
    train(dataclasses.replace(config, steps=6), show=False)
    train(tiny_config(tmp_path / "whole"), show=False)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_a_row_goes_on_over_a_resume(tmp_path: Path, spoil: Spoil) -> None:
    spoil(2, 3)
    config = tiny_config(tmp_path / "run", steps=3, max_skipped=1)
    train(config, show=False)
    with pytest.raises(TrainingError, match="step 4: 2 steps in a row were not finite"):
        train(dataclasses.replace(config, steps=6), show=False)


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = torch.nn.utils.clip_grad_norm_

    def spoiled(parameters: list, *arguments: object, **keywords: object) -> torch.Tensor:
        parameters[0].grad[0] = float("inf")
        return clip(parameters, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoiled)
    train(tiny_config(tmp_path / "run", steps=2), show=False)
    assert [line["skipped_share"] for line in lines(tmp_path / "run")] == [1.0, 1.0]
    assert all(bool(value.isfinite().all()) for value in last_tensors(tmp_path / "run").values())


RANK = """
import sys, torch, torch.distributed as dist
from tvmatch.training.skipping import SkippedSteps
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
skipped = SkippedSteps(torch.device("cpu"))
values = [(1.0, float("nan"), 1.0, float("inf")), (1.0, 1.0, float("nan"), float("inf"))][rank]
print([float(skipped.decide(torch.tensor(value), shared=True)) for value in values], int(skipped.longest))
from tests.training.test_instruments import one_step
from tvmatch.training.instruments import Instruments
ours = Instruments(skipped, 2)
one_step(ours, [1.0, float("nan")][rank], [2.0, 4.0][rank], 5)
print(ours.read().skipped_text())
dist.destroy_process_group()
"""


def test_all_ranks_decide_alike(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], stdout=-1, text=True)
        for rank in range(2)
    ]
    # the figures of a skipped step are means over the ranks too: those of one need not show why
    told = "step 5: loss nan, terminal nan, boundary nan, gradient_norm 3\n"
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["[0.0, 1.0, 1.0, 1.0] 3\n" + told] * 2
