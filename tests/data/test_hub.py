import io
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.data.support import crops
from tvmatch.data import DataError, open_source
from tvmatch.data.hub import table_records
from tvmatch.data.opening import open_pictures


@pytest.fixture(autouse=True)
def _no_internet_and_a_cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in ("HF_DATASETS_CACHE", "HF_CACHE_HOME"):
        monkeypatch.setattr(f"datasets.config.{name}", tmp_path / "cache", raising=False)


@pytest.fixture
def folder(tmp_path_factory):
    """A folder whose path does not say `test`: the library would take that for the name of a split."""
    return tmp_path_factory.mktemp("pictures")


def table(count: int = 6, **columns) -> datasets.Dataset:
    images, labels = crops(count, 16)
    values = {"picture": [Image.fromarray(image) for image in images], "kind": labels.tolist(), **columns}
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["temple", "dahlia"])}
    features |= {name: datasets.Value("int64") for name in columns}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def check(source) -> None:
    images, labels = crops(6, 16)
    assert source.labels.tolist() == labels.tolist()
    assert source.class_names == ("temple", "dahlia")
    np.testing.assert_array_equal(source.batch(np.array([4, 1])), images[[4, 1]])


def test_a_parquet_file_and_a_folder_of_them(tmp_path):
    table().to_parquet(tmp_path / "one.parquet")
    check(open_source(str(tmp_path / "one.parquet"), 16))
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    table().select(range(3)).to_parquet(folder / "data" / "train-00000.parquet")
    table().select(range(3, 6)).to_parquet(folder / "data" / "train-00001.parquet")
    check(open_source(str(folder), 16))


def test_arrow_files_as_the_library_saves_them(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    check(open_source(str(tmp_path / "saved"), 16))


@pytest.mark.parametrize("listed", [True, False])
def test_what_the_library_leaves_beside_its_files_is_no_data(folder, listed):
    table().save_to_disk(folder)
    saved = datasets.load_from_disk(folder)
    saved.map(lambda row: {"kind": row["kind"]})
    saved.filter(lambda row: row["kind"] == 1)
    assert len(list(folder.glob("cache-*.arrow"))) == 2  # else this tests nothing
    (folder / "tmp0.arrow").touch()
    if not listed:
        (folder / "state.json").write_text("{}")  # of another program
    check(open_source(str(folder), 16))


def test_a_saved_file_that_is_gone_is_missed(folder):
    table().save_to_disk(folder, num_shards=2)
    check(open_source(str(folder), 16))
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"not readable as arrow.*data-00001-of-00002\.arrow"):
        open_source(str(folder), 16)


def test_a_data_set_by_its_name(folder):
    table().to_parquet(folder / "train.parquet")
    check(open_source(f"hf:{folder}", 16))
    check(open_source(f"hf:{folder}?split=train&image=picture&label=kind", 16))
    with pytest.raises(DataError, match=r"split 'valid', cannot be loaded"):
        open_source(f"hf:{folder}?split=valid", 16)
    with pytest.raises(DataError, match=r"hf:.*write hf:NAME\?split=train"):
        open_source(f"hf:{folder}?spilt=train", 16)
    with pytest.raises(DataError, match=r"hf:nobody/nothing, split 'train', cannot be loaded"):
        open_source("hf:nobody/nothing", 16)


def test_columns_are_found_or_asked_for(folder):
    table(other=[0] * 6).to_parquet(folder / "train.parquet")
    check(open_source(str(folder / "train.parquet"), 16))
    with pytest.raises(DataError, match=r"there is no column 'nothing', only picture, kind, other"):
        open_source(f"hf:{folder}?image=nothing", 16)
    assert open_source(f"hf:{folder}?label=other", 16).num_classes == 1
    twice = datasets.concatenate_datasets(
        [table(), table().select_columns("picture").rename_column("picture", "b")], axis=1
    )
    (folder / "train.parquet").unlink()
    twice.to_parquet(folder / "train-2.parquet")
    with pytest.raises(DataError, match=r"several columns hold pictures, picture, b; choose one with .*\?image=COLUMN"):
        open_source(f"hf:{folder}", 16)
    assert len(open_source(f"hf:{folder}?image=b", 16)) == 6


