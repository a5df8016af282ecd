import numpy as np
import pytest
import torch

from tvmatch.data import DataError, open_source, to_pictures, to_unit_range
from tvmatch.data.in_memory import InMemorySource
from tvmatch.data.source import contents


def test_every_grey_level_survives_the_round_trip():
    pictures = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    x = to_unit_range(pictures)
    assert x.shape == (2, 3, 16, 16)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_pictures(x), pictures)
    assert torch.equal(to_pictures(x.double()), pictures)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "4 pictures without classes"),
        (("cat",), "4 pictures in 1 class: 'cat'"),
        (("cat", "dog", "eel"), "4 pictures in 3 classes: 'cat', 'dog', 'eel'"),
        (("cat", "dog", "eel", "fox"), "4 pictures in 4 classes: 'cat', 'dog', 'eel', ..."),
    ],
)
def test_what_a_data_set_holds_is_told_in_one_line(names, told):
    labels = np.arange(4) % len(names) if names else np.full(4, -1)
    assert contents(InMemorySource(np.zeros((4, 8, 8, 3), np.uint8), labels, names, ())) == told


def test_axes_are_moved_not_reshaped():
    pictures = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    x = to_unit_range(pictures)
    assert x[1, 2, 3, 4] == pictures[1, 3, 4, 2].float() / 127.5 - 1


def test_pictures_are_clamped_and_rounded():
    x = torch.tensor([-3.0, 3.0, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1]).reshape(1, 1, 2, 2)
    assert to_pictures(x).flatten().tolist() == [0, 255, 1, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_have_no_colour(bad):
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 1] = bad
    with pytest.raises(ValueError, match="1 of 3 samples hold NaN or infinity"):
        to_pictures(x)


def test_wrong_types_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must be uint8.*float32"):
        to_unit_range(torch.zeros(1, 2, 2, 1))
    with pytest.raises(ValueError, match=r"\[B, H, W, C\], got \[2, 2, 1\]"):
        to_unit_range(torch.zeros(2, 2, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"floating point.*uint8"):
        to_pictures(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[B, C, H, W\], got \[2, 2\]"):
        to_pictures(torch.zeros(2, 2))


@pytest.mark.parametrize("spec", ["digit", "Digits", "digts"])
def test_a_typo_of_digits_says_what_was_meant(spec):
    with pytest.raises(DataError, match="did you mean `digits`"):
        open_source(spec)


def test_a_missing_path_is_named_with_its_neighbour(tmp_path):
    (tmp_path / "flowers.npz").touch()
    with pytest.raises(DataError, match=r"no such file or folder: .*flower\.npz.*Did you mean .*flowers\.npz"):
        open_source(str(tmp_path / "flower.npz"))
    with pytest.raises(DataError, match=r"there is no folder .*absent"):
        open_source(str(tmp_path / "absent" / "flower.npz"))
    with pytest.raises(DataError, match="empty"):
        open_source("")


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    with pytest.raises(DataError, match=r"not an \.npz"):
        open_source(str(path))


@pytest.mark.parametrize("size", [0, -8, 8.0, True, "8"])
def test_a_wrong_image_size_is_refused(size):
    with pytest.raises(DataError, match="image_size must be a whole number"):
        open_source("digits", image_size=size)


def test_specs_open_what_they_name(tmp_path):
    np.savez(tmp_path / "some.npz", images=np.zeros((2, 4, 4), np.uint8))
    assert open_source("digits").shape == (1, 8, 8)
    assert open_source("digits", image_size=16).shape == (1, 16, 16)
    assert open_source(str(tmp_path / "some.npz")).shape == (1, 4, 4)
