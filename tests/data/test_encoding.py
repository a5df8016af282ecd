import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.support import crops, write_folder
from tvmatch.data import DataError, InMemorySource, open_pictures
from tvmatch.data.codecs import Posterior, open_codec
from tvmatch.data.encoding import (
    EncodingPlan,
    check_nothing_skipped,
    check_size,
    claim_plan,
    encode_shards,
    make_plan,
    psnr,
)
from tvmatch.data.encoding_manifest import write_manifest
from tvmatch.data.latents import LatentsSource

CPU = torch.device("cpu")


class Spread:
    """A codec with a posterior: 2 x 2 pixels a cell, a deviation that depends on the picture."""

    spec, hash, channels, factor, has_deviation = "spread", "5" * 64, 3, 2, True

    def encode(self, x):
        mean = torch.nn.functional.avg_pool2d(x, 2)
        return Posterior(mean, 0.1 + 0.05 * mean.abs())

    def decode(self, latents):
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


def source(count: int = 10, size: int = 8) -> InMemorySource:
    images, labels = crops(count, size)
    return InMemorySource(images, labels, ("china", "flower"))


def encode(reader, out: Path, codec=None, flips=True, ranks=1, shard_size=4) -> dict:
    """All of it in this process, rank after rank."""
    codec = codec or Spread()
    plan = make_plan(reader, codec, flips, batch_size=3, shard_size=shard_size, precision="float32")
    plan = claim_plan(out, plan)
    for rank in range(ranks):
        encode_shards(reader, codec, plan, out, CPU, rank, ranks)
    return write_manifest(out, plan, reader.skipped_when_opened)


