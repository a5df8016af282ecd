import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests.training.support import tiny_config
from tvmatch.training.checkpoint import CheckpointError, checkpoint_path
from tvmatch.training.loop import train
from tvmatch.training.progress import TrainingProgress
from tvmatch.training.run_folder import (
    MAY_CHANGE,
    MetricsFile,
    RunFolderError,
    claim_run,
    open_run,
    other_length,
    read_config,
)


def make_run(run: Path, step: int | None = None, **changes) -> None:
    """A run folder as training leaves it, with a checkpoint of `step` in name only."""
    config = tiny_config(run, **changes)
    with claim_run(config, open_run(config)):
        pass
    if step is not None:
        path = checkpoint_path(run, step)
        path.mkdir(parents=True)
        (path / "tvmatch.json").touch()


@pytest.mark.parametrize("name", ["new", "deep/er/new", "with space", "v1.5", "[bold] ü"])
def test_a_fresh_folder(tmp_path: Path, name: str) -> None:
    config = tiny_config(tmp_path / name)
    assert open_run(config) is None
    assert not config.run.exists()  # asking writes nothing
    with claim_run(config):
        assert read_config(config.run) == config
    assert [path.name for path in config.run.iterdir()] == ["config.yaml"]
    assert open_run(config) is None  # started, but nothing was learned yet


def test_an_empty_folder_and_one_whose_start_was_killed(tmp_path: Path) -> None:
    assert open_run(tiny_config(tmp_path)) is None
    (tmp_path / ".config.yaml.tmp").write_text("steps: 1")
    assert open_run(tiny_config(tmp_path)) is None
    make_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_or_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match=r"file is a file; choose another --run"):
        open_run(tiny_config(tmp_path / "file"))
    with pytest.raises(RunFolderError, match=r"holds no config\.yaml, so it is not a run of tvmatch"):
        open_run(tiny_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(RunFolderError, match=r"cannot write into .*Not a directory"),
        claim_run(tiny_config(tmp_path / "file" / "run")),
    ):
        pass

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunFolderError, match=r"cannot write into .*new: No space left on device\. Free some space"):
            make_run(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    make_run(tmp_path / "new")  # the same command again, with space


def test_continues_from_the_last_checkpoint(tmp_path: Path) -> None:
    make_run(tmp_path, step=2)
    make_run(tmp_path, step=4)
    assert open_run(tiny_config(tmp_path)) == checkpoint_path(tmp_path, 4)


def test_checkpoints_of_an_earlier_version_are_not_silently_started_over(tmp_path: Path) -> None:
    make_run(tmp_path)
    path = tmp_path / "checkpoints" / "step_00000004.safetensors"
    path.parent.mkdir()
    path.touch()
    with pytest.raises(RunFolderError, match=r"of an earlier version \(step_00000004\.safetensors\), which can be"):
        open_run(tiny_config(tmp_path))


def test_a_complete_run_needs_more_steps(tmp_path: Path) -> None:
    make_run(tmp_path, step=6)
    with pytest.raises(RunFolderError, match=r"complete with 6 steps\. Choose another --run, or give --steps above 6"):
        open_run(tiny_config(tmp_path, steps=6))
    assert open_run(tiny_config(tmp_path, steps=7)) == checkpoint_path(tmp_path, 6)
    assert read_config(tmp_path).steps == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.5),
        ("seed", 3),
        ("objective", "flow-matching"),
        ("data", "x.npz"),
        ("evaluation_ema", (0.5,)),
    ],
)
def test_other_options_are_named(tmp_path: Path, name: str, value: object) -> None:
    make_run(tmp_path, step=4)
    with pytest.raises(RunFolderError, match=rf"already holds a run with {name}=.*, and this command says"):
        open_run(tiny_config(tmp_path, **{name: value}))


def test_what_may_change(tmp_path: Path) -> None:
    make_run(tmp_path, step=4)
    other = {
        "minutes": 3.0,
        "steps": 50,
        "log_every": 7,
        "sample_every": 3,
        "checkpoint_every": 9,
        "keep_checkpoints": 4,
        "max_skipped": 3,
        "device": "auto",
        "strict": True,
        "precision": "float32",
        "compile": "off",
        "recompute": "full",
        "strategy": "fsdp",
        "fsdp_gather": "use",
        "accumulate": 2,
        "graphs": "off",
    }
    assert other.keys() | {"run"} == MAY_CHANGE
    assert open_run(tiny_config(tmp_path, **other)) == checkpoint_path(tmp_path, 4)


