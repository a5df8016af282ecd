"""The command line `tvmatch`."""

from tvmatch.cli.main import main

__all__ = ["main"]
