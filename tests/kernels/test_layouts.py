"""What Triton makes of the fused layers for an H100 or H200, without one: no row is moved from one layout to another.

Such a move stands nowhere in the source and changes no number, and was a third of the time of some of these kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = """
import sys
from fused_layers_compiled import compiled, moves
kind, size, pair = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
print(*(f"{name}: {moves(kernel)}" for name, kernel in compiled(kind, size, pair)), sep="\\n")
"""


def moves_of(kind: str, size: int, pair: bool) -> list[str]:
    # in a process of its own: the tests beside this one have Triton's kernels run by its interpreter
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", PROGRAM, kind, str(size), str(pair)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(("kind", "size"), [("norm", 384), ("norm", 1152), ("gelu", 1536)])
def test_no_row_changes_its_layout(kind: str, size: int, pair: bool) -> None:
    assert moves_of(kind, size, pair) == ["forward: 0", "backward: 0"]


@pytest.mark.parametrize("pair", [True, False])
def test_attention_and_its_norm_compile(pair: bool) -> None:
    """Their products want other layouts than memory does; that they compile, the interpreter does not show."""
    assert len(moves_of("heads", 64, pair)) == 6
