"""Whole runs: kill and continue to the same bits, end on signals, lose nothing to a bad disk or a bad number."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.support import assert_same_bits, last_tensors, tiny_command, tiny_config, tiny_network
from tests.training.test_checkpoint import small_disk
from tvmatch.cli import main
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.digits import digits_source
from tvmatch.data.prefetch import Prefetcher
from tvmatch.data.source import DataError
from tvmatch.devices import choose_device
from tvmatch.networks.duals import TangentError
from tvmatch.training.checkpoint import CheckpointError, list_checkpoints, read_checkpoint, read_header, remove
from tvmatch.training.config import TrainConfig
from tvmatch.training.loop import TrainingError, _Run, step_seed, train
from tvmatch.training.preparing import prepare
from tvmatch.training.ranks import Ranks
from tvmatch.training.run_folder import MetricsFile, RunFolderError, read_config
from tvmatch.training.trained import load_run

PROGRAM = (
    "from tests.training.support import register_tiny; register_tiny(); from tvmatch.cli import main; exit(main())"
)


def run(config: TrainConfig, **keywords) -> None:
    train(config, show=False, **keywords)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without the clock's share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = {"images_per_second", "training_seconds", "seconds_until_first_step"}
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def pictures(count: int = 12, side: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def start(arguments: list[str]) -> subprocess.Popen:
    """`tvmatch` in a process of its own, which knows the tiny network."""
    # a shell may have started the tests in the background, with SIGINT ignored, and children inherit that
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Return once the metrics of `step` are written; fail if the process ends before."""
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Steps enough that the kill comes in mid-run
LONG = {"steps": 36, "batch_size": 16, "checkpoint_every": 6, "log_every": 2, "flip": True, "guidance": "1:3"}


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed run"
    np.savez(tmp_path / "data.npz", images=pictures(), labels=np.arange(12) % 3)
    options = LONG | {"data": str(tmp_path / "data.npz")}
    assert main(tiny_command(undisturbed, **options)) == 0
    process = start(tiny_command(killed, **options))
    wait_until_step(process, killed, 14)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]

    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    stopped = read_header(list_checkpoints(killed)[-1])["step"]
    if number == signal.SIGKILL:
        assert stopped in (12, 18, 24, 30)  # the last one it had saved
    else:
        assert 14 <= stopped < LONG["steps"]
        assert f"{number.name}: saved {list_checkpoints(killed)[-1]}; the same command continues the run." in errors
    assert main(tiny_command(killed, **options)) == 0

    assert_same_bits(undisturbed, killed)
    if number == signal.SIGKILL:  # each logged step once, with equal values
        assert metrics(killed) == metrics(undisturbed)
    steps = [line["step"] for line in metrics(killed)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching"])
def test_a_signal_ends_with_a_checkpoint_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, objective: str
) -> None:
    """The same in this process, where the signal comes at a known step."""
    write = MetricsFile.write

    def write_and_signal(self: MetricsFile, values: dict) -> None:
        write(self, values)
        if values["step"] == 3:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    command = tiny_command(tmp_path / "stopped", objective=objective)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write_and_signal)
        assert main(command) == 128 + number
    assert list_checkpoints(tmp_path / "stopped")[-1].name == "step_00000003"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert main(command) == 0
    assert main(tiny_command(tmp_path / "whole", objective=objective)) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")


