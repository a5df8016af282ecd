"""Options from frozen dataclasses, by tyro: one help text a field, and a hint for a misspelt option."""

from collections.abc import Sequence
from typing import TypeVar

import tyro

Options = TypeVar("Options")


def parse(
    options: type[Options], command: str, description: str, arguments: Sequence[str], default: Options | None = None
) -> Options:
    """Read `arguments` into the dataclass `options`. Ends the program with code 2 on a mistake, 0 after --help."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(
        options,
        prog=f"tvmatch {command}",
        description=description,
        args=list(arguments),
        **extra,
    )
