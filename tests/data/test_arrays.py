import pickle
import zipfile

import numpy as np
import pytest

from tvmatch.data import DataError, open_source, source_from_arrays
from tvmatch.data import memory as memory_module

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


def save(tmp_path, **arrays) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def refused(tmp_path, message, **arrays):
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_source(path)
    assert path in str(caught.value)


def test_images_labels_and_names_come_back(tmp_path):
    labels = np.array([0, 3, 1, 1, 3, 0], np.uint8)  # class 2 has no picture: allowed
    source = open_source(save(tmp_path, images=IMAGES, labels=labels, class_names=np.array(["a", "b", "c", "d"])))
    assert source.shape == (3, 4, 4)
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 3, 1, 1, 3, 0]
    assert source.class_names == ("a", "b", "c", "d")
    assert source.num_classes == 4
    np.testing.assert_array_equal(source.batch(np.array([5, 0])), IMAGES[[5, 0]])


def test_without_labels_there_are_no_classes(tmp_path):
    source = open_source(save(tmp_path, images=IMAGES[..., 0]))
    assert source.shape == (1, 4, 4)
    assert source.num_classes == 0
    assert source.labels.tolist() == [-1] * 6


def test_without_names_classes_are_numbers(tmp_path):
    assert open_source(save(tmp_path, images=IMAGES, labels=np.arange(6))).class_names == tuple("012345")


def test_the_memory_order_of_the_file_does_not_matter(tmp_path):
    plain = open_source(save(tmp_path, images=IMAGES)).fingerprint
    assert open_source(save(tmp_path, images=np.asfortranarray(IMAGES))).fingerprint == plain


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_flat_colours_and_place(tmp_path, channels):
    images = np.full((2, 8, 8, channels), 200, np.uint8)
    images[1, :, :4] = 0  # dark on the left
    source = open_source(save(tmp_path, images=images), image_size=4)
    assert source.shape == (channels, 4, 4)
    assert (source.images[0] == 200).all()
    assert source.images[1, :, 0].max() < 20
    assert source.images[1, :, 3].min() > 180


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32) / 255, r"uint8.*float32.*\(images \* 255\)"),
        (IMAGES.astype(np.float32) / 127.5 - 1, r"uint8.*\(\(images \+ 1\) \* 127\.5\)"),
        (IMAGES.astype(np.float64), r"uint8.*float64.*clip\(0, 255\)"),
        (np.full((2, 4, 4), np.nan), "NaN or infinity"),
        (np.full((2, 4, 4), np.inf), "NaN or infinity"),
        (IMAGES.astype(np.int64), r"astype\(np\.uint8\)"),
        (IMAGES.astype(np.int64) - 128, "scale them to 0..255"),
        (IMAGES > 100, r"bool.*\* 255"),
        (np.array(["a", "b"]), "must be uint8"),
        (IMAGES[0, 0], r"shape \[N, H, W, C\].*got \[4, 3\]"),
        (IMAGES[None], r"got \[1, 6, 4, 4, 3\]"),
        (IMAGES[:0], "no pictures"),
        (IMAGES[:, :3], r"square, got 3 x 4.*images\[:, 0:3, 0:3\]"),
        (IMAGES.transpose(0, 3, 1, 2), r"\[N, C, H, W\].*transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "1 channel .* or 3 .*, got 4"),
    ],
)
def test_wrong_images_are_refused_with_the_remedy(tmp_path, images, message):
    refused(tmp_path, message, images=images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(6.0), r"integers from 0, got float64.*astype"),
        (np.arange(6) > 2, "got bool"),
        (np.arange(5), r"shape \[6\].*got \[5\]"),
        (np.eye(6, dtype=np.int64), r"got \[6, 6\]"),
        (np.arange(6) - 1, "0 or more, got -1"),
        (np.arange(6) + 10**9, "1000000006 classes"),
        (np.array([2**64 - 1] * 6, np.uint64), "number them from 0"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, message):
    refused(tmp_path, message, images=IMAGES, labels=labels)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.array(["a", "b"]), "2 `class_names`, but the labels run up to 2"),
        (np.array([1, 2, 3]), "must be strings"),
        (np.array(["a", "b", "a"]), "'a' is given twice"),
    ],
)
def test_wrong_class_names_are_refused(tmp_path, names, message):
    refused(tmp_path, message, images=IMAGES, labels=np.arange(6) % 3, class_names=names)


def test_class_names_without_labels_are_refused(tmp_path):
    refused(tmp_path, "`class_names` without `labels`", images=IMAGES, class_names=np.array(["a"]))


def test_missing_and_misspelt_arrays_are_named(tmp_path):
    refused(tmp_path, "no array `images`, only 'pictures', 'labels'", pictures=IMAGES, labels=np.arange(6))
    refused(tmp_path, "unknown array 'label' .did you mean 'labels'", images=IMAGES, label=np.arange(6))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_python_objects_are_never_loaded(tmp_path):
    refused(tmp_path, "'labels' holds Python objects", images=IMAGES, labels=np.array([Bomb()] * 6, object))
    path = tmp_path / "pickle.npz"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="is a pickle, which is never loaded"):
        open_source(str(path))


def test_files_that_are_no_npz_are_told_apart(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        open_source(str(path))
    path.write_text("not at all")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        open_source(str(path))
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match=r"single \.npy array"):
        open_source(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"raw bytes")
    with pytest.raises(DataError, match="'images' is not an array"):
        open_source(str(path))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_short_or_damaged_is_refused(tmp_path, compressed):
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, images=IMAGES, labels=np.arange(6))
    whole = path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut short or damaged"):
            open_source(str(path))
    for place in (150, 200, 300):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cut short or damaged"):
            open_source(str(path))


def test_what_does_not_fit_into_memory_is_refused_before_reading(tmp_path, monkeypatch):
    path = save(tmp_path, images=IMAGES)
    monkeypatch.setattr("tvmatch.data.memory.available_memory", lambda: 100)
    with pytest.raises(DataError, match=r"need .* GiB of memory, but only"):
        open_source(path)
    with pytest.raises(DataError, match="6 pictures of 64 pixels need"):
        source_from_arrays(IMAGES, image_size=64)


def test_the_available_memory_is_a_sane_number():
    assert 2**26 < memory_module.available_memory() < 2**50