def test_a_table_without_pictures_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="no column holds pictures; there are text"):
        open_source(str(tmp_path / "text.parquet"), 16)


def test_paths_in_a_table_are_not_followed(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "secret.png")
    good = io.BytesIO()
    Image.new("RGB", (16, 16), "blue").save(good, "PNG")
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": good.getvalue(), "path": None}]
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "rows.parquet")
    source = open_source(str(tmp_path / "rows.parquet"), 16)
    assert source.batch(np.array([0, 1]))[:, 0, 0].tolist() == [[0, 0, 255]] * 2  # the other stands in
    assert "not followed" in dict(source.skipped)["row 0"]


def test_a_row_exchanged_for_one_of_another_length_is_other_data(folder):
    images, _ = crops(200, 8)
    prints = []
    for colour in (None, "red"):  # the bytes of row 1 are not among those sampled for the fingerprint
        pictures = [Image.fromarray(image) for image in images]
        if colour is not None:
            pictures[1] = Image.new("RGB", (8, 8), colour)
        file = folder / f"{colour}.parquet"
        datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()})).to_parquet(file)
        prints.append(open_source(str(file), 8).fingerprint)
    assert prints[0] != prints[1]


def test_lengths_of_pictures_come_from_the_table(folder, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr("tvmatch.data.hub.ROWS", 2)
    rows = [{"bytes": bytes(n)} for n in (5, 0, 70)] + [{"bytes": None}, None, {"bytes": b"12"}]
    for name, kind, lengths in (
        ("small", pyarrow.binary(), [5, 0, 70, -1, -1, 2]),
        ("large", pyarrow.large_binary(), [5, 0, 70, -1, -1, 2]),
        ("lists", pyarrow.list_(pyarrow.uint8()), [5, 0, 70, -1, -1, 2]),
        ("views", pyarrow.binary_view(), [5, 0, 70, -1, -1, 2]),
    ):
        column = pyarrow.array(rows, pyarrow.struct({"bytes": kind}))
        pyarrow.parquet.write_table(pyarrow.table({"image": column}), folder / f"{name}.parquet")
        assert table_records([folder / f"{name}.parquet"], name).sizes().tolist() == lengths


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"bad\.parquet: not readable as parquet"):
        open_source(str(tmp_path / "bad.parquet"), 16)
    (tmp_path / "bad.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.arrow: not readable as arrow"):
        open_source(str(tmp_path / "bad.arrow"), 16)


