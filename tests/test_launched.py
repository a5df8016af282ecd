"""RANK and WORLD_SIZE, as a launcher sets them and as an environment may have them otherwise."""

import pytest

from tvmatch.cli.options import refuse_ranks
from tvmatch.launched import launched
from tvmatch.training.ranks import join_ranks


def environment(patch: pytest.MonkeyPatch, rank: str | None, count: str | None) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
        if value is None:
            patch.delenv(name, raising=False)
        else:
            patch.setenv(name, value)


@pytest.mark.parametrize(("rank", "count"), [(None, None), (None, "2"), ("1", None), (None, "two")])
def test_one_alone_is_nobodys_launcher(monkeypatch: pytest.MonkeyPatch, rank: str | None, count: str | None) -> None:
    environment(monkeypatch, rank, count)
    assert launched() is None
    refuse_ranks("one process does this")
    with join_ranks("auto", "cpu") as ranks:
        assert (ranks.rank, ranks.count) == (0, 1)


def test_both_are_a_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, "1", "2")
    assert launched() == (1, 2)
    with pytest.raises(ValueError, match="one process does this, and 2 were started"):
        refuse_ranks("one process does this")
    with pytest.raises(ValueError, match="2 processes were started"), join_ranks("single", "cpu"):
        pass


@pytest.mark.parametrize(("rank", "count"), [("0", "two"), ("", "1"), ("2", "2"), ("-1", "2")])
def test_what_are_no_numbers_of_processes(monkeypatch: pytest.MonkeyPatch, rank: str, count: str) -> None:
    environment(monkeypatch, rank, count)
    message = f"RANK='{rank}' and WORLD_SIZE='{count}' in the environment are not the numbers of a process"
    with pytest.raises(ValueError, match=message):
        refuse_ranks("one process does this")
    with pytest.raises(ValueError, match=message), join_ranks("auto", "cpu"):
        pass
