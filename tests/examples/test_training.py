"""The examples are run: three ways to train, which give the same weights."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvmatch.data.source import to_pictures
from tvmatch.flow_map import FlowMap
from tvmatch.sampling import draw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STEPS, BATCH = 3, 8


def example(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def looped() -> FlowMap:
    return example("loop")["train"](STEPS, BATCH)


def assert_same_weights(ours: FlowMap, theirs: FlowMap, tolerance: float = 0.0) -> None:
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_the_loop_trains_in_25_lines(capsys: pytest.CaptureFixture) -> None:
    (function,) = (
        node
        for node in ast.parse((EXAMPLES / "loop.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "train"
    )
    assert function.end_lineno - function.lineno + 1 <= 25
    average = example("loop")["train"](steps=21, batch=16)
    first, last = (float(number) for number in re.findall(r"loss ([\d.]+)", capsys.readouterr().out))
    assert last < 0.95 * first
    assert to_pictures(draw(average, torch.arange(10), 1.5, 1)).shape == (10, 8, 8, 1)


def test_the_documentation_shows_the_loop_as_it_is() -> None:
    assert (EXAMPLES / "loop.py").read_text() in (ROOT / "docs" / "python_api.md").read_text()


def test_accelerate_gives_the_same_weights(looped: FlowMap) -> None:
    from accelerate import Accelerator

    assert_same_weights(example("accelerate_training")["train"](Accelerator(cpu=True), STEPS, BATCH), looped)


def test_lightning_gives_the_same_weights(looped: FlowMap) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    ours = example("lightning_training")["train"](STEPS, BATCH, accelerator="cpu", **quiet)
    assert_same_weights(ours, looped)


TWO_PROCESSES = f"""
import runpy, sys, torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
average = runpy.run_path({str(EXAMPLES / "accelerate_training.py")!r})["train"](accelerator, {STEPS}, {BATCH})
if accelerator.is_main_process:
    torch.save(average.state_dict(), sys.argv[1])
accelerator.end_training()
"""


@pytest.mark.slow
def test_accelerate_on_two_processes_gives_the_same_weights(looped: FlowMap, tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, str(script), str(out)], check=True, timeout=240, cwd=tmp_path)
    saved = torch.load(out, weights_only=True)
    for name, value in looped.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-6)