def files(folder: Path) -> dict[str, str]:
    """The name and hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_manifest_counts_and_hashes_what_is_there(tmp_path):
    manifest = encode(source(), tmp_path / "out")
    assert manifest["pictures"] == {"in_the_source": 10, "encoded": 10, "skipped": 0}
    assert [entry["pictures"] for entry in manifest["shards"]] == [4, 4, 2]
    for entry in manifest["shards"]:
        content = (tmp_path / "out" / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert manifest["pictures_of_class"] == [5, 5]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"] == manifest["shards"]


def test_mean_and_deviation_are_those_of_the_latents_as_drawn(tmp_path):
    reader, codec = source(), Spread()
    space = encode(reader, tmp_path / "out")["latent_space"]
    x = torch.tensor(reader.images).permute(0, 3, 1, 2).double() / 127.5 - 1
    posterior = codec.encode(x)  # mirrored pictures have the same statistics
    noise = torch.randn(2000, *posterior.mean.shape, generator=torch.Generator().manual_seed(0)).double()
    drawn = posterior.mean + posterior.deviation * noise
    np.testing.assert_allclose(space["mean"], posterior.mean.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(space["deviation"], drawn.std((0, 1, 3, 4), correction=0), rtol=3e-3)


def test_the_round_trip_is_measured(tmp_path):
    reader, codec = source(), Spread()
    quality = encode(reader, tmp_path / "out")["psnr"]
    x = torch.tensor(reader.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    back = codec.decode(codec.encode(x).mean)
    levels = ((back + 1) * 127.5).round().clamp(0, 255).double()
    error = (levels - torch.tensor(reader.images).permute(0, 3, 1, 2)).square().mean((1, 2, 3))
    decibels = 10 * torch.log10(255**2 / error)
    assert quality["pictures"] == 10
    assert quality["mean"] == pytest.approx(float(decibels.mean()), abs=1e-3)
    assert quality["lowest"] == pytest.approx(float(decibels.min()), abs=1e-3)


def test_pixels_come_back_exactly(tmp_path):
    reader = source()
    manifest = encode(reader, tmp_path / "out", open_codec("pixels"))
    assert manifest["psnr"]["exact"] == 10
    latents = LatentsSource(tmp_path / "out")
    x = latents.latent_space.denormalise(torch.from_numpy(latents.batch(np.arange(10))))
    back = ((x + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()
    np.testing.assert_array_equal(back, reader.images)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_any_number_of_ranks_writes_the_same_files(tmp_path, ranks):
    encode(source(), tmp_path / "one")
    encode(source(), tmp_path / "many", ranks=ranks)
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_a_finished_shard_is_not_made_again(tmp_path):
    encode(source(), tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    (tmp_path / "out" / "shards" / "latents-00001.json").unlink()
    encode(source(), tmp_path / "out")
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"latents-00001.tar", "latents-00001.json"}


def test_what_cannot_be_used_is_skipped_counted_and_named(tmp_path):
    root = write_folder(tmp_path / "in", 6, 8)
    (root / "china" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (root / "china" / "notes.txt").write_text("hello")
    with open_pictures(str(root), 8) as reader:
        manifest = encode(reader, tmp_path / "out")
    assert manifest["pictures"] == {"in_the_source": 6, "encoded": 5, "skipped": 2}
    assert {name for name, _ in manifest["skipped"]} == {"china/002.png", "china/notes.txt"}
    latents = LatentsSource(tmp_path / "out")
    assert len(latents) == 5
    assert latents.labels.tolist() == [0, 0, 1, 1, 1]
    with open_pictures(str(root), 8) as reader:
        pictures = [picture for picture in reader.read(np.arange(6)) if not isinstance(picture, str)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    drawn = latents.latent_space.denormalise(torch.from_numpy(latents.batch(np.arange(5))))
    torch.testing.assert_close(drawn, Spread().encode(x).mean, atol=1e-3, rtol=1e-3)
    (root / "china" / "notes.txt").unlink()
    with open_pictures(str(root), 8, strict=True) as reader, pytest.raises(DataError, match=r"002\.png.*strict"):
        encode(reader, tmp_path / "strict")


def test_strict_does_not_let_pass_what_an_earlier_run_skipped(tmp_path):
    root = write_folder(tmp_path / "in", 6, 8)
    with open_pictures(str(root), 8) as reader:
        encode(reader, tmp_path / "whole")
        plan = make_plan(reader, Spread(), True, batch_size=3, shard_size=4, precision="float32")
    check_nothing_skipped(tmp_path / "whole", plan)
    check_nothing_skipped(tmp_path / "nothing yet", plan)
    (root / "flower" / "003.png").write_bytes(b"no picture")
    with open_pictures(str(root), 8) as reader:
        encode(reader, tmp_path / "out")
    with pytest.raises(DataError, match=r"earlier run without --strict skipped 1 file: 'flower/003\.png'.*new folder"):
        check_nothing_skipped(tmp_path / "out", plan)


def test_pixels_have_one_precision():
    with pytest.raises(DataError, match="'pixels' computes nothing that bfloat16 could speed up; leave --precision"):
        make_plan(source(), open_codec("pixels"), True, batch_size=3, shard_size=4, precision="bfloat16")


def test_nothing_usable_is_an_error(tmp_path):
    root = write_folder(tmp_path / "in", 4, 8)
    for path in root.rglob("*.png"):
        path.write_bytes(b"no picture")
    with open_pictures(str(root), 8) as reader, pytest.raises(DataError, match=r"no picture can be used; skipped 4"):
        encode(reader, tmp_path / "out")


def test_pictures_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"9 pixels.*multiples of 2.*--image-size 8"):
        encode(source(4, 9), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Overflowing(Spread):
    def encode(self, x):
        return Posterior(torch.full_like(x, 1e6), torch.ones_like(x))


def test_latents_that_float16_cannot_hold_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"latents up to 1000000\.0.*float16"):
        encode(source(), tmp_path / "out", Overflowing())


def test_latents_that_are_the_same_everywhere_are_refused(tmp_path):
    reader = InMemorySource(np.zeros((4, 8, 8, 3), np.uint8), np.full(4, -1))
    with pytest.raises(DataError, match=r"channels \[0, 1, 2\].*the same everywhere"):
        encode(reader, tmp_path / "out", open_codec("pixels"))


def test_a_full_disk_is_found_out_before_the_work(tmp_path, monkeypatch):
    plan = make_plan(source(), Spread(), True, 3, 4, "float32")
    check_size(plan, tmp_path / "absent" / "out")

    class Full:
        f_bavail, f_frsize = 10, 512

    monkeypatch.setattr(os, "statvfs", lambda folder: Full)
    with pytest.raises(DataError, match=r"GiB are still to be written, but only 0\.0 GiB"):
        check_size(plan, tmp_path / "absent" / "out")


def test_the_plan_holds_plain_values():
    plan = make_plan(source(), Spread(), True, 3, 4, "float32")
    assert isinstance(plan, EncodingPlan)
    assert json.loads(plan.to_json())["shape"] == [3, 4, 4]
    assert plan.array_shape == (2, 2, 3, 4, 4)


def test_psnr_of_a_known_error():
    picture = np.zeros((4, 4, 3), np.uint8)
    assert psnr(picture, picture) is None
    assert psnr(picture, picture + 5) == pytest.approx(20 * np.log10(255 / 5))
