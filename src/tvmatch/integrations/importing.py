"""Official snapshots as ordinary model folders."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from tvmatch.data.codecs import open_codec
from tvmatch.data.latent_space import LatentSpace
from tvmatch.data.opening import open_source
from tvmatch.files import new_folder, sync_folder, write_text
from tvmatch.integrations.official import network_from_official
from tvmatch.integrations.snapshot import Snapshot, SnapshotError, read_snapshot
from tvmatch.networks.dit import DiT
from tvmatch.networks.layers import EPS
from tvmatch.networks.presets import SIZES
from tvmatch.training.checkpoint import FORMAT, CheckpointError, checkpoint_path, first_failure
from tvmatch.training.config import TrainConfig, to_yaml
from tvmatch.training.header import ema_prefix
from tvmatch.training.preview import default_w
from tvmatch.training.storage import SafetensorsWriter

DECAY = 0.9999  # of the paper's evaluation average, under which the weights are kept


@dataclass(frozen=True)
class Defaults:
    """What a snapshot does not say of the model in it.

    guidance  how w was drawn in training, as `tvmatch train --guidance`: a scale, a range, or `inverse`
    w         the scale to sample with (None: what `guidance` implies)
    nfe       network calls to sample with
    scaled    whether the output is multiplied by w; asked only of a snapshot without `do_scale_param`
    """

    guidance: str = "2"
    w: float | None = None
    nfe: int = 1
    scaled: bool | None = None


@dataclass(frozen=True)
class Surroundings:
    """What the network draws and learned from: by a data set that is here, or by a codec alone."""

    data: str = ""
    fingerprint: str | None = None
    class_names: tuple[str, ...] = ()
    latent_space: LatentSpace | None = None


def metadata_of(snapshot: Snapshot, scaled: bool | None = None) -> dict[str, str]:
    """The network's shape, by the shapes of its tensors, so that nothing is built which the file does not hold; what
    else the file says of it must agree. `SnapshotError` names what does not."""
    shapes = {name: list(tensor.shape) for name, tensor in snapshot.tensors.items()}

    def shape(name: str, dimensions: int) -> list[int]:
        if len(shapes.get(name, [])) != dimensions:
            raise SnapshotError(f"the snapshot's {name} has shape {shapes.get(name)}, not {dimensions} dimensions.")
        return shapes[name]

    hidden, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    tokens = shape("pos_embed", 3)[1]
    depth = sum(name.startswith("blocks.") and name.endswith(".attn.qkv.weight") for name in shapes)
    heads = snapshot.attributes.get("num_heads")
    normed = "blocks.0.attn.q_norm.weight" in shapes
    if normed:
        head_size = shape("blocks.0.attn.q_norm.weight", 1)[0]
        heads = hidden // head_size if head_size else 0
    if heads is None:
        raise SnapshotError("the snapshot does not say num_heads, and no q_norm in it tells the size of a head.")
    for name in ("do_scale_param", "do_mod_norm"):
        for attributes in (snapshot.attributes, *(attributes for _, attributes in snapshot.modules)):
            if not isinstance(attributes.get(name, True), bool):
                raise SnapshotError(f"the snapshot says {name}={attributes[name]!r}, which is not True or False.")
    says = _said_of_parts(snapshot)
    found = {
        "resolution": math.isqrt(tokens) * patch,
        "channels": channels,
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        "patch_size": patch,
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": shape("blocks.0.mlp.fc1.weight", 2)[0] / max(hidden, 1),
        "qk_norm": normed,
        "modulation_norm": says.get("do_mod_norm", True),
        "scaled_parameterisation": snapshot.attributes.get("do_scale_param", scaled),
    }
    for name, attribute in (
        ("resolution", "img_resolution"),
        ("channels", "img_channels"),
        ("num_classes", "label_dim"),
        ("patch_size", "patch_size"),
        ("num_heads", "num_heads"),
    ):
        said = snapshot.attributes.get(attribute, found[name])
        if said != found[name]:
            raise SnapshotError(f"the snapshot says {attribute}={said!r}, and its tensors {name}={found[name]!r}.")
    if found["scaled_parameterisation"] is None:
        raise SnapshotError("the snapshot does not say do_scale_param; say --scaled True or False.")
    if scaled not in (None, found["scaled_parameterisation"]):
        raise SnapshotError(f"the snapshot says do_scale_param={not scaled}; leave --scaled out.")
    return {name: str(value) for name, value in found.items()}


def _said_of_parts(snapshot: Snapshot) -> dict[str, Any]:
    """What the parts say of themselves that changes what they compute; raises where our network computes otherwise."""
    says: dict[str, Any] = {}
    for name, attributes in snapshot.modules:
        kind = name.rpartition(".")[2]
        if kind == "LayerNorm":
            raise SnapshotError(f"the network has a {name}; the network of the paper has RMSNorm instead.")
        expected = {"RMSNorm": {"eps": EPS}, "GELU": {"approximate": "tanh"}}.get(kind, {})
        for key, value in expected.items():
            if attributes.get(key, value) != value:
                raise SnapshotError(f"the network has a {name} with {key}={attributes[key]!r}; {value!r} is needed.")
        if (
            "do_mod_norm" in attributes
            and says.setdefault("do_mod_norm", attributes["do_mod_norm"]) != (attributes["do_mod_norm"])
        ):
            raise SnapshotError("some parts of the network say do_mod_norm=True, and others do not.")
    return says


def open_surroundings(
    network: DiT,
    data: str | None = None,
    codec: str | None = None,
    mean: tuple[float, ...] = (),
    deviation: tuple[float, ...] = (),
) -> Surroundings:
    """The data set `data` (pictures, or latents of `tvmatch encode`), or the `codec` of the latents that the network
    draws, with the mean and deviation of each channel. `ValueError` where the network does not fit."""
    config, shape = network.config, network.data_shape
    if data is not None:
        if codec is not None or mean or deviation:
            raise ValueError("--data tells the codec, the mean and the deviation; leave the others out.")
        source = open_source(data, None)
        if source.shape != shape or source.num_classes != config.num_classes:
            raise ValueError(
                f"{data} holds {source.num_classes} classes of shape {list(source.shape)}; the network draws "
                f"{config.num_classes} classes of shape {list(shape)}."
            )
        return Surroundings(data, source.fingerprint, tuple(source.class_names), source.latent_space)
    if codec is None:
        if mean or deviation:
            raise ValueError("--mean and --deviation belong to a --codec, which is missing.")
        return Surroundings()
    if not mean or not deviation:
        raise ValueError(f"--codec needs --mean and --deviation, {shape[0]} numbers each: how latents were normalised.")
    opened = open_codec(codec)
    if opened.channels != shape[0]:
        raise ValueError(f"codec {codec} makes latents of {opened.channels} channels; the network draws {shape[0]}.")
    side = config.image_size * opened.factor
    return Surroundings(latent_space=LatentSpace(opened.spec, opened.hash, shape, side, mean, deviation))


def import_official(
    path: Path,
    out: Path,
    defaults: Defaults = Defaults(),
    surroundings: Callable[[DiT], Surroundings] = lambda _: Surroundings(),
) -> Snapshot:
    """Read the official snapshot `path` and write the model folder `out`, which must not be there yet: config.yaml and
    one checkpoint, float32. `surroundings` says, of the network, what it draws.

    Raises `SnapshotError` or `ValueError` (nothing is written then), `OSError` if the disk refuses.
    """
    if out.exists():
        raise ValueError(f"{out} exists; choose a new folder.")
    if defaults.nfe < 1:
        raise ValueError(f"nfe must be at least 1, got {defaults.nfe}.")
    if defaults.w is not None and not 0 < defaults.w < math.inf:
        raise ValueError(f"w must be positive and finite (1 is no guidance), got {defaults.w:g}.")
    config = TrainConfig(run=out, guidance=defaults.guidance)  # raises for guidance that means nothing
    snapshot = read_snapshot(path)
    try:
        metadata = metadata_of(snapshot, defaults.scaled)
        # the positions, which are compared and not kept, in the type that rounded them
        tensors = {name: value if name == "pos_embed" else value.float() for name, value in snapshot.tensors.items()}
        network = network_from_official(tensors, metadata)
    except ValueError as error:
        raise SnapshotError(f"{path} is refused: {error}") from error
    for name, value in network.state_dict().items():
        if not bool(value.isfinite().all()):
            raise SnapshotError(f"{path} is refused: the weights of {name} hold NaN or infinity.")
    around = surroundings(network)
    scaled = metadata["scaled_parameterisation"] == "True"
    w = default_w(defaults.guidance, network.num_classes) if defaults.w is None else defaults.w
    config = dataclasses.replace(
        config,
        data=around.data,
        network=_preset(network),
        scaled=scaled,
        steps=1,
        evaluation_ema=(DECAY,),
    )
    header = {
        "format": FORMAT,
        "imported": True,  # so that its step and its decay are placeholders
        "step": 1,
        "network": dataclasses.asdict(network.config),
        "scaled": scaled,
        "objective": config.objective,
        "guidance": config.guidance,
        "class_names": list(around.class_names or map(str, range(network.num_classes))),
        "data": around.fingerprint,
        "latent_space": None if around.latent_space is None else around.latent_space.to_header(),
        "w": w,
        "nfe": defaults.nfe,
    }
    _write_folder(out, config, header, network)
    return snapshot


def _write_folder(out: Path, config: TrainConfig, header: dict[str, Any], network: DiT) -> None:
    """The folder appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = ema_prefix(DECAY) + "network."
    tensors = {prefix + name: value.detach().contiguous() for name, value in network.state_dict().items()}
    try:
        with new_folder(out) as folder, torch.no_grad():
            write_text(folder / "config.yaml", to_yaml(config))
            writer = SafetensorsWriter(checkpoint_path(folder, header["step"]), header, lambda: None)
            dcp.save(tensors, storage_writer=writer, no_dist=True)
    except CheckpointException as error:
        raise CheckpointError(f"cannot write {out}: {first_failure(error)}.") from error
    sync_folder(out.parent)


def _preset(network: DiT) -> str:
    """The preset with this network's shape, or `official`."""
    config = network.config
    for name, size in SIZES.items():
        if size == (config.hidden_size, config.depth, config.num_heads, config.mlp_ratio):
            return f"DiT-{name}/{config.patch_size}"
    return "official"
