import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.data.deadly import Deadly
from tests.data.support import write_folder
from tvmatch.data import DataError, Prefetcher, ShuffledStream, StreamedSource, open_source
from tvmatch.data.decoding import decode
from tvmatch.data.listing import folder_records
from tvmatch.data.resizing import random_square


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "pictures", 6, 16)


def streamed(root, size=8, **options) -> StreamedSource:
    return StreamedSource(folder_records(root), size, workers="threads", **options)


def test_pictures_are_those_of_the_decoder(root):
    source = streamed(root)
    assert (len(source), source.shape, source.class_names) == (6, (3, 8, 8), ("china", "flower"))
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    batch = source.batch(np.array([5, 0, 5]), np.array([False, False, True]))
    np.testing.assert_array_equal(batch[0], decode(root / "flower" / "005.png", 8)[0])
    np.testing.assert_array_equal(batch[1], decode(root / "china" / "000.png", 8)[0])
    np.testing.assert_array_equal(batch[2], batch[0][:, ::-1])


def test_processes_decode_the_same_as_threads(root):
    indices, seeds = np.arange(6).repeat(4), np.arange(24)
    threads = streamed(root, crop="random")
    with StreamedSource(folder_records(root), 8, "random", workers="processes", count=2) as processes:
        np.testing.assert_array_equal(processes.batch(indices, None, seeds), threads.batch(indices, None, seeds))


def test_a_random_crop_depends_on_its_seed_alone(root):
    source = streamed(root, crop="random")
    first = source.batch(np.zeros(20, np.int64), None, np.arange(20))
    np.testing.assert_array_equal(first, source.batch(np.zeros(20, np.int64), None, np.arange(20)))
    assert len({picture.tobytes() for picture in first}) > 10
    with pytest.raises(ValueError, match="need `seeds`"):
        source.batch(np.arange(2))


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (20, 20), (1, 7)])
def test_random_squares_lie_inside_and_reach_every_edge(shape):
    width, height = shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([columns, rows, np.full_like(rows, 200)], -1).astype(np.uint8))
    squares = np.stack([np.asarray(random_square(image, 20, seed)) for seed in range(300)])
    assert (squares[..., 2] == 200).all()  # nothing from outside
    lows, highs = squares[..., :2].min((0, 1, 2)), squares[..., :2].max((0, 1, 2))
    assert (lows <= 1).all()
    assert (highs >= [width - 2, height - 2]).all()


def test_another_of_its_class_stands_in_for_a_broken_picture(root, caplog):
    (root / "china" / "002.png").write_bytes(b"broken")
    (root / "flower" / "005.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, "tvmatch"), streamed(root) as source:
        for _ in range(2):  # found out, then known
            batch = source.batch(np.array([1, 5, 4]))
            np.testing.assert_array_equal(batch[0], decode(root / "china" / "004.png", 8)[0])
            np.testing.assert_array_equal(batch[1], decode(root / "flower" / "001.png", 8)[0])
            np.testing.assert_array_equal(batch[2], decode(root / "flower" / "003.png", 8)[0])
        assert [name for name, _ in source.skipped] == ["china/002.png", "flower/005.png"]
        assert not caplog.text
    assert "2 files: 'china/002.png' (not a picture, or of an unknown format), 'flower/005.png'" in caplog.text


def test_strict_ends_at_the_first_broken_picture(root):
    (root / "china" / "002.png").write_bytes(b"broken")
    source = streamed(root, strict=True)
    source.batch(np.array([0, 2]))
    with pytest.raises(DataError, match=r"'china/002\.png' cannot be used \(not a picture.*--no-strict"):
        source.batch(np.array([1]))


def test_a_class_without_any_usable_picture_ends_the_run(root):
    for path in (root / "flower").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="no picture of class 'flower' can be used: 3 files"):
        streamed(root).batch(np.arange(6))


def test_a_file_that_vanishes_is_skipped_too(root):
    source = streamed(root)
    (root / "china" / "000.png").unlink()
    np.testing.assert_array_equal(source.batch(np.array([0])), source.batch(np.array([1])))
    assert "No such file" in dict(source.skipped)["china/000.png"]


