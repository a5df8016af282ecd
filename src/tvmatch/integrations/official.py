"""Networks in the format of the official implementation, from tensors and metadata alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.networks.embeddings import grid_positions

_BLOCK_NAMES = {
    "modulation.linear": "adaLN_modulation.1",
    "attention.qkv": "attn.qkv",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "attention.proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OUTER_NAMES = {
    "patches": "x_embedder.proj",
    "conditioning.time.fc1": "t_embedder.mlp.0",
    "conditioning.time.fc2": "t_embedder.mlp.2",
    "conditioning.gap.fc1": "s_embedder.mlp.0",
    "conditioning.gap.fc2": "s_embedder.mlp.2",
    "conditioning.guidance.fc1": "guidance_embedder.mlp.0",
    "conditioning.guidance.fc2": "guidance_embedder.mlp.2",
    "conditioning.label": "y_embedder.embedding_table",
    "final.modulation.linear": "final_layer.adaLN_modulation.1",
    "final.linear": "final_layer.linear",
}


def official_name(name: str) -> str:
    """Our parameter name -> the official one; `KeyError` if the official network has no such parameter."""
    module, _, kind = name.rpartition(".")
    if module.startswith("blocks."):
        _, index, rest = module.split(".", 2)
        return f"blocks.{index}.{_BLOCK_NAMES[rest]}.{kind}"
    return f"{_OUTER_NAMES[module]}.{kind}"


def config_from_official(metadata: Mapping[str, str]) -> DiTConfig:
    """The network's shape from official metadata (values as text, as safetensors keeps them)."""
    required = ("resolution", "channels", "num_classes", "patch_size", "hidden_size", "depth", "num_heads")
    missing = [key for key in required if key not in metadata]
    if missing:
        raise ValueError(f"official metadata lacks {', '.join(missing)}; it has {', '.join(sorted(metadata))}.")
    number = {key: int(metadata[key]) for key in required}
    return DiTConfig(
        image_size=number["resolution"],
        channels=number["channels"],
        num_classes=number["num_classes"],
        patch_size=number["patch_size"],
        hidden_size=number["hidden_size"],
        depth=number["depth"],
        num_heads=number["num_heads"],
        mlp_ratio=float(metadata.get("mlp_ratio", 4)),
        modulation_norm=metadata.get("modulation_norm", "true").lower() == "true",
        qk_norm=metadata.get("qk_norm", "true").lower() == "true",
    )


def network_from_official(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> DiT:
    """A DiT with the weights of an official network (names without a `net.` prefix), in the tensors' dtype.

    `ValueError` names tensors that are missing, left over or of the wrong shape, and positions that differ from ours.
    """
    config = config_from_official(metadata)
    network = DiT(config)
    tensors = dict(tensors)
    positions = tensors.pop("pos_embed", None)
    if positions is not None:
        side = config.image_size // config.patch_size
        ours = grid_positions(config.hidden_size, side, side)
        # of a network in 16 bits they were rounded: numbers up to 1, so by less than half an eps
        error = max(1e-6, torch.finfo(positions.dtype).eps / 2 if positions.is_floating_point() else 0)
        if positions.shape[1:] != ours.shape or not torch.allclose(positions[0].double(), ours, atol=error):
            raise ValueError("pos_embed differs from the frozen 2-D sin-cos positions of this network.")
    state = {}
    for name, parameter in network.named_parameters():
        key = official_name(name)
        if key not in tensors:
            raise ValueError(f"the official tensors lack {key} (our {name}, shape {list(parameter.shape)}).")
        tensor = tensors.pop(key)
        if tensor.numel() != parameter.numel() or len(tensor) != len(parameter):
            raise ValueError(f"{key} has shape {list(tensor.shape)}; {list(parameter.shape)} is needed for our {name}.")
        state[name] = tensor.reshape(parameter.shape)
    if tensors:
        raise ValueError(f"unknown official tensors: {', '.join(sorted(tensors)[:5])}.")
    network.to(next(iter(state.values())).dtype).load_state_dict(state)
    if positions is not None:
        network.positions.copy_(positions[0])
    return network