def test_a_signal_during_the_last_save_leaves_nothing_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With 143 a queue would start the command again, which a complete run refuses."""
    write = MetricsFile.write

    def write_and_signal(self: MetricsFile, values: dict) -> None:
        write(self, values)
        if values["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "write", write_and_signal)
    assert main(tiny_command(tmp_path / "run")) == 0
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_00000006"
    assert "SIGTERM: saved" in " ".join(capsys.readouterr().err.split())


def test_a_second_interrupt_ends_at_once_and_lets_a_save_in_hand_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fsync, next_batch, saving = os.fsync, _Run.next_batch, []

    def slow_disk(descriptor: int) -> None:
        time.sleep(0.2)
        fsync(descriptor)

    def two_interrupts(run: _Run, batches: Prefetcher) -> tuple[torch.Tensor, torch.Tensor]:
        """Two Ctrl-C in the main thread after step 2, while its checkpoint is written."""
        if run.state.step == 2:
            saving.append(not run.saver.writing.done())
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return next_batch(run, batches)

    command = tiny_command(tmp_path / "run")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", slow_disk)
            patch.setattr(_Run, "next_batch", two_interrupts)
            assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert saving == [True]
    assert capsys.readouterr().err.splitlines()[-1] == "tvmatch train: interrupted"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    assert main(command) == 0


def test_more_steps_continue_a_complete_run(tmp_path: Path) -> None:
    run(tiny_config(tmp_path / "long", steps=9, sample_every=3))
    run(tiny_config(tmp_path / "short", steps=5))
    run(tiny_config(tmp_path / "short", steps=9, keep_checkpoints=1))
    assert_same_bits(tmp_path / "long", tmp_path / "short")
    assert read_config(tmp_path / "short").steps == 9
    assert len(list_checkpoints(tmp_path / "short")) == 1
    with pytest.raises(RunFolderError, match="complete with 9 steps"):
        run(tiny_config(tmp_path / "short", steps=9))


@pytest.mark.parametrize(
    ("objective", "classes", "before", "after", "told"),
    [
        ("inductive-moment-matching", True, 2, 1, True),
        ("inductive-moment-matching", True, 1, 2, True),
        ("inductive-moment-matching", True, 2, 2, False),
        ("inductive-moment-matching", False, 2, 1, False),  # all are of one kind: groups lie as the samples come
        ("terminal-velocity", True, 2, 1, False),
    ],
)
def test_shares_that_change_the_training_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, objective: str, classes: bool, before: int, after: int, told: bool
) -> None:
    """A share's samples are sorted by class and compared in groups, so other shares compare others."""
    np.savez(tmp_path / "data.npz", images=pictures(32), **({"labels": np.arange(32) % 3} if classes else {}))
    options = {"data": str(tmp_path / "data.npz"), "objective": objective, "batch_size": 16, "checkpoint_every": 1}
    assert main(tiny_command(tmp_path / "run", steps=1, accumulate=before, **options)) == 0
    assert main(tiny_command(tmp_path / "run", steps=2, accumulate=after, **options)) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("From here on this is another training") == told
    if told:
        assert f"compares samples within the {16 // after} of batch_size=16" in error
        assert f"until now that was within {16 // before}." in error
    assert main(tiny_command(tmp_path / "whole", steps=2, accumulate=before, **options)) == 0
    ours, theirs = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("run", "whole"))
    assert ours[0] == theirs[0]
    assert (ours[1] == pytest.approx(theirs[1], rel=1e-5)) == (not told)


