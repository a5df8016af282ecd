"""What the loop asks of a step on a GPU: skipping without a word to the host (make test-gpu)."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import randomise
from tests.training.support import assert_same_bits, steps_of_a_run, tiny_command, tiny_config
from tvmatch.cli import main
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training.checkpoint import list_checkpoints
from tvmatch.training.ema import EvaluationEma, move_towards
from tvmatch.training.instruments import Instruments
from tvmatch.training.loop import _Run
from tvmatch.training.muon import Muon
from tvmatch.training.state import TrainingState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class Step:
    """A training step as the loop makes it."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        config = DiTConfig(image_size=4, channels=2, num_classes=3, patch_size=2, hidden_size=16, depth=2, num_heads=2)
        self.objective = TerminalVelocityMatching(FlowMap(randomise(DiT(config))).to(self.device))
        self.flow = self.objective.flow
        self.parameters = list(self.flow.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.1, fused=True)
        self.training = TrainingState(self.objective, EvaluationEma(self.flow, (0.0, 0.9)), self.optimizer)
        self.instruments = Instruments(self.training.skipped)
        self.x0 = torch.randn(8, 2, 4, 4, device=self.device)
        self.label = torch.arange(8, device=self.device) % 4 - 1

    def __call__(self, factor: Tensor) -> None:
        self.objective.seed(self.training.step)
        result = self.objective(self.x0, self.label)
        result = result._replace(loss=result.loss * factor)
        result.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.instruments.observe(result)
        self.training.descend(self.instruments.decide(norm, self.training.step), 0.99)
        self.optimizer.zero_grad()

    def state(self) -> list[Tensor]:
        """Everything a checkpoint holds, but for the count of skipped steps."""
        tensors = self.training.tensors().items()
        return [value.detach().clone() for name, value in tensors if not name.startswith("skipped.")]


def test_a_skipped_step_leaves_every_bit_and_no_step_waits_for_the_host() -> None:
    step = Step()
    good, bad = torch.ones((), device=step.device), torch.full((), float("nan"), device=step.device)
    step(good)
    step(good)
    before = step.state()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # whatever makes the host wait raises
    try:
        step(bad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(step.state(), before, strict=True))
    step(good)
    assert not any(torch.equal(a, b) for a, b in zip(step.parameters, before, strict=False))
    reading = step.instruments.read()
    assert (reading.steps, reading.skipped, reading.skipped_total, reading.last_skipped_step) == (4, 1, 1, 2)
    assert reading.figures["loss"] > 0


def test_muon_in_bfloat16_takes_the_steps_of_float32_and_skips_without_a_trace() -> None:
    gradients = [torch.randn(3, 96, 32), torch.randn(3, 96, 32)]
    ends = []
    for device in ("cpu", "cuda"):
        weights = [torch.nn.Parameter(torch.zeros(96, 32, device=device)) for _ in range(3)]
        optimizer = Muon(weights, lr=0.1)
        for gradient in [*gradients, torch.full((3, 96, 32), float("nan"))]:
            for weight, value in zip(weights, gradient, strict=True):
                weight.grad = value.to(device)
            optimizer.found_inf = 1 - gradient.isfinite().all().float().to(device)
            optimizer.step()
        ends.append(torch.stack([weight.detach().cpu() for weight in weights]))
    assert float((ends[1] - ends[0]).norm() / ends[0].norm()) < 0.03


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.99, 0.9999])
def test_averages_move_as_without_a_skip(decay: float) -> None:
    step = Step()
    randomise(step.flow)
    first = step.training.ema.flows[0.9]
    second = copy.deepcopy(first)
    move_towards([(first, decay)], step.flow)
    move_towards([(second, decay)], step.flow, torch.zeros((), device=step.device))
    tolerance = 0 if decay == 0 else 1e-6
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize(
    ("objective", "optimizer"),
    [
        ("terminal-velocity", "adamw"),
        ("terminal-velocity", "muon"),
        ("flow-matching", "adamw"),
        ("mean-flow", "adamw"),
        ("consistency-training", "adamw"),
    ],
)
def test_the_loops_own_step_does_not_wait(tmp_path: Path, objective: str, optimizer: str, graphs: str) -> None:
    """The body of `test_no_waiting.py`, where PyTorch itself says when the host waits; launched, and recorded."""
    options = {"objective": objective, "batch_size": 8, "steps": 20, "device": "cuda", "graphs": graphs}
    options["optimizer"] = optimizer
    with steps_of_a_run(tiny_config(tmp_path / "run", compile="off", **options)) as (run, images, label):
        for _ in range(8):  # after the looks at tangents, and the step that is recorded
            run.step(images, label)
        assert (run.gradient.graph is not None) == (graphs == "on")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")  # whatever makes the host wait raises
        try:
            for _ in range(2):
                run.step(images, label)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        reading = run.instruments.read()
        assert (reading.steps, reading.skipped) == (10, 0)
        run.gradient.close()


def test_a_look_of_the_loops_own_step_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = torch.nn.utils.clip_grad_norm_
    options = {"batch_size": 8, "steps": 20, "device": "cuda", "graphs": "off", "compile": "off"}
    with steps_of_a_run(tiny_config(tmp_path / "run", **options)) as (run, images, label):
        for _ in range(4):
            run.step(images, label)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **k: (n := clip(*a, **k), float(n))[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchronizing"):
                run.step(images, label)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_memory_that_is_full_in_a_step_ends_it_in_one_line_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The GPU's own error, from a share of its memory that leaves none."""
    command = tiny_command(tmp_path / "run", device="cuda", compile="off", graphs="off", sample_every=3)
    backward = _Run.backward

    def starved(self: _Run, images: Tensor, label: Tensor) -> None:
        if self.state.step == 5:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1e-9)
            torch.empty(2**26, device="cuda")
        backward(self, images, label)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "backward", starved)
        try:
            assert main(command) == 1
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    last = list_checkpoints(tmp_path / "run")[-1]
    assert last.name == "step_00000004"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tvmatch train: step 5: out of memory (asked for 256.00 MiB more). The last good checkpoint")
    assert main(command) == 0
    whole = tiny_command(tmp_path / "whole", device="cuda", compile="off", graphs="off", sample_every=3)
    assert main(whole) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
