"""Three hundred hostile files: none crashes a run, none is silently trained on, none writes outside the target."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.hostile import broken_exif, hostile_pictures, hostile_shards, picture
from tests.data.test_encoding import encode
from tests.data.test_shards import write_tar
from tvmatch.data import (
    DataError,
    Prefetcher,
    ShuffledStream,
    StreamedSource,
    folder_source,
    open_pictures,
    open_source,
)
from tvmatch.data.codecs import open_codec
from tvmatch.data.decoding import decode
from tvmatch.data.latents import LatentsSource
from tvmatch.data.listing import folder_records

SIZE = 24
COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 hostile pictures among three good ones, each of one colour."""
    folder = tmp_path_factory.mktemp("hostile") / "pictures"
    folder.mkdir()
    for name, content in hostile_pictures():
        assert not (folder / name).exists()
        (folder / name).write_bytes(content)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (SIZE, SIZE), colour).save(folder / f"good_{number}.png")
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_written_elsewhere(tmp_path, monkeypatch):
    """The working folder and all above the data stay as they were."""
    here = tmp_path / "working folder"
    here.mkdir()
    monkeypatch.chdir(here)
    passwords = os.stat("/etc/passwd").st_mtime_ns
    yield
    assert not list(here.iterdir())
    assert not list(tmp_path.parent.rglob("escape*"))
    assert not list(tmp_path.parent.rglob("hacked*"))
    assert not Path("/tmp/escape.png").exists()
    assert os.stat("/etc/passwd").st_mtime_ns == passwords


def colours(pictures: np.ndarray) -> set[tuple[int, ...]]:
    """The colours in pictures of one colour each."""
    assert (pictures == pictures[:, :1, :1]).all()
    return {tuple(picture[0, 0].tolist()) for picture in pictures}


def test_there_are_three_hundred():
    assert len(list(hostile_pictures())) + len(list(broken_exif())) + len(list(hostile_shards(b""))) == 300


def test_a_folder_in_memory_keeps_the_good_ones_and_names_the_rest(root):
    source = folder_source(root, SIZE)
    assert colours(source.images) == set(COLOURS)
    assert len(source.skipped) == 240
    with pytest.raises(DataError, match="240 files"):
        folder_source(root, SIZE, strict=True)


def test_a_streamed_folder_never_gives_a_hostile_picture(root):
    with StreamedSource(folder_records(root), SIZE, workers="threads") as source:
        with Prefetcher(source, ShuffledStream(len(source), 32, 0), flip=True) as batches:
            for _ in range(20):  # 640 pictures, so that all 243 come
                assert colours(next(batches)[0].numpy()) <= set(COLOURS)
        assert len(source.skipped) == 240
    with open_pictures(str(root), SIZE, strict=True) as reader, pytest.raises(DataError, match="cannot be used"):
        reader.read(np.arange(len(reader)))


def test_encoding_keeps_the_good_ones_and_names_the_rest(root, tmp_path):
    with open_pictures(str(root), SIZE) as reader:
        manifest = encode(reader, tmp_path / "out", open_codec("pixels"), shard_size=100)
    assert manifest["pictures"] == {"in_the_source": 243, "encoded": 3, "skipped": 240}
    assert len(LatentsSource(tmp_path / "out")) == 3


def test_broken_metadata_never_changes_a_picture(tmp_path):
    (tmp_path / "clean.jpg").write_bytes(picture("jpg"))
    clean = decode(tmp_path / "clean.jpg", SIZE)[0]
    (tmp_path / "exif").mkdir()
    (tmp_path / "exif" / "good.jpg").write_bytes(picture("jpg"))
    for name, content in broken_exif():
        (tmp_path / "exif" / name).write_bytes(content)
    source = folder_source(tmp_path / "exif", SIZE)
    assert len(source) + len(source.skipped) == 21
    assert all(np.array_equal(image, clean) for image in source.images)


def test_shards_give_the_good_ones_and_name_the_rest(tmp_path):
    good = picture("png")
    (tmp_path / "shards").mkdir()
    for name, content in hostile_shards(good):
        (tmp_path / "shards" / name).write_bytes(content)
    for number in range(9):
        write_tar(tmp_path / "shards" / f"good_{number}.tar", {"a.png": good, "a.cls": b"0"})
    with open_source(str(tmp_path / "shards"), SIZE) as source:
        expected = decode(good, SIZE)[0]
        for image in source.batch(np.arange(len(source))):
            np.testing.assert_array_equal(image, expected)
        assert len({name.split("/")[0] for name, _ in source.skipped}) >= 30


@pytest.mark.parametrize("name", ["cut_1.tar", "noise_0.tar", "size_2.tar"])
def test_a_hostile_shard_alone_is_one_clear_error(tmp_path, name):
    (tmp_path / name).write_bytes(dict(hostile_shards(picture("png")))[name])
    with pytest.raises(DataError, match="the shards hold no picture; left out were"):
        open_source(str(tmp_path / name), SIZE)
