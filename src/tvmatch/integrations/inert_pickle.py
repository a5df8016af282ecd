"""A reader of pickles in which nothing is imported, called or executed.

The opcodes come from `pickletools.genops`; this module says what each one means for plain values. A global is a name,
looked up in the caller's table: what is not in the table is refused by that name. What a table entry does with its
arguments is the caller's code, never the file's.
"""

import io
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MOST_OPCODES = 20_000_000  # an XL snapshot has about 100,000
MOST_MARKS = 1_000  # tuples, lists and dictionaries that are open at once
DEEPEST = 200  # nesting of what was read

SCALARS = (str, int, float, bool, bytes, type(None))
VALUES = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"})
VALUES |= {"BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}


class PickleError(ValueError):
    """A pickle that is damaged, or that holds more than plain values and the names its reader knows."""


@dataclass(eq=False)
class Record:
    """An object of the file, as the data it was made of: the name of its class, arguments and attributes."""

    name: str
    arguments: tuple = ()
    state: dict[str, Any] = field(default_factory=dict)
    # eq=False: records are compared, and hashed, by identity; comparing their content could recurse without end

    def __repr__(self) -> str:
        return f"Record({self.name})"


@dataclass(frozen=True)
class Global:
    """A name that may stand in a pickle. `call` makes a value of the arguments the file gives it (None: the name may
    stand there, as the name of a dtype does, but not be called)."""

    name: str
    call: Callable[..., Any] | None = None


def read_pickle(
    source: BinaryIO | bytes,
    known: Mapping[str, Global],
    persistent: Callable[[Any], Any] | None = None,
    size: int | None = None,
) -> Any:
    """The value of the next pickle in `source`, which is left at its end.

    `known` maps "module.name" to what it stands for; `persistent` makes a value of a persistent id (None: refused);
    `size` is the number of bytes in a file. Raises `PickleError`.
    """
    if isinstance(source, bytes):
        source, size = io.BytesIO(source), len(source)
    reader = _Bounded(source, size)
    machine = _Machine(known, persistent)
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(reader)):
            if count > MOST_OPCODES:
                raise PickleError(f"it has more than {MOST_OPCODES} operations")
            if opcode.name == "FRAME" and argument > reader.left():
                raise PickleError(
                    f"at byte {position} a frame of {argument} bytes is announced; {reader.left()} follow"
                )
            machine.step(opcode.name, argument, position)
    except PickleError:
        raise
    except (ValueError, IndexError, OverflowError, struct.error, MemoryError, RecursionError) as error:
        raise PickleError(f"it is damaged or cut short ({' '.join(str(error).split())[:200]})") from error
    check_depth(machine.result)
    return machine.result


def check_depth(value: Any) -> None:
    """Raise unless `value` nests at most DEEPEST levels (on the shortest way to each part)."""
    level, seen, depth = [value], set(), 0
    while level:
        if depth > DEEPEST:
            raise PickleError(f"it nests deeper than {DEEPEST} levels")
        level = [part for whole in level for part in _parts(whole) if _is_new(part, seen)]
        depth += 1


def _is_new(part: Any, seen: set[int]) -> bool:
    if isinstance(part, SCALARS) or id(part) in seen:
        return False
    seen.add(id(part))
    return True


def _parts(whole: Any) -> list[Any]:
    if isinstance(whole, dict):
        return list(whole.values())
    if isinstance(whole, list | tuple | set | frozenset):
        return list(whole)
    if isinstance(whole, Record):
        return [whole.arguments, whole.state]
    return []


class _Bounded:
    """A file that never reads past its end, whatever length the pickle claims: a lie allocates nothing."""

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        self.file, self.tell = file, file.tell
        here = file.tell()
        self.size = size if size is not None else file.seek(0, io.SEEK_END)
        file.seek(here)

    def left(self) -> int:
        return self.size - self.file.tell()

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.left()) if count > 1 else count)

    def readline(self) -> bytes:
        return self.file.readline(10_000)


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, known: Mapping[str, Global], persistent: Callable[[Any], Any] | None) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any, position: int) -> None:
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise PickleError(f"at byte {position} it refers to value {argument}, which it has not stored")
            self.stack.append(self.memo[argument])
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise PickleError(f"at byte {position} it uses the operation {name}, which no snapshot needs")
            method(argument)

    def top(self) -> Any:
        if not self.stack:
            raise PickleError("it takes a value where there is none")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.outer:
            raise PickleError("it closes a group that it has not opened")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def do_mark(self, _: None) -> None:
        if len(self.outer) >= MOST_MARKS:
            raise PickleError(f"it nests deeper than {MOST_MARKS} levels")
        self.outer.append(self.stack)
        self.stack = []

    def do_stop(self, _: None) -> None:
        self.result = self.pop()
        if self.stack or self.outer:
            raise PickleError("it ends with values left over")

    def do_tuple(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: None) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: None) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def do_tuple3(self, _: None) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def do_append(self, _: None) -> None:
        value = self.pop()
        self.goal(list).append(value)

    def do_appends(self, _: None) -> None:
        items = self.pop_mark()
        self.goal(list).extend(items)

    def do_additems(self, _: None) -> None:
        items = self.pop_mark()
        self.goal(set).update(self.key(item) for item in items)

    def do_frozenset(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(self.key(item) for item in items))

    def do_setitem(self, _: None) -> None:
        value = self.pop()
        key = self.key(self.pop())
        self.goal(dict)[key] = value

    def do_setitems(self, _: None) -> None:
        items = self.pop_mark()
        if len(items) % 2:
            raise PickleError("it fills a dictionary with a key that has no value")
        self.goal(dict).update((self.key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def goal(self, kind: type) -> Any:
        value = self.top()
        if type(value) is not kind:
            raise PickleError(f"it fills a {type(value).__name__} as if it were a {kind.__name__}")
        return value

    def key(self, value: Any) -> Any:
        # hashing a nested tuple recurses in C, as deep as the file says
        if not isinstance(value, SCALARS):
            raise PickleError(f"it uses a {type(value).__name__} as a key")
        return value

    def do_global(self, argument: str) -> None:
        self.push_global(*argument.split(" ", 1))

    def do_stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("it names a global by something that is not text")
        self.push_global(module, name)

    def push_global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in self.known:
            raise PickleError(f"it names {full[:200]!r}, which is neither a tensor nor a plain value")
        self.stack.append(self.known[full])

    def do_reduce(self, _: None) -> None:
        arguments = self.pop()
        self.stack.append(self.call(self.pop(), arguments))

    def do_newobj(self, _: None) -> None:
        self.do_reduce(None)

    def call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, Global):
            raise PickleError(f"it calls a {type(called).__name__}")
        if called.call is None or type(arguments) is not tuple:
            raise PickleError(f"it calls {called.name!r} in a way no snapshot does")
        try:
            return called.call(*arguments)
        except (TypeError, AttributeError, KeyError) as error:
            raise PickleError(f"it calls {called.name!r} with arguments that do not fit") from error

    def do_build(self, _: None) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, Record) or type(state) is not dict or target.state:
            raise PickleError(f"it gives attributes to a {type(target).__name__} in a way no snapshot does")
        target.state = state

    def do_binpersid(self, _: None) -> None:
        if self.persistent is None:
            raise PickleError("it refers to a persistent id, something outside the file")
        self.stack.append(self.persistent(self.pop()))
