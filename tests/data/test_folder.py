import logging

import numpy as np
import pytest
from PIL import Image

from tvmatch.data import DataError, folder_source, open_source
from tvmatch.data.opening import open_pictures


def picture(path, colour="red", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def noise(path, size=64):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def damage(folder) -> dict[str, str]:
    """One file of each kind that cannot be used, and the reason that must be given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.jpg").write_text("I am no picture")
    (folder / "zero.png").touch()
    for name in ("cut.png", "cut.jpg", "cut.gif", "cut.bmp", "cut.webp"):
        noise(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("about these pictures")
    return {
        "text.jpg": "not a picture",
        "zero.png": "empty file",
        "cut.png": "truncated",
        "cut.jpg": "truncated",
        "cut.gif": "",
        "cut.bmp": "truncated",
        "cut.webp": "",
        "notes.txt": "suffix",
    }


def test_sub_folders_are_classes_in_sorted_order(tmp_path):
    for name, colour in (("cat", "red"), ("ant", "lime"), ("bee", "blue")):
        picture(tmp_path / name / "1.png", colour)
        picture(tmp_path / name / "2.PNG", colour)
    source = open_source(str(tmp_path))
    assert source.class_names == ("ant", "bee", "cat")
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.shape == (3, 8, 8)
    assert source.batch(np.array([0, 2, 4]))[:, 0, 0].tolist() == [[0, 255, 0], [0, 0, 255], [255, 0, 0]]
    assert source.skipped == ()


def test_pictures_directly_in_the_folder_have_no_class(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.png", "blue")
    source = open_source(str(tmp_path), image_size=4)
    assert source.num_classes == 0
    assert source.labels.tolist() == [-1, -1]
    assert source.shape == (3, 4, 4)
    assert source.images[:, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0]]


def test_unusable_files_are_skipped_counted_and_named_in_one_warning(tmp_path, caplog):
    picture(tmp_path / "flower" / "a.png", "blue")
    picture(tmp_path / "flower" / "z.png", "lime")
    reasons = damage(tmp_path / "flower")
    with caplog.at_level(logging.WARNING, "tvmatch"):
        source = folder_source(tmp_path, image_size=8)
    assert source.images[:, 0, 0].tolist() == [[0, 0, 255], [0, 255, 0]]
    assert source.labels.tolist() == [0, 0]
    skipped = dict(source.skipped)
    assert skipped.keys() == {f"flower/{name}" for name in reasons}
    for name, reason in reasons.items():
        assert reason in skipped[f"flower/{name}"]
    assert len(caplog.records) == 1
    message = caplog.text
    assert f"skipped {len(reasons)} files" in message
    assert "--strict makes this an error" in message
    assert all(f"flower/{name}" in message for name in reasons)


def test_labels_stay_with_their_pictures_when_files_are_skipped(tmp_path):
    picture(tmp_path / "ant" / "b.png", "red")
    picture(tmp_path / "bee" / "b.png", "blue")
    picture(tmp_path / "bee" / "c.png", "blue")
    (tmp_path / "ant" / "a.png").touch()
    source = folder_source(tmp_path)
    assert source.labels.tolist() == [0, 1, 1]
    assert (source.images[:, 0, 0, 2] > 0).tolist() == [False, True, True]


def test_strict_makes_one_error_that_names_them(tmp_path):
    picture(tmp_path / "flower" / "a.png")
    reasons = damage(tmp_path / "flower")
    with pytest.raises(DataError, match=f"{len(reasons)} files") as caught:
        open_source(str(tmp_path), image_size=8, strict=True)
    assert all(name in str(caught.value) for name in reasons)


def test_strict_accepts_a_clean_folder(tmp_path, caplog):
    picture(tmp_path / "a.png")
    (tmp_path / ".DS_Store").write_text("hidden")
    (tmp_path / ".cache").mkdir()
    with caplog.at_level(logging.WARNING, "tvmatch"):
        assert len(folder_source(tmp_path, strict=True)) == 1
    assert not caplog.records


def test_a_long_list_is_cut_after_ten_names(tmp_path, caplog):
    picture(tmp_path / "good.png")
    for number in range(14):
        (tmp_path / f"bad{number:02}.png").touch()
    with caplog.at_level(logging.WARNING, "tvmatch"):
        source = folder_source(tmp_path)
    assert len(source.skipped) == 14
    assert "skipped 14 files" in caplog.text
    assert "bad09.png" in caplog.text
    assert "bad10.png" not in caplog.text
    assert "and 4 more" in caplog.text


def test_names_that_would_break_a_line_are_escaped(tmp_path, caplog):
    picture(tmp_path / "good.png")
    (tmp_path / "two\nlines\x1b[31m.png").touch()
    with caplog.at_level(logging.WARNING, "tvmatch"):
        folder_source(tmp_path)
    assert "two\\nlines\\x1b[31m.png" in caplog.messages[0]


def test_a_decompression_bomb_is_skipped(tmp_path, monkeypatch):
    picture(tmp_path / "good.png")
    picture(tmp_path / "bomb.png", size=(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    source = folder_source(tmp_path, image_size=8)
    assert len(source) == 1
    assert "300 x 300 pixels" in dict(source.skipped)["bomb.png"]


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        open_source(str(tmp_path), image_size=8)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        open_source(str(tmp_path), image_size=8)


def test_a_folder_of_nothing_usable_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(DataError, match=r"no file can be used.*notes\.txt.*suffix"):
        open_source(str(tmp_path))
    (tmp_path / "zero.png").touch()
    for size in (8, None):
        with pytest.raises(DataError, match=r"no file can be used.*zero\.png.*empty file"):
            open_source(str(tmp_path), size)


def test_a_class_left_empty_is_refused(tmp_path):
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="class folder 'dog' holds no usable picture; fill it or remove it"):
        open_source(str(tmp_path))
    (tmp_path / "dog" / "zero.png").touch()
    with pytest.raises(DataError, match=r"'dog' holds no usable picture \(1 file: 'dog/zero\.png' \(empty file\)\)"):
        open_source(str(tmp_path))


def test_ambiguous_layouts_are_refused(tmp_path):
    picture(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(DataError, match=r"'train' holds a sub-folder 'cat'.*give .*train"):
        open_source(str(tmp_path))
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"both pictures \('a\.png', 1 in all\) and sub-folders \('train', 1 in all\)"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val", "test"), ("train",)])
def test_splits_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "a.png")
    for opening in (open_source, open_pictures):
        with pytest.raises(DataError, match=rf"splits by their names, not classes: .*such as '.*{names[0]}'\."):
            opening(str(tmp_path), 8)
    assert open_source(str(tmp_path / names[0]), 8).num_classes == 0  # the remedies
    (tmp_path / "class_names.txt").write_text("".join(f"{name} {name} set\n" for name in names))
    assert open_source(str(tmp_path), 8).class_names == tuple(f"{name} set" for name in sorted(names))
    (tmp_path / "class_names.txt").unlink()
    picture(tmp_path / "bus" / "a.png")
    assert "bus" in open_source(str(tmp_path), 8).class_names  # beside others they are classes


def test_image_size_may_be_left_out_only_when_all_pictures_share_it(tmp_path):
    picture(tmp_path / "a.png", size=(12, 8))
    with pytest.raises(DataError, match=r"image_size is required.*12 x 8"):
        open_source(str(tmp_path))
    picture(tmp_path / "a.png", size=(8, 8))
    picture(tmp_path / "b.png", size=(9, 9))
    with pytest.raises(DataError, match=r"image_size is required.*there are 2"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), image_size=8).shape == (3, 8, 8)


def test_enlarging_and_dropped_frames_are_said(tmp_path, caplog):
    picture(tmp_path / "small.png", size=(4, 4))
    picture(tmp_path / "large.png", size=(16, 16))
    frames = [Image.new("L", (8, 8), level) for level in (0, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, "tvmatch"):
        folder_source(tmp_path, image_size=8)
    assert "1 of 3 pictures are smaller than 8 pixels and were enlarged" in caplog.text
    assert "1 pictures hold several frames" in caplog.text


def test_links_are_followed_only_inside(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    picture(root / "cat" / "a.png")
    picture(outside / "secret.png", "blue")
    (root / "cat" / "same.png").symlink_to(root / "cat" / "a.png")
    (root / "cat" / "secret.png").symlink_to(outside / "secret.png")
    (root / "cat" / "gone.png").symlink_to(root / "nothing.png")
    (root / "cat" / "loop.png").symlink_to(root / "cat" / "loop.png")
    source = folder_source(root)
    assert len(source) == 2
    assert (source.images[..., 0] == 255).all()
    reasons = dict(source.skipped)
    assert "leaves the folder" in reasons["cat/secret.png"]
    assert "link to nothing" in reasons["cat/gone.png"]
    assert "link to nothing" in reasons["cat/loop.png"]
    (root / "dog").symlink_to(outside)
    with pytest.raises(DataError, match=r"class folder 'dog' .*a link to a folder, which is not followed"):
        folder_source(root)


def test_the_folder_itself_may_be_a_link(tmp_path):
    picture(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(folder_source(tmp_path / "link")) == 1


def test_what_does_not_fit_into_memory_is_refused_before_decoding(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setattr("tvmatch.data.memory.available_memory", lambda: 2**30)
    with pytest.raises(DataError, match=r"1 pictures of 30000 x 30000 pixels need 2\.5 GiB .* only 1\.0 GiB"):
        folder_source(tmp_path, image_size=30000)


def test_many_pictures_keep_their_order(tmp_path):
    for number in range(150):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number:03}.png")
        if number % 7 == 0:
            (tmp_path / f"{number:03}a.png").touch()
    source = folder_source(tmp_path)
    assert source.images[:, 0, 0, 0].tolist() == list(range(150))
    assert len(source.skipped) == 22
