from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvmatch.pictures import captioned, enlarge, save_png, tile


def test_tile_puts_pictures_row_by_row_on_white() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(4, 2)  # 5 grey of 3 x 4
    sheet = tile(pictures, columns=2)
    assert sheet.shape == (3 * 5, 2 * 6, 3)
    for index in range(5):
        top, left = index // 2 * 5, index % 2 * 6
        assert (sheet[top : top + 3, left : left + 4] == index).all()
        assert (sheet[top + 3 : top + 5, left : left + 6] == 255).all()
    assert (sheet[10:, 6:] == 255).all()  # the place of a sixth


def test_tile_keeps_colours() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3), np.uint8)
    assert (tile(picture, 1)[:2, :2] == picture[0]).all()


def test_enlarge_repeats_pixels_and_never_shrinks() -> None:
    sheet = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarge(sheet, target=32, side=8)
    assert large.shape == (8, 8, 3)
    assert (large[::4, ::4] == sheet).all()
    assert (large[3, 3] == sheet[0, 0]).all()
    assert (enlarge(sheet, target=32, side=256) == sheet).all()


def test_captioned_places_the_blocks_side_by_side() -> None:
    black, grey = np.zeros((30, 100, 3), np.uint8), np.full((30, 80, 3), 128, np.uint8)
    picture = np.asarray(captioned([("one", black), ("two\nlines", grey)], ["first", "second"]))
    rows = picture[44:]
    assert rows.shape[0] == 30
    assert (rows == 0).all(-1).sum() > 3000 - 1  # the black block, and text
    assert (rows == 128).all(-1).any()
    left = int(np.argmax((rows == 128).all(-1).all(0)))
    assert (picture[44:, left : left + 80] == 128).all()
    assert (picture[44:, left - 14 - 100 : left - 14] == 0).all()
    assert (picture[:44] != 255).any()  # the captions


def test_captioned_needs_equal_heights() -> None:
    blocks = [("a", np.zeros((3, 3, 3), np.uint8)), ("b", np.zeros((4, 3, 3), np.uint8))]
    with pytest.raises(ValueError, match=r"the same height, got \[3, 4\]"):
        captioned(blocks)
    with pytest.raises(ValueError, match="the same height"):
        captioned([])


@pytest.mark.parametrize("name", ["two\nlines", "\udcff", "x" * 500, "\x00", "", "ü [b] 猫"])
def test_any_class_name_can_be_drawn(name: str) -> None:
    picture = captioned([("c", np.zeros((20, 20, 3), np.uint8))], [name])
    assert picture.width < 400


def test_save_png_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "v1.5 x.png"
    save_png(np.zeros((2, 2), np.uint8), path)
    save_png(Image.new("RGB", (3, 3), "white"), path)
    with Image.open(path) as picture:
        assert (picture.size, picture.format) == ((3, 3), "PNG")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_save_png_keeps_the_old_picture_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x.png"
    save_png(np.zeros((2, 2), np.uint8), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_png(np.ones((2, 2), np.uint8), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]
