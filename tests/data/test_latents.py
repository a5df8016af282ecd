import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from tests.data.test_encoding import Spread, encode, source
from tvmatch.data import DataError, Prefetcher, ShuffledStream, open_pictures, open_source
from tvmatch.data.codecs import CodecError, open_codec
from tvmatch.data.latent_shards import sample_bytes
from tvmatch.data.latent_space import LatentSpace, decode_latents, picture_maker
from tvmatch.data.latents import LatentsSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "out"
    encode(source(), out)
    return out


def posterior():
    x = torch.tensor(source().images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Spread().encode(x), Spread().encode(x.flip(3))


def test_the_noise_of_the_posterior_is_drawn_anew_for_each_seed(folder):
    latents = LatentsSource(folder)
    one = np.zeros(4000, np.int64)
    drawn = latents.latent_space.denormalise(torch.from_numpy(latents.batch(one, None, np.arange(4000))))
    plain, _ = posterior()
    torch.testing.assert_close(drawn.mean(0), plain.mean[0], atol=0.015, rtol=0)
    torch.testing.assert_close(drawn.std(0), plain.deviation[0], atol=0.01, rtol=0)
    again = latents.batch(one[:5], None, np.arange(5))
    np.testing.assert_array_equal(again, latents.batch(one[:5], None, np.arange(5)))
    assert (again[0] != again[1]).any()


def test_without_seeds_the_mean_is_given_and_flips_choose_the_mirrored_picture(folder):
    latents = LatentsSource(folder)
    flips = np.arange(10) % 3 == 0
    got = latents.latent_space.denormalise(torch.from_numpy(latents.batch(np.arange(10), flips)))
    plain, mirrored = posterior()
    expected = torch.where(torch.from_numpy(flips)[:, None, None, None], mirrored.mean, plain.mean)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_what_training_sees_is_normalised(folder):
    latents = LatentsSource(folder)
    assert latents.shape == (3, 4, 4)
    x = latents.batch(np.arange(10).repeat(400), np.arange(4000) % 2 == 0, np.arange(4000))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=0.02)
    np.testing.assert_allclose(x.std((0, 2, 3)), 1, atol=0.02)


def test_labels_and_names_are_kept(folder):
    latents = open_source(str(folder))
    assert latents.labels.tolist() == source().labels.tolist()
    assert latents.class_names == ("china", "flower")
    assert latents.num_classes == 2


def test_ranks_share_a_batch_and_a_later_start_continues_it(folder):
    latents = LatentsSource(folder)

    def batches(start: int, rank: int = 0, ranks: int = 1) -> list[torch.Tensor]:
        with Prefetcher(latents, ShuffledStream(10, 4, 3, rank, ranks), start, flip=True) as ready:
            return [next(ready)[0] for _ in range(start, 6)]

    alone = batches(0)
    for step, parts in enumerate(zip(batches(0, 0, 2), batches(0, 1, 2), strict=True)):
        assert torch.equal(torch.cat(parts), alone[step])
    assert all(torch.equal(*pair) for pair in zip(batches(4), alone[4:], strict=True))


