"""Parity with the official implementation, float64: both reference files, outputs, losses and every gradient."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.integrations.official import network_from_official, official_name
from tvmatch.objectives import TerminalVelocityMatching

DATA = Path(__file__).parents[1] / "data"


def load(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(DATA / f"tvm_reference_{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.float64
    return float((ours.detach().reshape(-1) - theirs.reshape(-1)).norm() / theirs.norm())


@pytest.mark.parametrize("name", ["a", "b"])
def test_outputs_losses_and_gradients(name: str) -> None:
    tensors, metadata = load(name)
    data, gradients = under(tensors, "data."), under(tensors, "grad.")
    scaled = metadata["scaled_parameterisation"] == "true"
    flow = FlowMap(network_from_official(under(tensors, "net."), metadata), scaled)
    target = FlowMap(network_from_official(under(tensors, "target."), metadata), scaled)

    x_s, df_ds = flow.terminal_velocity(data["x_t"], data["t"], data["s"], data["label"], data["w"])
    assert error(x_s, data["f_plus_x"]) < 1e-9
    assert error(df_ds, data["df_ds"]) < 1e-9

    terms = TerminalVelocityMatching.terms(
        flow,
        target,
        x0=data["x0"],
        noise=data["noise"],
        t=data["t"],
        s=data["s"],
        r=data["s_prime"],
        label=data["label"],
        w=data["w"],
    )
    loss = terms.terminal + terms.boundary
    for ours, theirs in (
        (terms.terminal, data["terminal_loss"]),
        (terms.boundary, data["fm_loss"]),
        (loss, data["loss_per_sample"]),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)

    loss.mean().backward()
    parameters = dict(flow.network.named_parameters())
    assert {official_name(key) for key in parameters} == set(gradients)
    for key, parameter in parameters.items():
        assert error(parameter.grad, gradients[official_name(key)]) < 1e-8, key


def test_missing_left_over_and_misshapen_tensors_are_named() -> None:
    tensors, metadata = load("a")
    network = under(tensors, "net.")
    without = {key: value for key, value in network.items() if key != "blocks.1.attn.qkv.bias"}
    with pytest.raises(ValueError, match=r"lack blocks\.1\.attn\.qkv\.bias"):
        network_from_official(without, metadata)
    with pytest.raises(ValueError, match="unknown official tensors: extra"):
        network_from_official(network | {"extra": torch.zeros(1)}, metadata)
    with pytest.raises(ValueError, match=r"final_layer\.linear\.bias has shape \[5\]"):
        network_from_official(network | {"final_layer.linear.bias": torch.zeros(5)}, metadata)
    with pytest.raises(ValueError, match="pos_embed differs"):
        network_from_official(network | {"pos_embed": network["pos_embed"] + 1}, metadata)
    with pytest.raises(ValueError, match="metadata lacks depth"):
        network_from_official(network, {key: value for key, value in metadata.items() if key != "depth"})
