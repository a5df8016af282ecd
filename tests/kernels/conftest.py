"""What keeps the GPU tests short: nothing is tuned, and tests that compile the same kernels go to the same worker."""

import pytest


@pytest.fixture(autouse=True)
def _first_entry_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning compiles up to seven kernels a kind of problem; the tests of tuning switch it on."""
    monkeypatch.setenv("TVMATCH_AUTOTUNE", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For ``--dist loadgroup``: one worker for a test, head size and path, whatever the lengths and inputs."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if item.get_closest_marker("gpu") and hasattr(item, "callspec"):
            chosen = [str(item.callspec.params[name]) for name in ("D", "hopper") if name in item.callspec.params]
            if chosen:
                item.add_marker(pytest.mark.xdist_group("-".join([item.originalname, *chosen])))
