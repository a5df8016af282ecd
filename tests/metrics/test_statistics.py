"""Statistics of a data set: what is in them, killed passes, several processes, and files that are something else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.metrics.networks import save_small
from tests.training.pool import Pool
from tvmatch.cli.statistics import StatisticsOptions
from tvmatch.data.arrays import source_from_arrays
from tvmatch.metrics import collecting, statistics
from tvmatch.metrics.features import FeatureNetwork, Preprocessing
from tvmatch.metrics.statistics import KEPT, KEY, check_statistics, gather_statistics, read_statistics
from tvmatch.training.ranks import Ranks, RanksError, join_ranks

CPU = torch.device("cpu")
ALONE = Ranks(CPU)
IMAGES = np.random.default_rng(0).integers(0, 256, (37, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    processes = Pool(3)
    yield processes
    processes.close()


def network_of(folder: Path, size: int = 12) -> FeatureNetwork:
    path = folder / "small.pt"
    return FeatureNetwork(path if path.exists() else save_small(path), Preprocessing(size), CPU)


def gather(folder: Path, name: str = "out", keep: int = 20, ranks: Ranks = ALONE, **options: Any) -> Path:
    out = folder / f"{name}.safetensors"
    source = source_from_arrays(IMAGES)
    return gather_statistics(source, "pictures", network_of(folder), out, keep, ranks, batch_size=5, **options)


def gather_on_ranks(folder: Path) -> int:
    """What each process of the test of several does."""
    with join_ranks("ddp", "cpu") as ranks:
        gather(folder, f"ranks_{ranks.count}", ranks=ranks)
    return ranks.rank


def test_they_are_those_of_the_features(tmp_path: Path) -> None:
    saved = read_statistics(gather(tmp_path))
    features = network_of(tmp_path)(torch.from_numpy(IMAGES)).double().numpy()
    np.testing.assert_allclose(saved.gaussian.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(saved.gaussian.covariance, np.cov(features, rowvar=False), rtol=1e-5, atol=1e-7)
    assert saved.gaussian.count == 37
    assert len(set(saved.indices.tolist())) == 20
    assert (np.diff(saved.indices) > 0).all()
    np.testing.assert_allclose(saved.features.numpy(), features[saved.indices], rtol=1e-5)
    told = saved.provenance
    assert (told["pictures"], told["kept"], told["shape"]) == (37, 20, [3, 8, 8])
    assert told["network"]["size"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "small.pt"]


def test_the_first_so_many(tmp_path: Path) -> None:
    saved = read_statistics(gather(tmp_path, first=10))
    features = network_of(tmp_path)(torch.from_numpy(IMAGES[:10]))
    np.testing.assert_allclose(saved.gaussian.mean, features.double().mean(0).numpy(), rtol=1e-6)
    assert saved.indices.tolist() == list(range(10))


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_give_the_same(tmp_path: Path, pool: Pool, ranks: int) -> None:
    network_of(tmp_path)
    assert pool.run(gather_on_ranks, ranks, tmp_path) == list(range(ranks))
    one, several = read_statistics(gather(tmp_path)), read_statistics(tmp_path / f"ranks_{ranks}.safetensors")
    np.testing.assert_allclose(several.gaussian.mean, one.gaussian.mean, rtol=1e-9)
    np.testing.assert_allclose(several.gaussian.covariance, one.gaussian.covariance, rtol=1e-7, atol=1e-9)
    assert several.gaussian.count == one.gaussian.count
    assert several.indices.tolist() == one.indices.tolist()
    assert torch.allclose(several.features, one.features, atol=1e-5)


def gather_other_data(folder: Path) -> str:
    """What each process does where each has pictures of its own under one name."""
    with join_ranks("ddp", "cpu") as ranks:
        source = source_from_arrays(np.full((9, 8, 8, 3), ranks.rank, np.uint8))
        try:
            gather_statistics(source, "pictures", network_of(folder), folder / "s.safetensors", 9, ranks)
        except RanksError as error:
            return str(error)
    return "went on"


def test_ranks_that_see_other_pictures_are_refused(tmp_path: Path, pool: Pool) -> None:
    network_of(tmp_path)
    answers = pool.run(gather_other_data, 2, tmp_path)
    assert all("fingerprint" in answer and "differs from rank 0" in answer for answer in answers), answers
    assert not (tmp_path / "s.safetensors").exists()


def test_a_killed_pass_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "SAVE_SECONDS", -1.0)  # after every batch
    whole = read_statistics(gather(tmp_path, "whole"))
    seen: list[int] = []
    call = FeatureNetwork.__call__

    def killed(self: FeatureNetwork, pictures: torch.Tensor) -> torch.Tensor:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(pictures))
        return call(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureNetwork, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            gather(tmp_path)
    assert sum(seen) == 20
    seen.clear()
    monkeypatch.setattr(FeatureNetwork, "__call__", lambda self, x: (seen.append(len(x)), call(self, x))[1])
    continued = read_statistics(gather(tmp_path))
    assert sum(seen) == 17  # and not all 37
    np.testing.assert_array_equal(continued.gaussian.mean, whole.gaussian.mean)
    np.testing.assert_array_equal(continued.gaussian.covariance, whole.gaussian.covariance)
    assert torch.equal(continued.features, whole.features)
    assert not (tmp_path / ".out.safetensors.parts").exists()


def test_the_part_that_other_code_made_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else pictures of both would be in one file, half of them resized in another way, say."""
    monkeypatch.setattr(collecting, "SAVE_SECONDS", -1.0)
    seen: list[int] = []
    call = FeatureNetwork.__call__

    def counted(self: FeatureNetwork, pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return call(self, pictures)

    monkeypatch.setattr(FeatureNetwork, "__call__", counted)
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "CODE", ("metrics/features.py",))
        with pytest.raises(KeyboardInterrupt):
            gather(tmp_path)
    assert list((tmp_path / ".out.safetensors.parts").iterdir())
    saved = read_statistics(gather(tmp_path))
    assert sum(seen[4:]) == 37  # all anew
    assert saved.provenance["code"] == statistics.made_by()["code"]


def test_the_part_of_another_pass_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "SAVE_SECONDS", -1.0)
    parts = tmp_path / ".out.safetensors.parts"
    unlink = Path.unlink
    with monkeypatch.context() as patch:  # leave the part of a pass over the first 30 behind
        patch.setattr(Path, "unlink", lambda self, **k: None if self.parent == parts else unlink(self, **k))
        gather(tmp_path, first=30)
    assert list(parts.iterdir())
    expected = read_statistics(gather(tmp_path, "fresh"))
    np.testing.assert_array_equal(read_statistics(gather(tmp_path)).gaussian.mean, expected.gaussian.mean)
    (parts).mkdir(exist_ok=True)
    (parts / "rank_0_of_1.safetensors").write_bytes(b"cut short")
    np.testing.assert_array_equal(read_statistics(gather(tmp_path)).gaussian.mean, expected.gaussian.mean)


def test_other_networks_are_told_apart(tmp_path: Path) -> None:
    path = gather(tmp_path)
    saved = read_statistics(path)
    check_statistics(path, saved, network_of(tmp_path))
    with pytest.raises(ValueError, match="made with size=12 of the feature network, and this is 13"):
        check_statistics(path, saved, network_of(tmp_path, 13))
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["tvmatch_statistics"])["network"]["file"] == "small.pt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1}, "keep must be at least 2, got 1"),
        ({"first": 38}, "first must be 2 to 37, the number of pictures; got 38"),
    ],
)
def test_wrong_requests_are_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather(tmp_path, **options)


def test_features_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    """Every distance would be zero."""
    source = source_from_arrays(np.zeros((9, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="features of all 9 pictures of 'black' are the same"):
        gather_statistics(source, "black", network_of(tmp_path), tmp_path / "s.safetensors", 9, ALONE)
    assert not (tmp_path / "s.safetensors").exists()
    told = {
        "data": "x",
        "fingerprint": "",
        "pictures": 9,
        "shape": [3, 8, 8],
        "network": network_of(tmp_path).identity(),
    }
    tensors = {"mean": torch.ones(2), "covariance": torch.zeros(2, 2), "features": torch.ones(4, 2)}
    tensors["indices"] = torch.arange(4)
    save_file(tensors, tmp_path / "s.safetensors", {KEY: json.dumps(told)})
    with pytest.raises(ValueError, match="all its pictures have the same features"):
        read_statistics(tmp_path / "s.safetensors")


def test_as_many_are_kept_by_default_as_cifar_10_has() -> None:
    assert StatisticsOptions("x", Path("y"), Path("z")).keep == KEPT == 50_000


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = save_small(tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"is a folder; statistics are a file that `tvmatch statistics` wrote\.$"):
        read_statistics(tmp_path)
    for other in (path, tmp_path / "none.safetensors"):
        with pytest.raises(ValueError, match="holds no statistics of `tvmatch statistics`"):
            read_statistics(other)
