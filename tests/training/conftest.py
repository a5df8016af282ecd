from collections.abc import Iterator

import pytest

from tests.training.support import tiny_network


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield
