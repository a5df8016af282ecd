"""Pickles like the official ones, written by Python's own pickler, and hostile ones, written by hand."""

import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SNAPSHOT = Path(__file__).parents[1] / "data" / "official_snapshot_a.pkl"


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("a test has unpickled")


class Persistent(nn.Module):
    """A module that is pickled as the official ones are: by its attributes, and source text that is empty here."""

    class_name = "Part"

    def __reduce__(self) -> tuple:
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": self.class_name, "state": self.__dict__}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def module_tree(tensors: dict[str, Tensor], compiled: tuple[str, ...] = (), path: str = "", **values: Any) -> nn.Module:
    """Modules that hold `tensors` under their names; those whose paths are in `compiled` are compiled."""
    module = Persistent()
    module.__dict__.update(values)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            parts.setdefault(head, {})[rest] = tensor
        else:
            module.register_parameter(head, nn.Parameter(tensor.clone(), requires_grad=False))
    for head, part in parts.items():
        module.add_module(head, module_tree(part, compiled, f"{path}{head}."))
    return torch.compile(module) if path.removesuffix(".") in compiled else module


def dump(value: Any) -> bytes:
    """Pickle, with the official module of persistent objects in place."""
    names = ("torch_utils", "torch_utils.persistence")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {name: types.ModuleType(name) for name in names}
    _reconstruct_persistent_obj.__module__ = names[1]
    sys.modules[names[1]]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    try:
        return pickle.dumps(value, 4)
    finally:
        for name in names:
            sys.modules.pop(name)
            if before[name] is not None:
                sys.modules[name] = before[name]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def calling(module: str, name: str, argument: bytes) -> bytes:
    """{"net": module.name(argument)}."""
    return b"\x80\x02}" + text("net") + f"c{module}\n{name}\n".encode() + argument + b"\x85Rs."


def snapshot_of(value: bytes) -> bytes:
    """{"net": value}, the value given as operations."""
    return b"\x80\x02}" + text("net") + value + b"s."


def layers(first: bytes, following: Callable[[bytes], bytes], levels: int) -> bytes:
    """{"0": first, "1": following(0), ..., "net": the last}: each is made of the one before."""
    made = b"\x80\x02}" + text("0") + first + b"q\x00s"
    for i in range(levels):
        made += (
            text("net" if i == levels - 1 else str(i + 1)) + following(b"h" + bytes([i])) + b"q" + bytes([i + 1]) + b"s"
        )
    return made + b"."


def pair(below: bytes) -> bytes:
    """A list of one value twice."""
    return b"](" + below + below + b"e"


def module_pair(below: bytes) -> bytes:
    """A module that holds one module twice."""
    parts = b"}(" + text("a") + below + text("b") + below + b"u"
    return b"ctorch.nn.modules.container\nSequential\n)\x81}" + text("_modules") + parts + b"sb"


LEAF = b"ctorch.nn.modules.linear\nLinear\n)\x81"


def storage(numbers: int, content: bytes, announced: int | None = None, kind: str = "FloatStorage") -> bytes:
    """The bytes of a storage as `torch.save` writes it in its older format, which may lie."""
    identifier = ("storage", Stand(kind), "0", "cpu", numbers, None)
    stream = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    operations = b"(" + text("storage") + f"ctorch\n{identifier[1].name}\n".encode() + text("0") + text("cpu")
    operations += b"\x8a\x08" + struct.pack("<q", numbers) + b"Nt"
    stream += b"\x80\x02" + operations + b"Q." + pickle.dumps(["0"], 2)
    return stream + struct.pack("<q", numbers if announced is None else announced) + content


class Stand:
    """The name of a storage type."""

    def __init__(self, name: str) -> None:
        self.name = name


def tensor(stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The operations that make a tensor."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    loaded = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(stored)) + stored + b"\x85R"
    empty = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + loaded
        + numbers((offset,))[1:-1]
        + numbers(shape)
        + numbers(strides)
        + b"\x89"
        + empty
        + b"tR"
    )


FLOATS = struct.pack("<4f", 1, 2, 3, 4)
MARKER = "tvmatch-was-here"

