import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.data.support import crops, write_folder
from tvmatch.data import DataError, open_source
from tvmatch.data.shards import shard_records


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, count: int = 6, labels: bool = True) -> Path:
    """Shards as the webdataset library writes them, four samples each."""
    folder.mkdir()
    images, numbers = crops(count, 16)
    with webdataset.ShardWriter(str(folder / "train-%03d.tar"), maxcount=4, verbose=0) as writer:
        for index in range(count):
            sample = {"__key__": f"{index:04d}", "png": png(images[index]), "json": b"{}"}
            writer.write(sample | ({"cls": int(numbers[index])} if labels else {}))
    return folder


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_pictures_and_labels_are_found(tmp_path):
    folder = write_shards(tmp_path / "shards")
    source = open_source(str(folder), 16)
    images, labels = crops(6, 16)
    assert source.labels.tolist() == labels.tolist()
    assert source.class_names == ("0", "1")
    np.testing.assert_array_equal(source.batch(np.array([5, 0, 3])), images[[5, 0, 3]])
    assert source.skipped == ()


def test_a_pattern_and_one_file_name_shards(tmp_path):
    folder = write_shards(tmp_path / "shards")
    assert len(open_source(str(folder / "train-{000..001}.tar"), 8)) == 6
    assert len(open_source(str(folder / "train-001.tar"), 8)) == 2
    with pytest.raises(DataError, match=r"there is no .*train-002\.tar \(2 of 4 are missing\)"):
        shard_records(folder / "train-{000..003}.tar")
    for pattern in ("{3..1}", "{0..99999999999}"):
        with pytest.raises(DataError, match=r"shards; 1 to 100000 can be read"):
            shard_records(folder / f"train-{pattern}.tar")


def test_a_quoted_pattern_may_begin_at_home(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source("~/shards/train-{000..001}.tar", 8)) == 6


def test_shards_without_labels_have_no_classes(tmp_path):
    source = open_source(str(write_shards(tmp_path / "shards", labels=False)), 8)
    assert source.num_classes == 0
    assert (source.labels == -1).all()


def test_names_of_classes_lie_beside_the_shards(tmp_path):
    folder = write_shards(tmp_path / "shards")
    (folder / "class_names.txt").write_text("temple\ndahlia\nunused\n")
    assert shard_records(folder).class_names == ("temple", "dahlia", "unused")
    (folder / "class_names.txt").write_text("temple\n")
    with pytest.raises(DataError, match="must hold 2 different names or more"):
        shard_records(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"temple\n\ndahlia\n", r"class_names\.txt, line 2 is empty: each line names one class"),
        (b"\ntemple\ndahlia\n", r"class_names\.txt, line 1 is empty"),
        (b"temple\nd\xe4hlia\n", r"class_names\.txt: cannot be read as text .*save it as UTF-8"),
    ],
)
def test_names_of_classes_that_could_be_those_of_others_are_refused(tmp_path, content, message):
    folder = write_shards(tmp_path / "shards")
    (folder / "class_names.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        shard_records(folder)


def test_names_of_classes_as_windows_writes_them(tmp_path):
    folder = write_shards(tmp_path / "shards")
    (folder / "class_names.txt").write_bytes(b"\xef\xbb\xbftemple\r\ndahlia\r\n\r\n")
    assert shard_records(folder).class_names == ("temple", "dahlia")


def test_a_sample_that_lacks_its_label_is_left_out(tmp_path):
    picture = png(crops(1, 16)[0][0])
    write_tar(tmp_path / "a.tar", {"0.png": picture, "0.cls": b"1", "1.png": picture})
    records = shard_records(tmp_path)
    assert len(records) == 1
    assert records.skipped == (("a.tar/1.png", "no .cls label, which others have"),)
    write_tar(tmp_path / "a.tar", {"0.png": picture, "0.cls": b"1", "1.png": picture, "2.png": picture})
    with pytest.raises(DataError, match=r"2 of 3 samples have no \.cls label, 'a\.tar/1\.png'"):
        shard_records(tmp_path)


@pytest.mark.parametrize("shards", [["0.png", "1.png", "0.cls", "1.cls"], ["0.cls", "1.cls", "0.png", "1.png"]])
def test_labels_that_do_not_lie_beside_their_pictures_are_not_lost(tmp_path, shards):
    picture = png(crops(1, 16)[0][0])
    members = {name: picture if name.endswith("png") else b"1" for name in shards}
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"label 'a\.tar/0\.cls' does not lie beside .*'a\.tar/0\.png'.*--sort=name"):
        shard_records(tmp_path)
    write_tar(tmp_path / "a.tar", dict(sorted(members.items())))
    assert shard_records(tmp_path).labels.tolist() == [1, 1]
    write_tar(tmp_path / "a.tar", {"0.png": picture, "1.png": picture})
    write_tar(tmp_path / "b.tar", {"0.cls": b"0", "1.cls": b"1"})  # nor in another shard
    with pytest.raises(DataError, match=r"label 'b\.tar/0\.cls' does not lie beside"):
        shard_records(tmp_path)