@pytest.mark.parametrize("flip", [True, False])
def test_flips_repeat_under_resume_and_matter(tmp_path: Path, flip: bool) -> None:
    run(tiny_config(tmp_path / "whole", flip=flip))
    run(tiny_config(tmp_path / "parts", flip=flip, steps=3))
    run(tiny_config(tmp_path / "parts", flip=flip))
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    run(tiny_config(tmp_path / "other", flip=not flip))
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bits(tmp_path / "whole", tmp_path / "other")


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What five steps with the default options end with."""
    folder = tmp_path_factory.mktemp("default") / "run"
    with tiny_network():
        run(tiny_config(folder, steps=5))
    return last_tensors(folder)


def test_the_same_options_end_with_the_same_bits(tmp_path: Path, default: dict[str, torch.Tensor]) -> None:
    run(tiny_config(tmp_path / "again", steps=5))
    again = last_tensors(tmp_path / "again")
    assert again.keys() == default.keys()
    assert all(torch.equal(again[key], value) for key, value in default.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("guidance", "inverse"),
        ("scaled", False),
        ("weighted", False),
        ("detach_jvp", True),
        ("jumps", "uniform"),
        ("label_dropout", 0.9),
        ("learning_rate", 2e-3),
        ("warmup_steps", 0),
        ("beta1", 0.5),
        ("beta2", 0.5),
        ("weight_decay", 0.5),
        ("clip_gradient", 1e-3),
        ("target_ema", 0.5),
    ],
)
def test_every_option_of_the_method_reaches_the_training(
    tmp_path: Path, default: dict[str, torch.Tensor], name: str, value: object
) -> None:
    """An option that is read and then dropped would be wrong without a word."""
    run(tiny_config(tmp_path / "changed", steps=5, **{name: value}))
    changed = last_tensors(tmp_path / "changed")
    assert any(not torch.equal(changed[key], value) for key, value in default.items() if key.startswith("flow."))


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


def test_averages_and_target_follow_every_step(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run",
        steps=3,
        checkpoint_every=1,
        keep_checkpoints=3,
        evaluation_ema=(0.0, 0.15, 0.9),
        target_ema=0.75,
        learning_rate=0.1,
    )
    state, _, _ = prepare(config, digits_source(), Ranks(torch.device("cpu")))
    name = "network.patches.weight"
    weight = state.objective.flow.state_dict()[name].clone()
    averages, target = dict.fromkeys(config.evaluation_ema, weight), weight
    run(config)
    for step, path in enumerate(list_checkpoints(config.run)):
        tensors = read_checkpoint(path)
        weight = tensors[f"flow.{name}"]
        target = 0.75 * target + 0.25 * weight
        torch.testing.assert_close(tensors[f"target.{name}"], target)
        for decay in averages:
            used = min(decay, (1 + step) / (10 + step))
            averages[decay] = used * averages[decay] + (1 - used) * weight
            torch.testing.assert_close(tensors[f"ema.{decay}.{name}"], averages[decay])


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


def test_training_learns(tmp_path: Path) -> None:
    run(tiny_config(tmp_path / "run", steps=60, batch_size=64, learning_rate=1e-2, log_every=10, checkpoint_every=60))
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching"])
def test_without_classes(tmp_path: Path, objective: str) -> None:
    """Labels are all -1; the network sees w = 1 only, so that is what it is sampled with."""
    config = tiny_config(tmp_path / "run", objective=objective, sample_every=6)
    run(config, source=source_from_arrays(pictures()))
    trained = load_run(config.run)
    assert trained.class_names == ()
    assert trained.w == 1.0
    assert main(["sample", str(config.run), "--count", "3", "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays.files == ["images"]
        assert arrays["images"].shape == (3, 8, 8, 3)
    assert (config.run / "samples" / "step_00000006.png").is_file()


def test_npz_data_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "my data.npz"
    np.savez(data, images=pictures(), labels=np.arange(12) % 2, class_names=np.array(["cat [a]", "猫\n"]))
    command = tiny_command(tmp_path / "run", data=str(data), sample_every=6)
    assert main(command) == 0
    assert main(["sample", str(tmp_path / "run"), "--class", "cat [a]", "--count", "2"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--nfe", "1", "--samples", "8"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"][0].keys() == {"nfe", "w", "frechet"}


def test_a_folder_of_pictures_end_to_end(tmp_path: Path) -> None:
    for index, picture in enumerate(pictures(8, side=12)):
        path = tmp_path / "data" / ("ant", "bee")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    command = tiny_command(tmp_path / "run", data=str(tmp_path / "data"), image_size=8, flip=True)
    assert main(command) == 0
    trained = load_run(tmp_path / "run")
    assert trained.class_names == ("ant", "bee")
    assert trained.flow.network.data_shape == (3, 8, 8)


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=2)
    run(config, source=source_from_arrays(pictures()))
    before = last_tensors(config.run)
    changed = pictures()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(CheckpointError, match="was trained on other data than this command reads now"):
        run(dataclasses.replace(config, steps=4), source=source_from_arrays(changed))
    assert read_config(config.run).steps == 2  # nothing was touched
    assert all(torch.equal(value, before[name]) for name, value in last_tensors(config.run).items())
    run(dataclasses.replace(config, steps=4), source=source_from_arrays(pictures()))


def test_resume_refuses_another_architecture_and_a_renamed_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=2)
    run(config, source=source_from_arrays(pictures()))
    with pytest.raises(CheckpointError, match="is of another architecture"):
        run(dataclasses.replace(config, steps=4), source=source_from_arrays(pictures(channels=1)))
    path = list_checkpoints(config.run)[-1]
    path.rename(path.with_name("step_00000003"))
    with pytest.raises(CheckpointError, match="holds step 2; give it back the name"):
        run(dataclasses.replace(config, steps=4), source=source_from_arrays(pictures()))


def test_a_broken_last_checkpoint_names_the_one_before(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    run(config)
    first, last = list_checkpoints(config.run)
    part = last / "part_00000.safetensors"
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"Delete it to go back to {first.name}"):
        run(dataclasses.replace(config, steps=8))
    remove(last)
    run(dataclasses.replace(config, steps=8))
    run(tiny_config(tmp_path / "whole", steps=8))
    assert_same_bits(config.run, tmp_path / "whole")


def test_from_a_thread_signals_are_left_alone(tmp_path: Path) -> None:
    handler, results = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: results.append(train(tiny_config(tmp_path / "run"), show=False)))
    thread.start()
    thread.join(60)
    assert results[0].step == 6
    assert signal.getsignal(signal.SIGINT) is handler
    run(tiny_config(tmp_path / "main thread"))
    assert_same_bits(tmp_path / "run", tmp_path / "main thread")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"network": "DiT-Digitz/4"}, ValueError, "no network is called 'DiT-Digitz/4'; did you mean DiT-Digits/4"),
        ({"network": "DiT-Digits/8", "image_size": 12}, ValueError, "image_size=12 is not a multiple of patch_size=8"),
        ({"data": "digitz"}, DataError, "did you mean `digits`"),
        ({"device": "gpu"}, ValueError, "device must be auto, cpu or cuda, got 'gpu'"),
        ({"device": "meta"}, ValueError, "device must be auto, cpu or cuda, got 'meta'"),
        ({"objective": "flow-matching", "detach_jvp": True}, ValueError, "flow-matching has no option detach_jvp"),
        ({"objective": "flow-matching", "jumps": "uniform"}, ValueError, "flow-matching has no option jumps"),
    ],
)
def test_what_cannot_work_leaves_no_folder_that_refuses_the_right_command(
    tmp_path: Path, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tiny_config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_lost_tangent_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmatch.networks.dit import Block

    body = Block.body
    monkeypatch.setattr(Block, "body", lambda self, *inputs: body(self, *inputs[:-1], inputs[-1] * 1.0))
    run(tiny_config(tmp_path / "harmless"))
    monkeypatch.setattr("tvmatch.networks.probe.STEP", 50.0)  # differences that no longer approximate the derivative
    with pytest.raises(TangentError, match="differs from finite differences"):
        run(tiny_config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="device cuda was asked for, but PyTorch sees no GPU; use --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_step_seeds_differ() -> None:
    assert len({step_seed(seed, step) for seed in (0, 1, 2) for step in range(50)}) == 150
    assert step_seed(0, 0) == 7896617691693857887  # a run resumed with a newer version must go on with the same draws


def free_space(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def test_training_on_a_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        folder = disk / "run"
        assert main(tiny_command(folder, steps=2)) == 0
        size = sum(file.stat().st_size for file in list_checkpoints(folder)[-1].iterdir())
        filler = disk / "filler"
        filler.write_bytes(bytes(free_space(disk) - size // 2))
        capsys.readouterr()
        assert main(tiny_command(folder)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"tvmatch train: cannot save {folder}/checkpoints/step_00000004 (")
        assert "No space left on device. The last good checkpoint is " in error
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000002"]
        assert main(["sample", str(folder), "--count", "2", "--out", str(tmp_path / "x.png")]) == 0

        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # not one byte left
            while True:
                file.write(bytes(4096))
        for arguments in (tiny_command(folder), ["sample", str(folder)], tiny_command(disk / "new")):
            assert main(arguments) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert "No space left on device" in error
        filler.unlink()
        assert main(tiny_command(folder)) == 0
        run(tiny_config(tmp_path / "whole"))
        assert_same_bits(folder, tmp_path / "whole")


@pytest.mark.parametrize("what", ["metrics.jsonl", "samples"])
def test_a_disk_that_fills_up_under_metrics_or_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, what: str
) -> None:
    real = open

    def full(path: object, *arguments: object, **keywords: object) -> object:
        mode = arguments[0] if arguments else "r"
        late = what == "samples" or "a" in str(mode)
        if late and what in str(path) and list_checkpoints(tmp_path / "run"):
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **keywords)

    command = tiny_command(tmp_path / "run", sample_every=3)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"tvmatch train: step [3-6]: cannot write into ", error)  # at the latest after the second save
    assert "No space left on device. The last good checkpoint is " in error
    assert "run the same command again" in error
    assert main(command) == 0
    run(tiny_config(tmp_path / "whole"))
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_disk_that_becomes_read_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        assert main(tiny_command(disk / "run", steps=2)) == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for arguments in (tiny_command(disk / "run"), ["sample", str(disk / "run")], tiny_command(disk / "new")):
            assert main(arguments) == 2
            assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
        assert main(["sample", str(disk / "run"), "--out", str(tmp_path / "x.png")]) == 0
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert main(tiny_command(disk / "run")) == 0


def test_a_source_that_fails_is_told_apart_from_a_disk(tmp_path: Path) -> None:
    source = source_from_arrays(pictures())

    class Failing:
        shape, labels, class_names = source.shape, source.labels, source.class_names
        num_classes, fingerprint, latent_space = 0, source.fingerprint, None

        def __len__(self) -> int:
            return len(source)

        def batch(self, *_: object) -> np.ndarray:
            raise OSError(5, "Input/output error", "picture.png")

    with pytest.raises(TrainingError, match=r"step 0: the data set cannot be read: .*picture\.png"):
        run(tiny_config(tmp_path / "run"), source=Failing())