def test_a_moved_run_is_still_itself(tmp_path: Path) -> None:
    make_run(tmp_path / "old", step=4)
    (tmp_path / "old").rename(tmp_path / "new")
    assert open_run(tiny_config(tmp_path / "new")) == checkpoint_path(tmp_path / "new", 4)


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    with claim_run(config):
        with pytest.raises(RunFolderError, match="another process trains in it"), claim_run(tiny_config(config.run)):
            pass
        assert read_config(config.run) == config
        with pytest.raises(RunFolderError, match="another process trains in it"):
            open_run(tiny_config(config.run))  # before the checkpoints that it writes and removes are looked at
    with claim_run(config):  # the claim ended with its block
        pass


def test_a_run_that_went_on_between_the_look_and_the_claim(tmp_path: Path) -> None:
    make_run(tmp_path, step=2)
    config = tiny_config(tmp_path)
    before = open_run(config)
    make_run(tmp_path, step=4)  # another process comes and goes
    with pytest.raises(RunFolderError, match="has trained in it since this one started"), claim_run(config, before):
        pass
    with claim_run(config, open_run(config)):
        pass


def test_a_checkpoint_in_which_somebody_has_deleted(tmp_path: Path) -> None:
    """Going back without a word would train the same steps again, and then find their name taken."""
    make_run(tmp_path, step=2)
    make_run(tmp_path, step=4)
    (checkpoint_path(tmp_path, 4) / "tvmatch.json").unlink()
    message = r"step_00000004 is not whole: tvmatch\.json is missing\. Delete it to go back to step_00000002"
    with pytest.raises(CheckpointError, match=message):
        open_run(tiny_config(tmp_path))
    checkpoint_path(tmp_path, 4).rmdir()
    assert open_run(tiny_config(tmp_path)) == checkpoint_path(tmp_path, 2)
    (checkpoint_path(tmp_path, 2) / "tvmatch.json").unlink()
    with pytest.raises(CheckpointError, match="go back to the start"):
        open_run(tiny_config(tmp_path))


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("stepz: 4")
    with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'stepz'; did you mean steps"):
        open_run(tiny_config(tmp_path))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_config_in_another_encoding_is_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    config.run.mkdir()
    (config.run / "config.yaml").write_bytes("data: Straße\n".encode("latin-1"))
    message = (
        r"run/config\.yaml is not text in UTF-8 \(.* at byte 10\): .*\. Save it in UTF-8, or choose another folder"
    )
    for look in (lambda: open_run(config), lambda: read_config(config.run)):
        with pytest.raises(RunFolderError, match=message):
            look()


def test_metrics_after_the_checkpoint_are_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in (2, 4, 6):
        metrics.write({"step": step, "loss": 1 / step})
    metrics = MetricsFile(path, 4)
    assert [line["step"] for line in lines(path)] == [2, 4]
    metrics.write({"step": 6, "loss": 0.5})
    assert lines(path)[-1] == {"step": 6, "loss": 0.5}
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "half", ['{"step": 4, "lo', "\x00\x00\x00", "7", '{"loss": 1}', '"', b"\xff\xfe".decode("latin1")]
)
def test_a_half_line_is_dropped(tmp_path: Path, half: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n' + half.encode("latin1"))
    MetricsFile(path, 9).write({"step": 10})
    assert lines(path) == [{"step": 2}, {"step": 10}]


def test_another_length_is_told_where_something_depends_on_it(tmp_path: Path) -> None:
    def told(before: dict, now: dict, **options: object) -> str | None:
        make_run(tmp_path / f"{before}{options}", **options, **before)
        return other_length(tiny_config(tmp_path / f"{before}{options}", **options, **now))

    four, six = {"steps": 4}, {"steps": 6}
    assert told(four, six) is None  # a constant rate
    assert told(four, four, decay_share=0.5) is None
    decaying = told(four, six, decay_share=0.5)
    assert "--steps 6 where this run had --steps 4: the new length holds for the learning rate from here" in decaying
    assert "holds for the curriculum of alpha-flow from here on" in told(four, six, objective="alpha-flow")
    both = told(four, six, decay_share=0.5, objective="consistency-training")
    assert "for the learning rate and the curriculum of consistency-training from" in both
    assert "--minutes 1 where this run had --minutes 0.5" in told({"minutes": 0.5}, {"minutes": 1.0}, decay_share=0.5)


def test_a_run_that_gets_longer_says_what_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(TrainingProgress, "say", lambda self, text: said.append(text))
    config = tiny_config(tmp_path / "run", steps=2, decay_share=0.5)
    train(config, show=False)
    train(dataclasses.replace(config, steps=3), show=False)
    assert sum("--steps 3 where this run had --steps 2" in text for text in said) == 1
