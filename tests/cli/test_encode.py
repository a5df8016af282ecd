"""From a folder of photographs to pictures drawn in one call, through a small autoencoder, by the command line."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.support import assert_one_line, tvmatch
from tests.data.support import TAEF2, write_folder
from tests.training.support import assert_same_bits, tiny_command
from tvmatch.data.latents import LatentsSource


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight crops of the two photographs, with names for their classes, and a file that is no picture."""
    root = write_folder(tmp_path_factory.mktemp("a folder"), 8, 64, "jpg")
    (root / "class_names.txt").write_text("china temple, pagoda\nflower dahlia\n")
    (root / "china" / "readme.jpg").write_text("no picture")
    return root


def test_a_missing_extra_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    answer = tvmatch(capsys, "encode", write_folder(tmp_path / "pictures"), tmp_path / "out", "--codec", "pixels")
    assert_one_line(answer, "pip install 'tvmatch[data]'")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def latents(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "latents"
    done = subprocess.run(command(pictures, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "skipped 1 file: 'china/readme.jpg' (not a picture" in done.stderr
    assert f"{pictures}: 9 pictures in 2 classes: 'temple', 'dahlia'\n" in done.stderr  # as listed, before any is read
    assert "8 pictures and mirrored as latents 32x8x8 in 3 shards; round-trip PSNR" in done.stderr
    assert done.stdout == f"train with: tvmatch train --data {out} --run RUN\n"
    return out


def command(pictures: Path, out: Path) -> list[str]:
    options = ["--codec", str(TAEF2), "--image-size", "64", "--shard-size", "3", "--batch-size", "2"]
    return [sys.executable, "-m", "tvmatch", "encode", str(pictures), str(out), *options, "--device", "cpu"]


def test_the_round_trip_is_good(latents):
    assert json.loads((latents / "manifest.json").read_text())["psnr"]["mean"] > 27


def test_photographs_to_pictures_in_one_call(latents, tmp_path, capsys):
    options = {"data": str(latents), "flip": True, "steps": 4, "checkpoint_every": 4, "sample_every": 4}
    answer = tvmatch(capsys, *tiny_command(tmp_path / "run", **options))
    assert answer.code == 0, answer.err
    with Image.open(tmp_path / "run" / "samples" / "step_00000004.png") as preview:
        assert preview.height > 2 * 64
    answer = tvmatch(capsys, "sample", tmp_path / "run", "--class", "dahlia", "--count", 3, "--out", tmp_path / "d.npz")
    assert answer.code == 0, answer.err
    drawn = np.load(tmp_path / "d.npz")
    assert drawn["images"].shape == (3, 64, 64, 3)
    assert drawn["labels"].tolist() == [1, 1, 1]
    assert_one_line(tvmatch(capsys, "sample", tmp_path / "run", "--class", "dalia"), "did you mean 'dahlia'?")
    # the codec is checked: another gives an error, a copy elsewhere the same pictures
    assert_one_line(tvmatch(capsys, "sample", tmp_path / "run", "--codec", "pixels"), "its weights are not those")
    copy = shutil.copytree(TAEF2, tmp_path / "copy")
    again = [
        "sample",
        tmp_path / "run",
        "--class",
        "dahlia",
        "--count",
        3,
        "--out",
        tmp_path / "e.npz",
        "--codec",
        copy,
    ]
    assert tvmatch(capsys, *again).code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "e.npz")["images"], drawn["images"])


def test_a_run_on_latents_continues_to_the_same_bits(latents, tmp_path, capsys):
    options = {"data": str(latents), "flip": True, "checkpoint_every": 2}
    assert tvmatch(capsys, *tiny_command(tmp_path / "whole", **options, steps=4)).code == 0
    for steps in (2, 4):
        assert tvmatch(capsys, *tiny_command(tmp_path / "parts", **options, steps=steps)).code == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_a_run_on_streamed_random_crops_continues_to_the_same_bits(pictures, tmp_path, capsys):
    options = {"data": str(pictures), "image_size": 8, "crop": "random", "flip": True, "checkpoint_every": 2}
    assert tvmatch(capsys, *tiny_command(tmp_path / "whole", **options, steps=4)).code == 0
    for steps in (2, 4):
        answer = tvmatch(capsys, *tiny_command(tmp_path / "parts", **options, steps=steps))
        assert answer.code == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_encoding_is_left_as_it_is(pictures, latents, capsys):
    before = {path: path.stat().st_mtime_ns for path in (latents / "shards").iterdir()}
    content = (latents / "manifest.json").read_bytes()
    assert tvmatch(capsys, *command(pictures, latents)[3:]).code == 0
    assert {path: path.stat().st_mtime_ns for path in (latents / "shards").iterdir()} == before
    assert (latents / "manifest.json").read_bytes() == content


def test_mistakes_get_one_line(pictures, latents, tmp_path, capsys):
    def encode(*arguments: object):
        return tvmatch(capsys, "encode", *arguments)

    assert_one_line(encode(pictures, latents, "--codec", "pixels", "--image-size", 64), "holds an encoding with codec=")
    assert_one_line(encode(pictures, tmp_path / "o", "--codec", "pixels"), "image_size is required")
    assert_one_line(encode(pictures, tmp_path / "o", "--codec", TAEF2, "--image-size", 60), "multiples of 8")
    assert_one_line(encode(pictures, tmp_path / "o", "--codec", tmp_path, "--image-size", 64), "must hold one")
    assert_one_line(encode("nowhere", tmp_path / "o", "--codec", "pixels"), "no such file or folder")
    assert_one_line(encode(latents, tmp_path / "o", "--codec", "pixels"), "are latents already")
    assert_one_line(encode(pictures, tmp_path / "o", "--codec", "pixels", "--shard-size", 0), "shard_size must be")
    sixteen = ("--codec", "pixels", "--precision", "bfloat16")
    assert_one_line(encode("digits", tmp_path / "o", *sixteen), "leave --precision out")
    strict = encode(pictures, tmp_path / "s", "--codec", "pixels", "--image-size", 64, "--strict")
    begun = f"{pictures}: 9 pictures in 2 classes: 'temple', 'dahlia'\n"  # found once the encoding is on its way
    assert strict.err.startswith(begun)
    assert_one_line(replace(strict, err=strict.err.removeprefix(begun)), "'china/readme.jpg' cannot be used")
    assert not (tmp_path / "o").exists()
    (tmp_path / "file").touch()
    assert_one_line(encode("digits", tmp_path / "file", "--codec", "pixels"), "is a file")


def test_strict_names_what_an_earlier_run_skipped(pictures, tmp_path, capsys):
    options = ["encode", pictures, tmp_path / "o", "--codec", "pixels", "--image-size", 8, "--shard-size", 3]
    answer = tvmatch(capsys, *options)
    assert answer.code == 0
    assert "stood in" not in answer.err
    assert_one_line(tvmatch(capsys, *options, "--strict"), "without --strict skipped 1 file: 'china/readme.jpg'")
    assert tvmatch(capsys, *options).code == 0


def test_the_latents_lie_outside_of_the_pictures(tmp_path, capsys, monkeypatch):
    root = write_folder(tmp_path / "pictures")
    options = ["--codec", "pixels", "--image-size", 8]
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for source, out in ((root, root / "latents"), ("pictures", "link/china/new"), ("link", root / "new")):
        assert_one_line(tvmatch(capsys, "encode", source, out, *options), "whose sub-folders are its classes")
    assert sorted(path.name for path in root.iterdir()) == ["china", "flower"]
    for out in (root / ".latents", "pictures-latents"):  # hidden folders are no classes, and this one is none of it
        for _ in range(2):
            assert tvmatch(capsys, "encode", root, out, *options).code == 0


def test_two_commands_do_not_write_into_one_folder(pictures, tmp_path, capsys):
    import fcntl

    (tmp_path / "out").mkdir()
    held = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        answer = tvmatch(capsys, *command(pictures, tmp_path / "out")[3:])
    finally:
        os.close(held)
    assert_one_line(answer, "another process encodes into it")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_sigkill_at_random_moments(pictures, latents, tmp_path):
    random.seed(0)
    out = tmp_path / "out"
    for _ in range(6):
        process = subprocess.Popen(command(pictures, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / "plan.json").exists():
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command(pictures, out), capture_output=True).returncode == 0
    assert (out / "manifest.json").read_bytes() == (latents / "manifest.json").read_bytes()


@pytest.mark.slow
def test_two_processes_write_the_same_manifest(pictures, latents, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29577",
        "-m",
        "--",
    ]
    done = subprocess.run([*launcher, *command(pictures, tmp_path / "out")[2:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (latents / "manifest.json").read_bytes()
    assert len(LatentsSource(tmp_path / "out")) == 8
