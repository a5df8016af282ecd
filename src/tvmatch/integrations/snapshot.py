"""Official training snapshots: a pickle of the network's modules, read as tensors and plain values.

The modules of the network appear in the file by the names of their classes. None of them is imported: what is kept of
each is its attributes, its tensors and its parts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tvmatch.integrations.inert_pickle import SCALARS, Global, PickleError, Record, read_pickle
from tvmatch.integrations.pickled_tensors import TENSORS, TensorView

NETWORKS = ("ema", "net")  # the names under which a snapshot keeps its network; an average is preferred
COMPILED = "_orig_mod"
MOST_MODULES = 20_000  # XL has about 600
MODULES = (
    "torch.nn.modules.activation.GELU",
    "torch.nn.modules.activation.SiLU",
    "torch.nn.modules.container.ModuleDict",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.normalization.RMSNorm",
    "torch.nn.modules.sparse.Embedding",
    "timm.layers.drop.DropPath",
    "timm.layers.mlp.Mlp",
    "timm.layers.patch_embed.PatchEmbed",
    "timm.models.vision_transformer.Attention",
    "timm.models.vision_transformer.Mlp",
    "timm.models.vision_transformer.PatchEmbed",
    "training.dit.Attention",
    # what torch.compile wraps around a module
    "torch._dynamo.eval_frame.OptimizedModule",
    "torch._dynamo.eval_frame.OptimizeContext",
    "torch._dynamo.convert_frame.CatchErrorsWrapper",
    "torch._dynamo.convert_frame.ConvertFrame",
    "torch._dynamo.convert_frame.ConvertFrameAssert",
    "torch._dynamo.convert_frame.ConvertFrameBox",
    "torch._dynamo.hooks.Hooks",
    "torch._dynamo.repro.after_dynamo.WrapBackendDebug",
    "torch._TorchCompileInductorWrapper",
    "contextlib.nullcontext",
)
DTYPES = ("float16", "bfloat16", "float32", "float64")


class SnapshotError(ValueError):
    """A file that is not an official snapshot, or holds what is not read; the message says which and why."""


@dataclass(frozen=True)
class Snapshot:
    """What an official snapshot holds of its network.

    tensors     by the official names, without the prefixes of wrappers and of `torch.compile`
    attributes  plain values that the wrapper and the network keep of themselves; the network's own win
    modules     (class name, plain attributes) of each part of the network
    network     the name in the snapshot, `ema` or `net`
    data        what the snapshot says of its data set, plain values
    """

    tensors: dict[str, Tensor]
    attributes: dict[str, Any]
    modules: list[tuple[str, dict[str, Any]]]
    network: str
    data: dict[str, Any]


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot; nothing in it is executed. Raises `SnapshotError`, or `OSError` if there is no such file."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            content = read_pickle(file, KNOWN, size=size)
            if file.tell() != size:
                raise PickleError("something follows its end")
            return _snapshot(content, size)
    except PickleError as error:
        raise SnapshotError(f"{path} is refused: {error}. Nothing in it was executed or imported.") from error


def _record(name: str) -> Global:
    return Global(name, lambda *arguments: Record(name, arguments))


def _persistent_object(meta: Any) -> Record:
    """An object that the official code would make of source text kept in the file; here only its attributes count."""
    name, state = meta["class_name"], meta["state"]
    if meta["type"] != "class" or not isinstance(name, str) or type(state) is not dict:
        raise PickleError("it holds a persistent object that is not a class with attributes")
    return Record(name, (), state)


def _dictionary(pairs: Any = ()) -> dict[str, Any]:
    made = {}
    for key, value in pairs:
        if not isinstance(key, SCALARS):
            raise PickleError(f"it uses a {type(key).__name__} as a key")
        made[key] = value
    return made


def _getattr(target: Any, name: Any) -> Record:
    """The one call of `getattr` that PyTorch puts beside a compiled module, for which nothing is done."""
    if isinstance(target, Record) and target.name == "torch._TorchCompileInductorWrapper":
        return Record("builtins.getattr")
    raise PickleError("it names 'builtins.getattr', which is neither a tensor nor a plain value")


KNOWN = {
    **TENSORS,
    **{name: _record(name) for name in MODULES},
    **{f"torch.{name}": Global(f"torch.{name}") for name in DTYPES},
    "torch_utils.persistence._reconstruct_persistent_obj": Global("persistence", _persistent_object),
    "collections.OrderedDict": Global("collections.OrderedDict", _dictionary),
    "dnnlib.util.EasyDict": Global("dnnlib.util.EasyDict", _dictionary),
    "builtins.getattr": Global("builtins.getattr", _getattr),
}


def _snapshot(content: Any, size: int) -> Snapshot:
    if type(content) is not dict:
        raise PickleError(f"it holds a {type(content).__name__} instead of a dictionary with a network")
    name = next((name for name in NETWORKS if content.get(name) is not None), None)
    if name is None:
        held = ", ".join(map(str, content)) or "nothing"
        raise PickleError(f"it holds no network under {' or '.join(NETWORKS)}, but {held:.200}")
    views: dict[str, TensorView] = {}
    modules: list[tuple[str, Record]] = []
    _collect(content[name], views, modules)
    prefix = _network_prefix(views)
    if sum(view.nbytes for view in views.values()) > size:
        raise PickleError("its tensors claim more numbers than the file has")
    attributes: dict[str, Any] = {}
    for path, module in modules:  # wrappers come before what they hold
        if prefix.startswith(f"{path}." if path else ""):
            attributes |= _plain(module.state)
    data = content.get("dataset_kwargs")
    return Snapshot(
        tensors={key.removeprefix(prefix): view.tensor() for key, view in views.items() if key.startswith(prefix)},
        attributes=attributes,
        modules=[(module.name, _plain(module.state)) for _, module in modules],
        network=name,
        data=_plain(data) if type(data) is dict else {},
    )


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if isinstance(value, SCALARS)}


def _collect(network: Any, views: dict[str, TensorView], modules: list[tuple[str, Record]]) -> None:
    """Fill `views` and `modules` by name. A network is a module, or a dictionary of tensors (a state dict)."""
    waiting = [("", network)]
    while waiting:
        path, value = waiting.pop()
        if len(modules) + len(waiting) > MOST_MODULES:
            raise PickleError(f"its network has more than {MOST_MODULES} parts")
        if type(value) is dict:
            tensors, parts = value, {}
        elif isinstance(value, Record):
            compiled = value.name.endswith(".OptimizedModule") and value.arguments
            state = value.state
            modules.append((path, value))
            tensors = {**_table(state, "_parameters"), **_table(state, "_buffers")}
            parts = _table(state, "_modules") | ({COMPILED: value.arguments[0]} if compiled else {})
        else:
            raise PickleError(f"its network has a part {path!r:.100} that is a {type(value).__name__}")
        for key, view in tensors.items():
            full = _join(path, key)
            if view is None:
                continue
            if not isinstance(view, TensorView):
                raise PickleError(f"{full:.100} is a {type(view).__name__} instead of a tensor")
            if full in views:
                raise PickleError(f"it holds {full:.100} twice")
            views[full] = view
        # backwards onto the stack, so that parts are visited in their order
        waiting += [(_join(path, key), part) for key, part in reversed(parts.items()) if part is not None]


def _table(state: dict[str, Any], name: str) -> dict[str, Any]:
    table = state.get(name, {})
    if type(table) is not dict:
        raise PickleError(f"its modules keep {name} in a {type(table).__name__}")
    return table


def _join(path: str, key: Any) -> str:
    """The name of a part; `torch.compile` adds a level to names, which is left out."""
    if not isinstance(key, str) or len(path) + len(key) > 1_000:
        raise PickleError("its modules have parts without names, or nest too deep")
    parts = [part for part in key.split(".") if part != COMPILED]
    return ".".join([path, *parts] if path else parts)


def _network_prefix(views: dict[str, TensorView]) -> str:
    """What stands before the network's own names, `model.` for example."""
    mark = "x_embedder.proj.weight"
    found = [name.removesuffix(mark) for name in views if name == mark or name.endswith(f".{mark}")]
    if len(found) != 1:
        raise PickleError(f"it holds {len(found) or 'no'} networks with a tensor {mark}; one is needed")
    return found[0]
