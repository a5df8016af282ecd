from tests.cli.conftest import _tiny_network, run

__all__ = ["_tiny_network", "run"]
