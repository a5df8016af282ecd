"""Evaluations that would have been wrong without a word, or written where they must not."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.support import assert_one_line, tvmatch
from tests.data.support import crops, write_folder
from tests.metrics.networks import save_small
from tests.training.support import tiny_config
from tvmatch.training.loop import train


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_on_random_crops_is_compared_with_the_centres(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, run = write_folder(tmp_path / "pictures", 12, 20), tmp_path / "run"
    train(tiny_config(run, data=str(data), image_size=8, crop="random", steps=2), show=False)
    network = save_small(tmp_path / "small.pt")
    for features in ((), ("--features", network)):
        out = tmp_path / f"{len(features)}.json"
        answer = tvmatch(capsys, "evaluate", run, "--nfe", "1", "--samples", "8", "--out", out, *features)
        assert answer.code == 0, answer.err
        assert "was trained on random crops (--crop random), and is compared with the centres" in answer.err
        told = json.loads(out.read_text())
        assert any("random crops" in remark for remark in told["remarks"])
        assert not any("not of what" in remark for remark in told["remarks"])
    (tmp_path / "2" / "nearest_nfe1_w1.5_seed0.png").stat()  # the pictures are those of training
    (data / "china" / "000.png").unlink()
    answer = tvmatch(capsys, "evaluate", run, "--nfe", "1", "--samples", "8", "--out", tmp_path / "x.json")
    assert_one_line(answer, "is not what")


@pytest.mark.parametrize("place", ["run", "pictures"])
def test_nothing_is_written_into_a_folder_of_something_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, place: str
) -> None:
    """`--out X.json` would put its pictures into X."""
    folder = write_folder(tmp_path / "pictures") if place == "pictures" else tmp_path / "other"
    if place == "run":
        train(tiny_config(folder, steps=1), show=False)
    network, before = save_small(tmp_path / "small.pt"), files_of(folder)
    options = ("--nfe", "1", "--samples", "8", "--features", network, "--out", folder.with_name(f"{folder.name}.json"))
    assert_one_line(tvmatch(capsys, "evaluate", run, *options), f"{folder}, for its pictures, holds other things")
    assert files_of(folder) == before


def test_classes_of_unequal_size_and_few_pictures_are_told_without_features(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 10 // 9)  # 36 and 4
    train(tiny_config(tmp_path / "run", data=str(tmp_path / "data.npz"), steps=1), show=False)
    answer = tvmatch(capsys, "evaluate", tmp_path / "run", "--nfe", "1", "--samples", "20")
    assert answer.code == 0, answer.err
    remarks = json.loads((tmp_path / "run" / "evaluation.json").read_text())["remarks"]
    assert any("10 to 10 samples of a class; the pictures hold 4 to 36 of a class" in remark for remark in remarks)
    assert any(remark.startswith("40 pictures give a covariance of rank 39") for remark in remarks)
    assert all(remark in answer.err for remark in remarks)
    assert_one_line(tvmatch(capsys, "evaluate", tmp_path / "run", "--samples", "0"), "at least 2 samples, got 0")


def test_pictures_that_others_stand_in_for_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, labels = crops(20, 8)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            picture = io.BytesIO()
            Image.fromarray(image).save(picture, "PNG")
            for name, data in (
                (f"{number:03d}.cls", str(label).encode()),
                (f"{number:03d}.png", b"broken" if number in (3, 8) else picture.getvalue()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    run, network = tmp_path / "run", save_small(tmp_path / "small.pt")
    train(tiny_config(run, data=str(tmp_path / "data.tar"), image_size=8, steps=1), show=False)
    for features in ((), ("--features", network)):
        out = tmp_path / f"{len(features)}.json"
        answer = tvmatch(capsys, "evaluate", run, "--nfe", "1", "--samples", "8", "--out", out, *features)
        assert answer.code == 0, answer.err
        (told,) = (remark for remark in json.loads(out.read_text())["remarks"] if "stand in" in remark)
        assert told.startswith("at least 2 of the pictures of")
        assert told in answer.err
    statistics = ("statistics", tmp_path / "data.tar", tmp_path / "s.safetensors", "--features", network)
    assert_one_line(tvmatch(capsys, *statistics, "--image-size", "8"), "Mend or remove it, or give --no-strict")
    assert tvmatch(capsys, *statistics, "--image-size", "8", "--no-strict").code == 0


def test_a_file_of_another_kind_is_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = save_small(tmp_path / "small.pt")
    mine, evaluation, statistics = (tmp_path / name for name in ("mine.json", "figures.json", "s.safetensors"))
    mine.write_text('{"my": "own"}')
    measure = ("evaluate", run, "--nfe", "1", "--samples", "8")
    assert tvmatch(capsys, *measure, "--out", evaluation).code == 0
    assert tvmatch(capsys, *measure, "--out", evaluation).code == 0  # its own kind
    for command in (measure, ("bench", "sample", "--network", "DiT-Digits/4"), ("bench", "step")):
        for path in (mine, evaluation) if command[0] == "bench" else (mine,):
            before = path.read_bytes()
            assert_one_line(tvmatch(capsys, *command, "--out", path), "is not overwritten")
            assert path.read_bytes() == before
    data = run.parent / "data.npz"
    assert tvmatch(capsys, "statistics", data, statistics, "--features", network).code == 0
    assert tvmatch(capsys, "statistics", data, statistics, "--features", network).code == 0  # the same, anew
    before = statistics.read_bytes()
    answer = tvmatch(capsys, "statistics", data, statistics, "--features", network, "--size", "20")
    assert_one_line(answer, "and not of this")
    assert statistics.read_bytes() == before
    model = tmp_path / "model.safetensors"
    assert tvmatch(capsys, "export", run, "--out", model).code == 0
    answer = tvmatch(capsys, "statistics", data, model, "--features", network)
    assert_one_line(answer, "holds no statistics of `tvmatch statistics`")


def test_a_method_that_was_not_taught_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, network = tmp_path / "run", save_small(tmp_path / "small.pt")
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    train(
        tiny_config(run, data=str(tmp_path / "data.npz"), objective="flow-matching", guidance="1", steps=1), show=False
    )
    for command in (
        ("sample", run, "--count", "2"),
        ("evaluate", run, "--samples", "8", "--nfe", "1"),
        ("evaluate", run, "--samples", "8", "--nfe", "1", "--features", network, "--out", tmp_path / "x.json"),
    ):
        assert "flow-matching teaches velocities only" in tvmatch(capsys, *command, "--method", "jump").err
        fresh = (*command[:-1], tmp_path / "y.json") if "--out" in command else command
        assert "teaches" not in tvmatch(capsys, *fresh).err