def test_reading_in_order_gives_reasons_and_no_stand_in(root):
    (root / "china" / "002.png").write_bytes(b"broken")
    results = streamed(root).read(np.arange(3))
    assert results[1] == "not a picture, or of an unknown format"
    np.testing.assert_array_equal(results[2], decode(root / "china" / "004.png", 8)[0])


def test_ranks_and_later_starts_see_the_same_pictures(root):
    source = streamed(root, crop="random")

    def batches(start: int, rank: int = 0, ranks: int = 1):
        with Prefetcher(source, ShuffledStream(6, 4, 7, rank, ranks), start, flip=True) as ready:
            return [next(ready)[0].numpy() for _ in range(start, 5)]

    alone = batches(0)
    for whole, parts in zip(alone, zip(batches(0, 0, 2), batches(0, 1, 2), strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for ours, theirs in zip(batches(3), alone[3:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_fingerprint_tells_data_sets_apart(root):
    fingerprint = streamed(root).fingerprint
    assert fingerprint == streamed(root).fingerprint
    assert fingerprint != streamed(root, size=9).fingerprint
    assert fingerprint != streamed(root, crop="random").fingerprint
    (root / "china" / "000.png").rename(root / "china" / "0.png")
    assert fingerprint != streamed(root).fingerprint


def test_a_large_folder_is_streamed_a_small_one_kept(root, monkeypatch):
    assert not isinstance(open_source(str(root), 8), StreamedSource)
    assert isinstance(open_source(str(root), 8, crop="random"), StreamedSource)
    monkeypatch.setattr("tvmatch.data.opening.IN_MEMORY", 6 * 8 * 8 * 3 - 1)
    assert isinstance(open_source(str(root), 8), StreamedSource)


def test_a_decoder_that_dies_names_the_pictures():
    with (
        StreamedSource(Deadly(), 8, workers="processes", count=1) as source,
        pytest.raises(DataError, match=r"a decoding process died .*'picture 0', 'picture 1'"),
    ):
        source.batch(np.arange(20))


def test_class_folders_may_have_names_beside_them(root):
    (root / "class_names.txt").write_text("china temple, pagoda\nflower dahlia, garden plant\nother thing\n")
    assert streamed(root).class_names == ("temple", "dahlia")
    assert open_source(str(root), 8).class_names == ("temple", "dahlia")
    (root / "class_names.txt").write_text("china crane, bird\nflower crane, machine\n")
    assert streamed(root).class_names == ("crane, bird", "crane, machine")
    for text, message in (
        ("china temple\n", "no line for class folder 'flower'"),
        ("china\nflower dahlia", r"line 1: 'china' must be"),
        ("china a\nchina b\nflower c", "'china' is named twice"),
        ("china x\nflower x", "two class folders are called 'x'"),
    ):
        (root / "class_names.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            streamed(root)


def test_records_travel_to_processes(root):
    records = pickle.loads(pickle.dumps(folder_records(root)))
    assert [records.name(n) for n in range(2)] == ["china/000.png", "china/002.png"]


def test_nothing_is_said_to_stand_in_for_what_was_only_read(root, caplog):
    (root / "china" / "002.png").write_bytes(b"broken")
    (root / "flower" / "005.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, "tvmatch"), streamed(root) as source:
        assert [n for n, result in enumerate(source.read(np.arange(6))) if isinstance(result, str)] == [1, 5]
        assert [name for name, _ in source.skipped] == ["china/002.png", "flower/005.png"]
        assert source.unusable == ()
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "tvmatch"), streamed(root) as source:
        source.read(np.arange(6))
        np.testing.assert_array_equal(source.batch(np.array([1]))[0], decode(root / "china" / "004.png", 8)[0])
        assert [name for name, _ in source.skipped] == ["china/002.png", "flower/005.png"]
        assert source.unusable == (1,)
    assert "1 file: 'china/002.png'" in caplog.text