def test_a_label_without_a_picture_anywhere_does_no_harm(tmp_path):
    picture = png(crops(1, 16)[0][0])
    write_tar(tmp_path / "a.tar", {"0.png": picture, "0.cls": b"1", "1.txt": b"no picture", "1.cls": b"0"})
    assert shard_records(tmp_path).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("members", "odd"),
    [
        (["img.v1.png", "img.v1.cls", "jmg.v1.png", "jmg.v1.cls"], "img.v1.cls"),
        (["a.png", "a.label.cls", "b.png", "b.label.cls"], "a.label.cls"),
        (["a.png", "a.cls", "b.x/b.png", "b.x/b.y.CLS"], "b.x/b.y.CLS"),
        (["img.v1.png", "jmg.v1.png", "img.v1.cls", "jmg.v1.cls"], "img.v1.cls"),
    ],
)
def test_labels_with_a_dot_in_their_names_are_not_lost(tmp_path, members, odd):
    picture = png(crops(1, 16)[0][0])
    write_tar(tmp_path / "a.tar", {name: picture if name.endswith("png") else b"1" for name in members})
    with pytest.raises(DataError, match=rf"'{odd}' is no label to WebDataset.*not 'cls'\. Make the shards with names"):
        shard_records(tmp_path)


def test_another_label_beside_that_of_the_class_does_no_harm(tmp_path):
    picture = png(crops(1, 16)[0][0])
    write_tar(tmp_path / "a.tar", {"0.png": picture, "0.coarse.cls": b"0", "0.cls": b"1"})
    assert shard_records(tmp_path).labels.tolist() == [1]


def test_suffixes_may_be_written_large(tmp_path):
    picture = png(crops(1, 16)[0][0])
    write_tar(tmp_path / "a.tar", {"0.PNG": picture, "0.CLS": b"1", "1.png": picture, "1.Cls": b"0"})
    records = shard_records(tmp_path)
    assert (records.labels.tolist(), records.skipped) == ([1, 0], ())


def test_what_a_sample_may_not_be_is_left_out_and_named(tmp_path):
    picture = png(crops(1, 16)[0][0])
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = {
        "good.png": picture,
        "good.cls": b"0\n",
        "two.jpg": picture,
        "two.png": picture,
        "two.cls": b"0",
        "word.png": picture,
        "word.cls": b"cat",
        "huge.png": picture,
        "huge.cls": b"9" * 30,
        "link.png": link,
        "../../up.png": picture,
        "../../up.cls": b"0",
    }
    write_tar(tmp_path / "a.tar", members)
    before = sorted(tmp_path.parent.rglob("*"))
    records = shard_records(tmp_path)
    assert [records.name(n) for n in range(len(records))] == ["a.tar/good.png", "a.tar/../../up.png"]
    assert {name: reason.split(":")[0] for name, reason in records.skipped} == {
        "a.tar/two": "2 pictures in one sample",
        "a.tar/word.cls": "no class number from 0",
        "a.tar/huge.cls": "no class number from 0",
        "a.tar/link.png": "no plain file",
    }
    assert records.read(1) == picture  # a name is a name: nothing is written anywhere
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("cut", [10, 700, 1300])
def test_a_shard_that_is_cut_short_gives_what_lies_before(tmp_path, cut):
    folder = write_shards(tmp_path / "shards", labels=False)
    whole = (folder / "train-001.tar").read_bytes()
    (folder / "train-001.tar").write_bytes(whole[:cut])
    records = shard_records(folder)
    assert len(records) == 4  # of the other shard; the cut goes through the first picture of this one
    assert any(name.startswith("train-001.tar") for name, _ in records.skipped)


def test_a_folder_without_any_sample_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"hold no picture; left out were 1 file: 'a\.tar' \(no tar file, or damaged"):
        open_source(str(tmp_path), 8)


def test_records_open_their_files_again_in_another_process(tmp_path):
    records = shard_records(write_shards(tmp_path / "shards"))
    content = records.read(4)
    copy = pickle.loads(pickle.dumps(records))
    assert copy._open == {}
    assert copy.read(4) == content


def test_a_size_is_required(tmp_path):
    with pytest.raises(DataError, match=r"image_size is required.*--image-size 256"):
        open_source(str(write_shards(tmp_path / "shards")))


def test_a_shard_beside_class_folders_does_not_take_their_place(tmp_path):
    root = write_folder(tmp_path / "pictures")
    picture = png(crops(1, 16)[0][0])
    write_tar(root / "backup.tar", {"0.png": picture})
    with pytest.raises(DataError, match=r"holds both 'backup\.tar' and '(china|flower)/.*png'.*give '.*backup\.tar'"):
        open_source(str(root), 16)
    assert len(open_source(str(root / "backup.tar"), 16)) == 1


def test_shards_of_several_splits_are_not_mixed(tmp_path):
    for number, name in enumerate(["train-000", "train-001", "test-000"]):
        write_tar(tmp_path / f"{name}.tar", {f"{number}.png": png(crops(3, 16)[0][number])})
    with pytest.raises(DataError, match=r"shards are of several splits: 'test-000\.tar' \(test\), 'train-000\.tar'"):
        open_source(str(tmp_path), 16)
    with pytest.raises(DataError, match=r"one with a pattern, such as .*/train-\{000\.\.099\}\.tar, or give one f"):
        open_source(str(tmp_path), 16)
    assert len(open_source(str(tmp_path / "train-{000..001}.tar"), 16)) == 2  # the remedies
    assert len(open_source(str(tmp_path / "test-000.tar"), 16)) == 1
    (tmp_path / "test-000.tar").rename(tmp_path / "part.tar")
    assert len(open_source(str(tmp_path), 16)) == 3
