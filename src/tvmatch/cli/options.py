"""Options from frozen dataclasses, by tyro: one help text a field, and a hint for a misspelt option."""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from tvmatch.launched import launched
from tvmatch.telling import tell

Options = TypeVar("Options")


def parse(
    options: type[Options], command: str, description: str, arguments: Sequence[str], default: Options | None = None
) -> Options:
    """Read `arguments` into the dataclass `options`. Ends the program with code 2 on a mistake, 0 after --help."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(
        readable(options),
        prog=f"tvmatch {command}",
        description=description,
        args=list(arguments),
        config=(tyro.conf.PositionalMetavarFromFieldName,),
        **extra,
    )


def readable(options: type[Options]) -> type[Options]:
    """The same class, whose help shows `--nfe INT` for an `int | None`, and says no `(default: None)`: the comment of
    such a field says what happens without it.

    tyro takes what it shows from annotations, so these are what changes; the types in them stay.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        told = any(hasattr(one, "help_behavior_hint") for one in getattr(hint, "__metadata__", ()))
        if field.default in (None, ()) and not told:
            shown = tyro.conf.arg(metavar=_metavar(hint), help_behavior_hint=_default)
            hints[field.name] = Annotated[hint, shown]
    options.__annotations__ = hints
    return options


def _default(value: str) -> str:
    return "" if value in ("None", "") else f"(default: {value})"


def _metavar(hint: Any) -> str | None:
    """What stands behind an option of type `hint`, if that is one kind of value or None."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if typing.get_origin(hint) not in (types.UnionType, typing.Union) or len(kinds) != 1:
        return None
    if typing.get_origin(kinds[0]) is Literal:
        return "{" + ",".join(typing.get_args(kinds[0])) + "}"
    return "{True,False}" if kinds[0] is bool else kinds[0].__name__.upper()


def take_option(name: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of one option that must be known before the others (None: not given), and the other arguments."""
    rest, value, words = [], None, iter(arguments)
    for word in words:
        if word == name or word.startswith(f"{name}="):
            if value is not None:
                raise ValueError(f"{name} is given twice.")
            value = word.partition("=")[2] if "=" in word else next(words, "")
            if not value or value.startswith("-"):
                raise ValueError(f"{name} needs a value.")
        else:
            rest.append(word)
    return value, rest


def given(name: str, arguments: Sequence[str]) -> bool:
    """Whether an option is among the arguments, be its value the default or another."""
    return any(word == name or word.startswith(f"{name}=") for word in arguments)


def check_seed(seed: int) -> None:
    """Raise unless `seed` fits the generator of the noise."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be 0 to 2^63 - 1, got {seed}.")


def check_out(out: Path, suffixes: Sequence[str], folder: bool = False) -> None:
    """Raise before any work is done if a result could not be written under the name `out`."""
    choices = f"give a name that ends in {' or '.join(suffixes)}" + (", or a new folder" if folder else "")
    if out.suffix not in suffixes and not (folder and out.suffix == ""):
        raise ValueError(f"--out {out}: {choices}.")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder that exists; {choices}.")
    if out.suffix == "" and out.exists():
        raise ValueError(f"--out {out} exists; {choices}.")


def check_no_checkpoint(out: Path | None) -> None:
    """Raise before any work is done if an `out` that was given would be, or replace, a part of a checkpoint."""
    for parent in () if out is None else out.absolute().parents:
        if parent.name == "checkpoints" and (parent.parent / "config.yaml").is_file():
            raise ValueError(f"--out {out} is among the checkpoints of a run; choose another place.")


def check_place(out: Path) -> None:
    """Raise before any work is done if nothing can be written beside `out`, in a folder that may not be there yet."""
    place = next(parent for parent in out.absolute().parents if parent.exists())
    if not place.is_dir():
        raise ValueError(f"--out {out}: {place} is a file, not a folder; choose another place.")
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        reason = "Read-only file system" if read_only else "Permission denied"
        raise ValueError(f"--out {out}: cannot write into {place} ({reason}); choose another place.")


def check_replaced(out: Path, keys: Collection[str], others: Collection[str] = ()) -> None:
    """Raise before any work is done if `out` is there and no JSON object of this command: with `keys`, without those of
    `others`."""
    if not out.exists():
        return
    try:
        held = json.loads(out.read_text("utf-8"))
    except ValueError:
        held = None
    if not isinstance(held, dict) or not set(keys) <= held.keys() or set(others) & held.keys():
        raise ValueError(f"--out {out} holds something else, and is not overwritten; choose another name.")


def refuse_ranks(why: str) -> None:
    """Raise under a launcher of several processes: each would do the same work and write the same file."""
    _, count = launched() or (0, 1)
    if count > 1:
        raise ValueError(f"{why}, and {count} were started; leave the launcher (torchrun) out.")


def warn(command: str, message: str | None) -> None:
    """A line on stderr, if there is something to say."""
    if message is not None:
        tell(f"tvmatch {command}: warning: {message}")