def plain(folder, name="rows.parquet", **columns):
    """A parquet file that says nothing of its columns, as other programs write it: pictures as {bytes, path}."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for image in crops(4, 16)[0]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pyarrow.parquet.write_table(pyarrow.table({"image": rows} | columns), folder / name)
    return folder / name


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_a_label_of_any_whole_numbers_is_taken(folder, kind):
    import pyarrow

    source = open_source(str(plain(folder, label=pyarrow.array([0, 2, 1, 2], kind))), 16)
    assert source.labels.tolist() == [0, 2, 1, 2]
    assert source.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "label",
            ["cat", "dog", "cat", "dog"],
            r"column 'label' \(string\) sounds like classes.*convert it to class num",
        ),
        ("label", [0.0, 1.0, 0.0, 1.0], r"column 'label' \((double|float64)\) sounds like classes.*convert it"),
        ("label", [True, False, True, False], r"column 'label' \(bool\) sounds like classes.*convert it"),
        ("labels", [0, 1, 0, 1], r"column 'labels' \(int64\).*give .*rows\.parquet\?label=labels, or rename it"),
        ("labels", [[0], [1], [0], [1]], r"column 'labels' \(\w+\) sounds like classes.*convert it"),
        ("class", [0, 1, 0, 1], r"column 'class' \(int64\).*give .*rows\.parquet\?label=class"),
        ("cls", [0, 1, 0, 1], r"column 'cls' \(int64\).*give .*rows\.parquet\?label=cls"),
        *(
            (name, [0, 1, 0, 1], rf"column '{name}' \(int64\) sounds like.*give .*\?label={name}, or rename it")
            for name in (
                "Label",
                "CLASS",
                "target",
                "fine_label",
                "category_id",
                "classLabel",
                "categoryId",
                "label-idx",
            )
        ),
        ("Label", ["cat", "dog", "cat", "dog"], r"column 'Label' \(string\) sounds like classes.*convert it"),
    ],
)
def test_a_column_that_sounds_like_classes_is_not_left_out_without_a_word(folder, column, values, message):
    file = plain(folder, **{column: values})
    with pytest.raises(DataError, match=message):
        open_source(str(file), 16)
    assert open_source(f"{file}?label=", 16).num_classes == 0  # on purpose
    if column != "label" and values == [0, 1, 0, 1]:
        for spec in (f"{file}?label={column}", f"{folder}?label={column}"):
            assert open_source(spec, 16).labels.tolist() == values


def test_columns_of_other_names_are_no_classes(folder):
    numbers = ("width", "id", "index", "target_height", "labeller", "subclass")
    columns = {name: [1, 2, 3, 4] for name in numbers} | {name: ["a", "b", "c", "d"] for name in ("caption", "target")}
    assert open_source(str(plain(folder, **(columns | {"": [1, 2, 3, 4]}))), 16).num_classes == 0


def test_a_column_asked_for_must_hold_pictures(folder):
    file = plain(folder, caption=["a", "b", "c", "d"])
    with pytest.raises(DataError, match=r"column 'caption' holds no pictures but string; those that do are image\."):
        open_source(f"hf:{folder}?image=caption", 16)
    with pytest.raises(DataError, match=r"column 'caption' holds no pictures but string"):
        open_source(f"{file}?image=caption", 16)


def test_columns_of_local_tables_are_asked_for_as_the_message_says(folder):
    twice = datasets.concatenate_datasets(
        [table(), table().select_columns("picture").rename_column("picture", "b")], axis=1
    )
    twice.to_parquet(folder / "two.parquet")
    with pytest.raises(DataError, match=r"choose one with .*two\.parquet\?image=COLUMN"):
        open_source(str(folder / "two.parquet"), 16)
    check(open_source(f"{folder / 'two.parquet'}?image=b", 16))
    check(open_source(f"{folder}?image=picture&label=kind", 16))
    with pytest.raises(DataError, match=r"column 'b' must hold class numbers.*choose another with .*\?label=COLUMN"):
        open_source(f"{folder}?image=picture&label=b", 16)
    for query in ("split=train", "imgae=b"):
        with pytest.raises(DataError, match=r"local tables take \?image=COLUMN&label=COLUMN only"):
            open_source(f"{folder}?{query}", 16)


@pytest.mark.parametrize("inner", ["", "data"])
@pytest.mark.parametrize("names", [("train-0", "test-0"), ("training", "val_0"), ("cats-validation-0", "cats-test-0")])
def test_tables_of_several_splits_are_not_mixed(folder, monkeypatch, names, inner):
    place = folder / inner
    place.mkdir(exist_ok=True)
    for name in names:
        table().to_parquet(place / f"{name}.parquet")
    first, second = (rf"'{name}\.parquet' \(\w+\)" for name in sorted(names))
    with pytest.raises(DataError, match=rf"of several splits: {first}, {second}\. Choose one with hf:/.*\?split="):
        open_source(str(folder), 16)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DataError, match=r"of several splits") as told:
        open_source(folder.name, 16)
    check(open_source(re.search(r"hf:\./\S+\?split=\w+", str(told.value))[0], 16))  # the remedy works
    check(open_source(str(place / f"{names[0]}.parquet"), 16))


def test_tables_of_one_split_and_of_none_are_taken_together(folder):
    for name in ("train-0", "training_1", "part"):
        table().to_parquet(folder / f"{name}.parquet")
    assert len(open_source(str(folder), 16)) == 18


def labelled(folder, name, names, labels=(0, 1)) -> None:
    """A parquet file of two pictures with these class names; None: whole numbers without names."""
    kind = datasets.Value("int32") if names is None else datasets.ClassLabel(names=names)
    pictures = [Image.fromarray(image) for image in crops(2, 16)[0]]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    datasets.Dataset.from_dict({"image": pictures, "label": list(labels)}, features=features).to_parquet(folder / name)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ["cat", "dog"],
            ["bus", "car"],
            r"2 classes, 0 'cat', 1 'dog' in 'a\.parquet', and 2 classes, 0 'bus', 1 'car'",
        ),
        (["cat", "dog"], ["dog", "cat"], r"and 2 classes, 0 'dog', 1 'cat' in 'b\.parquet'\. Give all files the same"),
        (
            ["ant", "cat", "dog"],
            ["ant", "cat", "eel"],
            r"3 classes, 2 'dog' in 'a\.parquet', and 3 classes, 2 'eel' in",
        ),
        (["cat", "dog"], ["cat", "dog", "eel"], r"and 3 classes, 0 'cat', 1 'dog', 2 'eel' in"),
        (["cat", "dog"], None, r"2 classes, 0 'cat', 1 'dog' in 'a\.parquet', and whole numbers in 'b\.parquet'"),
        (None, ["cat", "dog"], r"whole numbers in 'a\.parquet', and 2 classes, 0 'cat', 1 'dog' in 'b\.parquet'"),
    ],
)
def test_files_whose_labels_mean_different_things_are_not_merged(folder, first, second, message):
    labelled(folder, "a.parquet", first)
    labelled(folder, "b.parquet", second)
    for spec in (f"{folder}", f"{folder}?label=label", f"hf:{folder}"):
        with pytest.raises(DataError, match=message):
            open_source(spec, 16)
    assert open_source(f"{folder}?label=", 16).num_classes == 0  # the remedy


def test_a_file_without_the_label_of_the_others_is_refused(folder):
    labelled(folder, "a.parquet", ["cat", "dog"])
    plain(folder, "b.parquet")
    with pytest.raises(DataError, match=r"'label' holds 2 classes.*in 'a\.parquet', and nothing in 'b\.parquet'"):
        open_source(str(folder), 16)


def test_splits_of_which_only_one_is_opened_may_differ(folder):
    labelled(folder, "train.parquet", ["cat", "dog"])
    labelled(folder, "test.parquet", None)
    assert open_source(f"hf:{folder}?split=train", 16).class_names == ("cat", "dog")


def test_files_with_the_same_labels_are_taken_together(folder):
    for name in ("a.parquet", "b.parquet"):
        labelled(folder, name, None, (0, 2))
    plain(folder, "c.parquet", label=[0, 1, 1, 0])  # int64: the width of a number changes nothing
    assert open_source(str(folder), 16).labels.tolist() == [0, 2, 0, 2, 0, 1, 1, 0]


def test_a_table_beside_pictures_does_not_take_their_place(folder):
    picture = Image.fromarray(crops(1, 16)[0][0])
    (folder / "temple").mkdir()
    picture.save(folder / "temple" / "0.png")
    assert open_source(str(folder), 16).class_names == ("temple",)
    table().to_parquet(folder / "stray.parquet")
    for opening in (open_source, open_pictures):
        with pytest.raises(DataError, match=r"holds both 'stray\.parquet' and 'temple/0\.png'"):
            opening(str(folder), 16)
    (folder / "temple" / "0.png").rename(folder / "0.png")
    with pytest.raises(DataError, match=r"holds both 'stray\.parquet' and '0\.png'"):
        open_source(f"{folder}?label=kind", 16)
    (folder / "0.png").unlink()
    check(open_source(str(folder), 16))  # an empty sub-folder does no harm
    (folder / "a.tar").touch()
    with pytest.raises(DataError, match=r"holds both 'a\.tar' and 'stray\.parquet'"):
        open_source(str(folder), 16)


def test_tables_of_both_kinds_do_not_take_each_others_place(folder):
    table().to_parquet(folder / "new.parquet")
    check(open_source(str(folder), 16))
    (folder / "old.arrow").touch()
    with pytest.raises(DataError, match=r"holds both 'new\.parquet' and 'old\.arrow'.*Move one kind away, or give"):
        open_source(str(folder), 16)
    check(open_source(str(folder / "new.parquet"), 16))


def test_a_clone_of_the_hub_may_hold_pictures_of_its_card(folder):
    for inner in ("data", "images"):
        (folder / inner).mkdir()
    table().to_parquet(folder / "data" / "train-0.parquet")
    (folder / "README.md").write_text("a card")
    Image.fromarray(crops(1, 16)[0][0]).save(folder / "images" / "card.png")
    check(open_source(str(folder), 16))
    check(open_source(f"{folder}?label=kind", 16))
