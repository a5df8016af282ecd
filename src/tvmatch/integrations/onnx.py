"""A trained model as one ONNX graph: a step from t down to s, for any batch, checked in onnxruntime.

Inputs x float32 [batch, *data_shape], t, s and w float32 [batch], class int64 [batch] (-1: no class). Output x_s,
like x. With x noise, t = 1 and s = 0 it draws in one call; any number of calls is a loop over times.
"""

import contextlib
import json
import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tvmatch.files import replacing
from tvmatch.flow_map import FlowMap
from tvmatch.interpolant import per_sample
from tvmatch.sampling import seeded_noise
from tvmatch.training.trained import TrainedRun

Weights = Literal["float32", "float16", "int8"]
BYTES = {"float32": 4, "float16": 2, "int8": 1}
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.1}  # relative error against PyTorch that is an error
LARGEST = 1_900_000_000  # bytes; a protobuf ends at 2 GiB
SMALLEST = 512  # numbers in a matrix below which it stays float32
OPSET = 18
INPUTS = ("x", "t", "s", "class", "w")


@dataclass(frozen=True)
class OnnxReport:
    """What was written: bytes of the file, and its relative error against PyTorch over a few batches."""

    size: int
    error: float


class Step(nn.Module):
    """The function that is exported: a jump, or an Euler step where only a velocity was learned."""

    def __init__(self, flow: FlowMap, method: Literal["jump", "euler"]) -> None:
        super().__init__()
        self.flow, self.method = flow, method

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        # FlowMap.jump and velocity without their checks, which would fix the batch size of the graph; `compare` holds
        # the graph against `FlowMap` itself
        output = self.flow.network(x, t, s if self.method == "jump" else t, label, w)
        return x + per_sample((s - t) * w if self.flow.scaled else s - t, x) * output

    def reference(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        """The same by `FlowMap`, which checks its arguments."""
        if self.method == "jump":
            return self.flow.jump(x, t, s, label, w)
        return x + per_sample(s - t, x) * self.flow.velocity(x, t, label, w)


def export_onnx(trained: TrainedRun, out: Path, weights: Weights = "float32") -> OnnxReport:
    """Write the model into the file `out`.

    weights  how matrices are stored: float32, float16, or int8 with a scale for each row. Inputs, outputs and the
             arithmetic are float32 in every case, so that every runtime computes alike.

    Raises `ValueError` for what cannot be exported, or if onnxruntime's output is further from PyTorch's than
    TOLERANCES; a file that was there before then stays.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights must be {', '.join(get_args(Weights))}, got {weights!r}.")
    if trained.method == "consistency":
        raise ValueError(
            f"a model of {trained.objective} needs fresh noise between its calls, which the exported step does not "
            "draw; models of the other objectives can be exported."
        )
    onnx, runtime = _libraries()
    trained.flow.cpu().eval()
    count = sum(parameter.numel() for parameter in trained.flow.parameters())
    if count * BYTES[weights] > LARGEST:
        raise ValueError(
            f"{count:,} parameters in {weights} do not fit into one ONNX file, which ends at 2 GiB; take --weights "
            "float16 or int8."
        )
    step = Step(trained.flow, trained.method).eval()
    model = trace(step)
    store_weights(model, weights)
    onnx.helper.set_model_props(model, {"tvmatch": json.dumps(description(trained, weights))})
    content = model.SerializeToString()
    error = compare(runtime.InferenceSession(content, providers=["CPUExecutionProvider"]), step)
    if not error <= TOLERANCES[weights]:  # NaN too
        raise ValueError(
            f"the exported model differs from PyTorch by {error:.2g}, relative, and {TOLERANCES[weights]:g} is allowed "
            f"for {weights}; nothing was written. Take --weights float32."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        file.write(content)
    return OnnxReport(len(content), error)


def trace(step: Step) -> Any:
    """The graph of a step, an `onnx.ModelProto` in float32 with a free batch size."""
    arguments = _example(step, 2, 0)
    batch = torch.export.Dim("batch")
    with _interrupts_kept(), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            step,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["x_s"],
            dynamic_shapes=[{0: batch}] * len(INPUTS),
            verbose=False,
        )
        model = program.model_proto
    # where each node came from in Python, which is as long as the graph
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def store_weights(model: Any, weights: Weights) -> None:
    """Store the matrices of a graph in `weights`, in place; a node brings each back to float32."""
    if weights == "float32":
        return
    onnx, _ = _libraries()
    kept, nodes = [], []
    for initializer in model.graph.initializer:
        value = onnx.numpy_helper.to_array(initializer)
        if value.dtype != np.float32 or value.ndim < 2 or value.size < SMALLEST:
            kept.append(initializer)
            continue
        name, stored = initializer.name, f"{initializer.name}.{weights}"
        if weights == "float16":
            if not np.isfinite(value.astype(np.float16)).all():
                raise ValueError(f"{name} holds numbers beyond float16; take --weights float32.")
            kept.append(onnx.numpy_helper.from_array(value.astype(np.float16), stored))
            nodes.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
        else:
            axis, scale, whole = quantise(value)
            kept.append(onnx.numpy_helper.from_array(whole, stored))
            kept.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
            nodes.append(onnx.helper.make_node("DequantizeLinear", [stored, f"{name}.scale"], [name], axis=axis))
    nodes.extend(model.graph.node)
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


def quantise(value: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(axis, scale [size of axis], int8 like `value`) with value close to scale times int8: symmetric, a scale for each
    row along the axis that loses least."""
    found = []
    for axis in range(value.ndim):
        others = tuple(other for other in range(value.ndim) if other != axis)
        scale = np.abs(value).max(axis=others, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        whole = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
        loss = float(np.square(whole * scale - value, dtype=np.float64).sum())
        found.append((loss, axis, scale.reshape(-1), whole))
    return min(found, key=lambda each: each[:2])[1:]


def compare(session: Any, step: Step) -> float:
    """The largest relative error of a session against PyTorch, over batches of 1, 3 and 8."""
    worst = 0.0
    for seed, batch in enumerate((1, 3, 8)):
        arguments = _example(step, batch, seed + 1)
        with torch.no_grad():
            theirs = step.reference(*arguments)
        feeds = {name: value.numpy() for name, value in zip(INPUTS, arguments, strict=True)}
        ours = torch.from_numpy(session.run(["x_s"], feeds)[0])
        error = float((ours - theirs).norm() / theirs.norm())
        worst = error if math.isnan(error) else max(worst, error)
        if math.isnan(worst):
            break
    return worst


def description(trained: TrainedRun, weights: Weights) -> dict[str, Any]:
    """What the file says of itself, as JSON under `tvmatch` in its metadata."""
    network = trained.flow.network
    return {
        "class_names": list(trained.class_names),
        "num_classes": network.num_classes,
        "data_shape": list(network.data_shape),
        "w": trained.w,
        "nfe": trained.nfe,
        "guidance": trained.guidance,
        "method": trained.method,
        "step": trained.step,
        "ema": trained.ema,
        "weights": weights,
        "latent_space": None if trained.latent_space is None else trained.latent_space.to_header(),
    }


def _example(step: Step, batch: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs that say something: whole jumps and short ones, classes and no class, w of 1 to 3."""
    network = step.flow.network
    generator = torch.Generator().manual_seed(seed)
    t = 1 - 0.5 * torch.rand(batch, generator=generator)
    s = t * torch.rand(batch, generator=generator)
    t[0], s[0] = 1.0, 0.0
    label = torch.arange(batch) % (network.num_classes + 1) - 1
    w = 1 + 2 * torch.rand(batch, generator=generator)
    return seeded_noise(seed, range(batch), network.data_shape), t, s, label, w


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; exporting to ONNX needs: pip install 'tvmatch[export]'") from error
    return onnx, onnxruntime


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """The exporter catches an interrupt too, and goes on or tells it as a failure of its own: here it is raised again
    at the end of the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # no interrupt is raised here
        return
    raised = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        try:
            before(number, frame)
        except KeyboardInterrupt:
            raised = True
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if not raised:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if raised:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecated calls, and that torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
