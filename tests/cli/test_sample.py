from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.support import assert_one_line, tvmatch


def test_png_by_default_in_the_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    answer = tvmatch(capsys, "sample", run, "--count", "7")
    assert answer.code == 0
    assert answer.out == f"{run / 'drawn.png'}\n"
    assert answer.err == ""
    with Image.open(run / "drawn.png") as picture:
        assert picture.size == (3 * 10 * 6, 3 * 10 * 6)  # a column a class, pictures of 8 + 2 pixels, 6 times


def test_npz_holds_images_and_labels(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "folder" / "x.npz"
    assert tvmatch(capsys, "sample", run, "--count", "7", "--out", out).code == 0
    with np.load(out) as arrays:
        assert (arrays["images"].shape, arrays["images"].dtype) == ((7, 8, 8, 3), np.uint8)
        assert arrays["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [path.name for path in out.parent.iterdir()] == ["x.npz"]


def test_a_folder_of_pngs_that_holds_the_same_pictures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new" / "pictures"
    assert tvmatch(capsys, "sample", run, "--count", "3", "--out", out).code == 0
    assert tvmatch(capsys, "sample", run, "--count", "3", "--out", tmp_path / "x.npz").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    with np.load(tmp_path / "x.npz") as arrays:
        for index, expected in enumerate(arrays["images"]):
            with Image.open(out / f"{index:06d}.png") as picture:
                assert np.array_equal(np.asarray(picture), expected)
    before = (out / "000000.png").read_bytes()
    assert_one_line(tvmatch(capsys, "sample", run, "--out", out), "is a folder that exists")
    assert (out / "000000.png").read_bytes() == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["pictures"]


@pytest.mark.parametrize("suffix", [".png", ".npz"])
def test_the_same_seed_gives_the_same_bytes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, suffix: str
) -> None:
    def content(name: str, *options: object) -> bytes:
        out = tmp_path / f"{name}{suffix}"
        assert tvmatch(capsys, "sample", run, "--count", "6", "--nfe", "2", "--out", out, *options).code == 0
        return out.read_bytes()

    assert content("a") == content("b") == content("c", "--seed", "0")
    assert content("d", "--seed", "1") != content("a")


def test_options_of_the_method_change_the_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    contents = []
    for index, options in enumerate(
        ([], ["--nfe", "3"], ["--w", "4"], ["--ema", "0.5"], ["--method", "euler", "--nfe", "3"])
    ):
        out = tmp_path / f"{index}.npz"
        assert tvmatch(capsys, "sample", run, "--count", "4", "--out", out, *options).code == 0
        with np.load(out) as arrays:
            contents.append(arrays["images"].tobytes())
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize(
    ("classes", "labels"),
    [(["wasp"], [1, 1, 1, 1]), (["2", "bee"], [2, 0, 2, 0]), (["ant [x]"], [2, 2, 2, 2])],
)
def test_classes_by_name_and_number(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, classes: list[str], labels: list[int]
) -> None:
    out = tmp_path / "x.npz"
    assert tvmatch(capsys, "sample", run, "--count", "4", "--out", out, "--class", *classes).code == 0
    with np.load(out) as arrays:
        assert arrays["labels"].tolist() == labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nfe", "0"], "nfe must be at least 1, got 0"),
        (["--nfe", "-2"], "nfe must be at least 1, got -2"),
        (["--w", "0"], "w must be positive and finite (1 is no guidance), got 0"),
        (["--w", "-1"], "got -1"),
        (["--w", "nan"], "got nan"),
        (["--w", "inf"], "got inf"),
        (["--count", "0"], "count must be at least 1, got 0"),
        (["--count", "1", "--class", "bee", "ant [x]"], "--count 1 pictures leave some of the 2 classes out"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be 0 to 2^63 - 1, got -1"),
        (["--seed", str(2**64)], f"seed must be 0 to 2^63 - 1, got {2**64}"),
        (["--ema", "0.7"], "keeps averages of decay 0.5, 0.9, not 0.7"),
        (["--class", "wsp"], "no class is called 'wsp'; did you mean 'wasp'?"),
        (["--class", "3"], "no class is called '3'; there are bee, wasp, ant [x]."),
        (["--out", "x.jpg"], "--out x.jpg: give a name that ends in .png or .npz, or a new folder"),
        (["--device", "gpu"], "device must be auto, cpu or cuda, got 'gpu'"),
    ],
)
def test_bad_input_in_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in options else ["--out", "x.png"]
    assert_one_line(tvmatch(capsys, "sample", run, *options, *out), message)
    assert list(tmp_path.iterdir()) == []


def test_bad_places_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for out, message in (
        (tmp_path / "file", "exists; give a name that ends in"),
        (tmp_path / "folder.png", "is a folder that exists"),
        (tmp_path / "file" / "x.png", "Not a directory"),
    ):
        answer = tvmatch(capsys, "sample", run, "--count", "1", "--out", out)
        assert_one_line(answer, message if "directory" not in message else str(tmp_path / "file"))
    assert_one_line(tvmatch(capsys, "sample", tmp_path / "nowhere"), "nowhere; choose another folder")
    assert_one_line(tvmatch(capsys, "sample", tmp_path), "holds no config.yaml, so it is not a run of tvmatch")


@pytest.mark.parametrize("name", ["x.png", "x.npz", "pictures"])
def test_a_full_disk_keeps_what_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    arguments = ("sample", run, "--count", "2", "--out", tmp_path / name)
    if name != "pictures":
        assert tvmatch(capsys, *arguments).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert_one_line(tvmatch(capsys, *arguments, "--seed", "1"), "No space left on device")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_scale_that_was_not_trained_is_warned_of(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "x.png"
    answer = tvmatch(capsys, "sample", run, "--count", "1", "--w", "3", "--out", out)
    assert answer.code == 0
    assert answer.err == (
        "tvmatch sample: warning: w=3 was not seen in training (--guidance 1.5); expect poor samples.\n"
    )
    assert tvmatch(capsys, "sample", run, "--count", "1", "--w", "1.5", "--out", out).err == ""