# name -> (the bytes, what the error says)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "os.system": (calling("os", "system", text(f"touch {MARKER}")), "'os.system'"),
    "posix.system": (calling("posix", "system", text(f"touch {MARKER}")), "'posix.system'"),
    "builtins.eval": (calling("builtins", "eval", text(f"open('{MARKER}', 'w')")), "'builtins.eval'"),
    "builtins.exec": (calling("builtins", "exec", text(f"open('{MARKER}', 'w')")), "'builtins.exec'"),
    "python 2 eval": (calling("__builtin__", "eval", text("1")), "'__builtin__.eval'"),
    "getattr": (calling("builtins", "getattr", text("system")), "'builtins.getattr'"),
    "torch.load": (calling("torch.serialization", "load", text("x.pt")), "'torch.serialization.load'"),
    "dotted name": (calling("torch.nn.modules.linear", "Linear.__init__.__globals__", text("x")), "__globals__'"),
    "subprocess named and not called": (snapshot_of(b"csubprocess\nPopen\n"), "'subprocess.Popen'"),
    "instance by INST": (b"\x80\x02(ios\nsystem\n.", "operation INST"),
    "object by OBJ": (b"\x80\x02(cos\nsystem\no.", "'os.system'"),
    "extension registry": (snapshot_of(b"\x82\x01"), "operation EXT1"),
    "nested call": (
        snapshot_of(b"ccollections\nOrderedDict\n" + calling("os", "system", text("x"))[2:-2] + b"R"),
        "os",
    ),
    "call of a value": (snapshot_of(text("x") + b")R"), "calls a str"),
    "call of a dtype": (snapshot_of(b"ctorch\nfloat32\n)R"), "calls 'torch.float32'"),
    "reduce bomb": (snapshot_of(b"ccollections\nOrderedDict\n" + b")R" * 100_000), "calls a dict"),
    "attributes on a dictionary": (snapshot_of(b"}}b"), "gives attributes to a dict"),
    "persistent id": (snapshot_of(text("../x") + b"Q"), "persistent id"),
    "persistent id as text": (b"\x80\x02P../x\n.", "operation PERSID"),
    "memo bomb": (layers(b"]", pair, 100), "part '' that is a list"),
    "modules bomb": (layers(LEAF, module_pair, 100), "more than 20000 parts"),
    "memo that is not there": (snapshot_of(b"h\x05"), "refers to value 5"),
    "deep lists": (snapshot_of(b"]" * 100_000 + b"a" * 99_999), "nests deeper"),
    "deep tuples": (snapshot_of(b")" + b"\x85" * 50_000), "nests deeper"),
    "deep marks": (snapshot_of(b"(" * 100_000), "nests deeper"),
    "deep tuple as a key": (b"\x80\x02})" + b"\x85" * 50_000 + b"Ns.", "uses a tuple as a key"),
    "deep tuple as a key of a call": (
        snapshot_of(b"cdnnlib.util\nEasyDict\n((" + b")" + b"\x85" * 500_000 + b"Ntt\x85R"),
        "uses a tuple as a key",
    ),
    "a list in itself": (snapshot_of(b"]q\x00h\x00a"), "part '' that is a list"),
    "a length that lies": (snapshot_of(b"B\xff\xff\xff\x7f123"), "damaged or cut short"),
    "a long length that lies": (snapshot_of(b"\x8e" + b"\xff" * 7 + b"\x7f123"), "damaged or cut short"),
    "a frame that lies": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.", "a frame of"),
    "a negative length": (snapshot_of(b"\x8b\xff\xff\xff\xff"), "damaged or cut short"),
    "fewer numbers than announced": (snapshot_of(tensor(storage(2**40, FLOATS), (2, 2), (2, 1))), "announces"),
    "two announcements": (snapshot_of(tensor(storage(4, FLOATS, 5), (2, 2), (2, 1))), "announces"),
    "an unknown storage": (
        snapshot_of(tensor(storage(4, FLOATS, kind="UntypedStorage"), (2,), (1,))),
        "UntypedStorage",
    ),
    "a shape that lies": (snapshot_of(tensor(storage(4, FLOATS), (2**30, 2**10), (2**10, 1))), "does not fit"),
    "one number many times": (snapshot_of(tensor(storage(4, FLOATS), (2**30, 2**10), (0, 0))), "does not fit"),
    "no numbers in a shape that lies": (
        snapshot_of(
            b"}" + text("x_embedder.proj.weight") + tensor(storage(4, FLOATS), (0, 2**47, 2**47), (1,) * 3) + b"s"
        ),
        "of 3 dimensions .* is too large",
    ),
    "too many dimensions": (
        snapshot_of(tensor(storage(4, FLOATS), (2**46,) * 50_000, (0,) * 50_000)),
        "of 50000 dimensions .* is too large",
    ),
    "an offset that lies": (snapshot_of(tensor(storage(4, FLOATS), (2,), (1,), 3)), "does not fit"),
    "a negative offset": (snapshot_of(tensor(storage(4, FLOATS), (2,), (1,), -1)), "shape"),
    "hostile storage": (
        snapshot_of(b"ctorch.storage\n_load_from_bytes\nC\x10\x80\x02cos\nsystem\n)R.\x85R"),
        "'os.system'",
    ),
    "no network": (b"\x80\x02}" + text("state") + b"Ns.", "no network under ema or net, but state"),
    "a network without tensors": (snapshot_of(b"}"), "no networks with a tensor x_embedder.proj.weight"),
    "not a dictionary": (b"\x80\x02K\x01.", "holds a int"),
    "two pickles": (b"\x80\x02}" + text("net") + b"}s." + b"N.", "something follows"),
    "values left over": (b"\x80\x02NN.", "left over"),
    "nothing": (b"", "damaged or cut short"),
    "no pickle": (b"PK\x03\x04 a zip file", "damaged|operation|where there is none"),
    "text": (b"hello, this is no pickle\n", "damaged|operation|refers"),
}
