"""What a run leaves in its folder: files, metrics as means over their steps, speeds of training alone."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.support import assert_same_bits, metrics, run, tiny_command, tiny_config
from tvmatch.cli import main
from tvmatch.training.checkpoint import list_checkpoints, read_header, remove
from tvmatch.training.loop import train
from tvmatch.training.run_folder import read_config


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", sample_every=3, learning_rate=1e-4)
    result = train(config, show=False)
    assert (result.step, result.signal) == (6, None)
    assert result.checkpoint == list_checkpoints(config.run)[-1]
    assert result.images_per_second > 0
    assert sorted(path.name for path in config.run.iterdir()) == [
        *("checkpoints", "config.yaml", "metrics.jsonl", "samples", "tensorboard")
    ]
    assert read_config(config.run) == config
    assert yaml.safe_load((config.run / "config.yaml").read_text())["learning_rate"] == 1e-4
    assert [path.name for path in list_checkpoints(config.run)] == [f"step_{s:08d}" for s in (4, 6)]
    assert [line["step"] for line in metrics(config.run)] == [1, 2, 3, 4, 5, 6]
    assert set(metrics(config.run)[0]) == {
        *("step", "learning_rate", "loss", "terminal", "boundary", "gradient_norm", "output_rms", "slope_rms"),
        *("skipped_share", "skipped_total", "largest_attention_logit", "largest_attention_logit_by_block", "by_time"),
    }
    assert sorted(path.name for path in (config.run / "samples").iterdir()) == [
        *("step_00000003.png", "step_00000006.png")
    ]
    header = read_header(result.checkpoint)
    assert (header["step"], header["class_names"]) == (6, [str(digit) for digit in range(10)])


@pytest.mark.parametrize("sample_every", [2, 3])
def test_images_per_second_are_those_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_every: int
) -> None:
    """Pictures take no part of them, whether drawn right after a line of metrics or between two."""

    def slow_preview(*_: object) -> Image.Image:
        time.sleep(1.0)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr("tvmatch.training.loop.draw_preview", slow_preview)
    config = tiny_config(tmp_path / "run", log_every=2, sample_every=sample_every, checkpoint_every=100)
    result = train(config, show=False)
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    most = 2 * config.batch_size / 1.0  # of two steps, if a picture were counted with them
    assert all(speed > most for speed in (result.images_per_second, *(line["images_per_second"] for line in lines)))


def test_the_seconds_until_the_first_step_are_written_once_a_start(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=3, log_every=2)
    run(config)
    run(dataclasses.replace(config, steps=6))
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    written = {line["step"]: line.get("seconds_until_first_step") for line in lines}
    assert [step for step, seconds in written.items() if seconds is not None] == [2, 4]
    assert 0 < written[2] <= lines[0]["training_seconds"]


@pytest.mark.parametrize("checkpoint_every", [2, 6, 100])
def test_a_run_without_the_checkpoints_it_had_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture, checkpoint_every: int
) -> None:
    command = tiny_command(tmp_path / "run", checkpoint_every=checkpoint_every)
    assert main(command) == 0
    assert "no checkpoint" not in capsys.readouterr().err
    for path in list_checkpoints(tmp_path / "run"):
        remove(path)
    assert main(command) == 0
    assert "was trained until step 6 at least, and holds no checkpoint: starting anew from step 0" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_tensorboard_has_every_point_once_over_a_resume(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=5)
    run(config)
    remove(list_checkpoints(config.run)[-1])  # as if it had been killed before that save: step 5 comes again
    run(dataclasses.replace(config, steps=6))
    events = EventAccumulator(str(config.run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in metrics(config.run)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)


def test_metrics_are_means_over_the_steps_since_the_last_line(tmp_path: Path) -> None:
    run(tiny_config(tmp_path / "each", checkpoint_every=6))
    run(tiny_config(tmp_path / "pairs", log_every=2, checkpoint_every=6))
    each = [line["loss"] for line in metrics(tmp_path / "each")]
    pairs = metrics(tmp_path / "pairs")
    assert [line["step"] for line in pairs] == [2, 4, 6]
    assert [line["loss"] for line in pairs] == pytest.approx([sum(each[k : k + 2]) / 2 for k in (0, 2, 4)])
    assert_same_bits(tmp_path / "each", tmp_path / "pairs")  # looking, and the attention probe with it, changes nothing
