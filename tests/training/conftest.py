import pytest

from tests.training.support import TINY, register_tiny
from tvmatch.networks.presets import NETWORKS


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NETWORKS, TINY, raising=False)  # so that it is gone after the test
    register_tiny()
