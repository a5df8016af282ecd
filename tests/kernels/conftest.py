"""What keeps the tests of kernels short on a GPU: nothing is tuned."""

import pytest


@pytest.fixture(autouse=True)
def _first_entry_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning compiles up to seven kernels a kind of problem; the test of tuning switches it on."""
    monkeypatch.setenv("TVMATCH_AUTOTUNE", "0")