def test_the_webdataset_library_reads_the_shards(folder):
    pattern = str(folder / "shards" / "latents-{00000..00002}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(10)]
    assert [int(sample["cls"]) for sample in samples] == source().labels.tolist()
    array = np.load(io.BytesIO(samples[3]["npy"]))
    assert array.shape == (2, 2, 3, 4, 4)
    np.testing.assert_allclose(array[0, 0], posterior()[0].mean[3], atol=1e-3)
    assert sample_bytes(array.shape) * 4 <= (folder / "shards" / "latents-00000.tar").stat().st_size


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_damaged_shard_is_found(copy):
    shard = copy / "shards" / "latents-00001.tar"
    content = bytearray(shard.read_bytes())
    first = sample_bytes((2, 2, 3, 4, 4))
    content[first + 1024 : first + 1034] = b"0" * 10  # the name of a member
    shard.write_bytes(content)
    latents = LatentsSource(copy)
    latents.batch(np.arange(4))
    with pytest.raises(DataError, match=r"latents-00001\.tar is damaged: 000000005\.npy"):
        latents.batch(np.arange(10))
    shard.write_bytes(content[:3000])
    with pytest.raises(DataError, match=r"latents-00001\.tar is cut short"):
        LatentsSource(copy)


def rewrite(copy: Path, **changes) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_manifest_cannot_point_outside_its_folder(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("../secret.tar", "/etc/passwd"):
        rewrite(copy, shards=[{**manifest["shards"][0], "file": name}, *manifest["shards"][1:]])
        with pytest.raises(DataError, match="outside its folder"):
            LatentsSource(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tvmatch-latents-9"}, "is of format 'tvmatch-latents-9'"),
        ({"labels_sha256": "0" * 64}, r"labels\.npy is not the one"),
        ({"latent_space": {"codec": "pixels"}}, "not the description of a latent space"),
        ({"shards": []}, "0 latents for 10 labels"),
        ({"array_shape": [2, 2, 3, 40, 40]}, "cut short"),
    ],
)
def test_a_wrong_manifest_is_refused(copy, changes, message):
    rewrite(copy, **changes)
    with pytest.raises(DataError, match=message):
        LatentsSource(copy)


def test_an_unfinished_encoding_is_no_data_set(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"not complete; run its `tvmatch encode` command again"):
        open_source(str(copy))
    (copy / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"no manifest of latents, or damaged"):
        open_source(str(copy))


def test_options_that_latents_cannot_follow_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="pictures of 8 pixels, and image_size says 16"):
        open_source(str(folder), 16)
    assert len(open_source(str(folder), 8)) == 10
    with pytest.raises(DataError, match="are latents already"):
        open_pictures(str(folder))
    with pytest.raises(DataError, match="no pictures to crop"):
        open_source(str(folder), crop="random")
    encode(source(), tmp_path / "plain", flips=False)
    with pytest.raises(DataError, match="mirrored pictures were not encoded"):
        LatentsSource(tmp_path / "plain").batch(np.arange(2), np.array([False, True]))
    with pytest.raises(DataError, match="0 to 9, got 3 to 10"):
        LatentsSource(folder).batch(np.array([3, 10]))


def space(**changes) -> LatentSpace:
    values = {"codec": "pixels", "codec_hash": "", "shape": (3, 4, 4), "image_size": 4, "mean": (0.1, 0.2, 0.3)}
    return LatentSpace(**{**values, "deviation": (1.0, 2.0, 4.0), **changes})


def test_normalising_is_per_channel_and_undone():
    latents = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    x = space().normalise(latents)
    torch.testing.assert_close(x[:, 2], (latents[:, 2] - 0.3) / 4)
    torch.testing.assert_close(space().denormalise(x), latents)
    assert LatentSpace.from_header(json.loads(json.dumps(space().to_header()))) == space()


def test_a_space_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="one number a channel, 3; got 1"):
        space(mean=(0.0,))
    with pytest.raises(ValueError, match="positive and finite"):
        space(deviation=(1.0, 0.0, 1.0))
    for number in (float("nan"), float("-inf")):  # every picture would be decoded to what is no number
        with pytest.raises(ValueError, match="the mean of each channel must be finite, got"):
            space(mean=(0.1, number, 0.3))


def test_pictures_are_made_with_the_right_codec_only():
    with pytest.raises(CodecError, match=r"but 777777777777 is needed.*--codec gives its folder"):
        picture_maker(space(codec_hash="7" * 64), "cpu")
    right = space(codec_hash=open_codec("pixels").hash)
    pictures = picture_maker(right, "cpu")(torch.zeros(2, 3, 4, 4))
    assert pictures.shape == (2, 4, 4, 3)
    assert pictures[0, 0, 0].tolist() == [140, 153, 166]  # the means, 0.1 0.2 0.3, as levels


def test_nan_has_no_colour():
    x = torch.zeros(2, 3, 4, 4)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 2 samples hold NaN"):
        decode_latents(space(), Spread(), x)
