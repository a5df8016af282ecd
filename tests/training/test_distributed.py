"""Over 1, 2 and 4 processes (gloo): the same loss and gradients, the same checkpoints, and one end for all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training import float64_checks, rank_checks
from tests.training.pool import LIMIT, Pool
from tests.training.rank_checks import config
from tests.training.support import assert_same_bits, last_tensors, tiny_network
from tvmatch.cli import main
from tvmatch.data.digits import digits_source
from tvmatch.training import loop
from tvmatch.training.checkpoint import list_checkpoints
from tvmatch.training.loop import train
from tvmatch.training.ranks import Ranks, join_ranks
from tvmatch.training.saving import Saver

# A network's float32 sums differ in their last digits when they are added up in another order. Of a gradient, relative
# to its largest number in all tensors; and, in each tensor, to the largest number of that tensor (2.6e-5 were seen, of
# norms of keys and of patches, whose gradients are small differences of larger sums)
TOLERANCE = 1e-6
TENSOR_TOLERANCE = 1e-4
STEPS_TOLERANCE = 1e-5  # of what steps of AdamW, which enlarge the last digits, end with (6e-7 was seen)
RECORDED_TOLERANCE = 1e-3  # the same on a GPU, whose blocks compute in 16 bits, after 20 steps
TOLERANCE_64 = 1e-10  # of each tensor by itself, and of the loss, in float64, where rounding is no excuse


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Four processes for all tests of this module."""
    processes = Pool(4)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state as after two steps, with random numbers in every tensor: no derivative is zero, no average equal."""
    run = tmp_path_factory.mktemp("random") / "run"
    with tiny_network():
        state, header, _ = loop.prepare(config(run), digits_source(), Ranks(torch.device("cpu")))
        tensors = state.tensors()
        for name, parameter in state.objective.flow.named_parameters():
            tensors[f"optimizer.step.{name}"] = torch.tensor(2.0)
            for slot in ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer.{slot}.{name}"] = torch.zeros_like(parameter)
        generator = torch.Generator().manual_seed(0)
        for name, value in tensors.items():
            if not name.startswith(("optimizer.step.", "skipped.")):
                tensors[name] = 0.3 * torch.randn(value.shape, generator=generator).abs()
    saver = Saver(run, 1, Ranks(torch.device("cpu")))
    path = saver.start(2, tensors, header)
    saver.wait()
    saver.close()
    return path


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict:
    """Loss and gradient of one process."""
    with tiny_network():
        return rank_checks.gradient(config(checkpoint.parent.parent), checkpoint)


def relative(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest number (0 where there is none)."""
    assert ours.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return apart / largest if apart else 0.0


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Within the tolerances above, and no tensor's gradient is zero, which would equal anything small."""
    assert relative(ours, theirs) < TOLERANCE
    apart = {name: relative({name: ours[name]}, {name: value}) for name, value in theirs.items()}
    assert all(float(value.abs().max()) > 0 for value in theirs.values())
    assert max(apart.values()) < TENSOR_TOLERANCE, dict(sorted(apart.items(), key=lambda each: -each[1])[:3])


def assert_same_state(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Two checkpoints. Weights, target, each average and each slot of the optimiser are compared by themselves, since
    their sizes differ by orders of magnitude; what is counted must be equal."""
    kinds: dict[str, list[str]] = {}
    for name in theirs:
        kinds.setdefault(name.partition(".network.")[0], []).append(name)
    averages = {name for name in kinds if name.startswith("ema.")}
    counts = {"optimizer.step", "skipped.total", "skipped.in_a_row"}
    assert kinds.keys() - averages - counts == {"flow", "target", "optimizer.exp_avg", "optimizer.exp_avg_sq"}
    assert ours.keys() == theirs.keys()
    for kind, names in kinds.items():
        apart = relative({name: ours[name] for name in names}, {name: theirs[name] for name in names})
        assert apart <= (0.0 if kind in counts else tolerance), kind


@pytest.mark.parametrize(
    ("strategy", "ranks", "changes"),
    [
        ("ddp", 2, {}),
        ("ddp", 4, {"accumulate": 2}),
        ("ddp", 2, {"accumulate": 4, "recompute": "full"}),
        ("fsdp", 2, {"accumulate": 2}),
        ("fsdp", 2, {"fsdp_gather": "use"}),
        ("fsdp", 4, {}),
        ("fsdp", 4, {"accumulate": 2, "recompute": "full"}),
        ("fsdp", 2, {"accumulate": 2, "recompute": "full", "fsdp_gather": "use"}),
    ],
)
def test_the_same_batch_gives_the_same_loss_and_gradients(
    pool: Pool, checkpoint: Path, alone: dict, strategy: str, ranks: int, changes: dict
) -> None:
    options = config(checkpoint.parent.parent, strategy=strategy, **changes)
    answers = pool.run(rank_checks.gradient, ranks, options, checkpoint)
    for answer in answers:
        assert isinstance(answer, dict), answer
        assert answer["loss"] == pytest.approx(alone["loss"], rel=TOLERANCE)
        assert_same_gradients(answer["gradients"], alone["gradients"])
        # what was loaded, from a checkpoint of one process, and how the averages then move, to the last bit
        for kind in ("loaded", "average", "target"):
            assert answer[kind].keys() == alone[kind].keys()
            assert all(torch.equal(value, alone[kind][name]) for name, value in answer[kind].items())
        assert answer["moved"]
    for kind, everything in alone["kept"].items():  # each rank keeps all, or its share
        kept = [answer["kept"][kind] for answer in answers]
        if strategy == "ddp":
            assert kept == [everything] * ranks
        else:
            assert max(kept) < everything
            assert sum(kept) == everything or kind == "slots"  # counts of steps are everywhere


@pytest.fixture(scope="module")
def alone_64() -> dict:
    """Loss and gradient of one process in float64."""
    with tiny_network():
        return float64_checks.gradient(config(Path("unused")))


@pytest.mark.parametrize(
    ("strategy", "ranks", "changes"),
    [
        ("single", 1, {"accumulate": 4}),
        ("ddp", 2, {}),
        ("ddp", 4, {"accumulate": 2}),
        ("fsdp", 2, {"accumulate": 2, "recompute": "full", "fsdp_gather": "use"}),
        ("fsdp", 4, {}),
    ],
)
def test_in_float64_each_tensor_has_the_same_gradient(
    pool: Pool, alone_64: dict, strategy: str, ranks: int, changes: dict
) -> None:
    options = config(Path("unused"), strategy=strategy, **changes)
    for answer in pool.run(float64_checks.gradient, ranks, options):
        assert isinstance(answer, dict), answer
        assert answer["loss"] == pytest.approx(alone_64["loss"], rel=TOLERANCE_64)
        assert answer["gradients"].keys() == alone_64["gradients"].keys()
        for name, value in alone_64["gradients"].items():
            assert value.dtype == answer["gradients"][name].dtype == torch.float64
            assert float(value.abs().max()) > 0
            assert relative({name: answer["gradients"][name]}, {name: value}) < TOLERANCE_64, name


@pytest.mark.parametrize(("changes", "step"), [({}, 4), ({"fsdp_gather": "step"}, 4), ({"fsdp_gather": "use"}, 10)])
def test_how_often_sharded_weights_are_gathered(pool: Pool, tmp_path: Path, changes: dict, step: int) -> None:
    """Two units, a block and the rest, of two networks; the target's are used once. `use`: those of the trained network
    in two calls, forward and backward; one of the gathers is a prefetch of FSDP2 that nobody needs."""
    options = config(tmp_path, strategy="fsdp", **changes)
    for answer in pool.run(rank_checks.gathers, 2, options):
        expected = {"first step": step, "step": step, "outside": 2, "average": 2, "last step": step}
        # and nothing is left whole: the optimiser would move its shards behind its back
        assert answer == {name: (count, []) for name, count in expected.items()}


def test_accumulation_in_one_process(checkpoint: Path, alone: dict) -> None:
    answer = rank_checks.gradient(config(checkpoint.parent.parent, accumulate=4), checkpoint)
    assert answer["loss"] == pytest.approx(alone["loss"], rel=TOLERANCE)
    assert_same_gradients(answer["gradients"], alone["gradients"])


def test_a_run_goes_on_with_other_strategies_and_numbers_of_ranks(pool: Pool, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(config(whole, steps=9, sample_every=4), show=False)
    for strategy, ranks, steps in (("fsdp", 4, 3), ("ddp", 2, 5), ("fsdp", 2, 7)):
        # the preview of sharded weights is drawn by all ranks, and the next step finds them sharded again
        answers = pool.run(rank_checks.train, ranks, config(run, steps=steps, strategy=strategy, sample_every=2))
        assert answers == [(steps, None)] * ranks
    assert sorted(path.name for path in list_checkpoints(run)[-1].glob("part_*")) == [
        *("part_00000.safetensors", "part_00001.safetensors")
    ]
    assert main(["sample", str(run), "--count", "4", "--out", str(tmp_path / "sharded.png")]) == 0
    train(config(run, steps=9), show=False)
    assert_same_state(last_tensors(run), last_tensors(whole), STEPS_TOLERANCE)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 9
    assert (run / "samples" / "step_00000004.png").is_file()


def test_muon_takes_the_steps_of_one_process(pool: Pool, tmp_path: Path) -> None:
    """Every rank makes the same matrices orthogonal: nothing is exchanged for it, and nothing drifts."""
    train(config(tmp_path / "one", optimizer="muon", steps=4), show=False)
    options = config(tmp_path / "two", optimizer="muon", steps=4, strategy="ddp")
    assert pool.run(rank_checks.train, 2, options) == [(4, None)] * 2
    ours, theirs = last_tensors(tmp_path / "two"), last_tensors(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for kind in ("flow.", "target.", "ema.", "optimizer.momentum.", "optimizer.exp_avg."):
        names = [name for name in theirs if name.startswith(kind)]
        assert relative({n: ours[n] for n in names}, {n: theirs[n] for n in names}) < STEPS_TOLERANCE, kind


@pytest.mark.parametrize(("strategy", "first"), [("ddp", 11), ("fsdp", 3)])
def test_a_step_that_one_rank_cannot_record_is_an_error_on_all(
    pool: Pool, tmp_path: Path, strategy: str, first: int
) -> None:
    answers = pool.run(rank_checks.record_in_vain, 2, config(tmp_path, strategy=strategy, steps=20))
    for rank, reason in enumerate(
        ("another one says why", "RuntimeError: operation not permitted when stream is capt")
    ):
        steps, error = answers[rank]
        assert steps == first
        assert error.startswith(f"rank {rank}: the step cannot be recorded ({reason}")
        assert "Train with --graphs off." in error


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "ddp"},
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "fsdp_gather": "use"},
    ],
)
def test_recorded_steps_of_two_gpus_train_to_the_same_weights(pool: Pool, tmp_path: Path, changes: dict) -> None:
    for graphs in ("off", "on"):
        options = config(tmp_path / graphs, device="cuda", compile="off", steps=20, graphs=graphs, **changes)
        assert pool.run(rank_checks.train_recorded, 2, options) == [(20, graphs == "on")] * 2
    assert_same_state(last_tensors(tmp_path / "on"), last_tensors(tmp_path / "off"), RECORDED_TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(1100)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_compiled_blocks(pool: Pool, checkpoint: Path, alone: dict, strategy: str) -> None:
    options = config(checkpoint.parent.parent, strategy=strategy, compile="on")
    for answer in pool.run(rank_checks.gradient, 2, options, checkpoint):
        assert isinstance(answer, dict), answer
        assert answer["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert relative(answer["gradients"], alone["gradients"]) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_step_benchmark_counts_all_ranks(pool: Pool, strategy: str) -> None:
    for row in pool.run(rank_checks.measure, 2, strategy):
        assert (row["strategy"], row["ranks"], row["batch"]) == (strategy, 2, 4)
        assert row["images_per_second"] == pytest.approx(8e3 / row["milliseconds"])


def test_ranks_that_were_told_different_things_do_not_start(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(rank_checks.train_apart, 2, config(tmp_path / "run", strategy="ddp"), (0, 1))
    for answer in answers:
        assert answer.startswith("RanksError: before the first step: the ranks have drifted apart: ")
        assert "of rank [1] differs from rank 0" in answer
    assert not (tmp_path / "run").exists()


def test_ranks_that_drift_apart_are_noticed_before_they_are_saved(pool: Pool, tmp_path: Path) -> None:
    options = config(tmp_path / "run", strategy="ddp")
    answers = pool.run(rank_checks.train_with, 2, rank_checks.Drifting, options)
    for answer in answers:
        assert answer.startswith("RanksError: at step 4: the ranks have drifted apart: ")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000002"]


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(pool: Pool, tmp_path: Path) -> None:
    for strategy, ranks in (("single", 1), ("ddp", 2), ("fsdp", 2)):
        options = config(tmp_path / strategy, strategy=strategy, steps=3)
        if ranks == 1:
            rank_checks.train_with(rank_checks.Overflowing, options)
        else:
            pool.run(rank_checks.train_with, ranks, rank_checks.Overflowing, options)
    alone = last_tensors(tmp_path / "single")
    assert int(alone["skipped.total"]) == 1
    for strategy in ("ddp", "fsdp"):
        ours = last_tensors(tmp_path / strategy)
        assert_same_state(ours, alone, STEPS_TOLERANCE)  # two steps of AdamW, not three


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sigterm_on_one_rank_saves_and_ends_all_at_the_same_step(pool: Pool, tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    options = config(run, strategy=strategy)
    answers = pool.run(rank_checks.train_with, 2, rank_checks.Signalled, options)
    assert answers == [(4, 15)] * 2  # one step after the signal, when every rank knows of it
    assert list_checkpoints(run)[-1].name == "step_00000004"
    assert pool.run(rank_checks.train, 2, options) == [(6, None)] * 2
    assert pool.run(rank_checks.train, 2, config(tmp_path / "whole", strategy=strategy)) == [(6, None)] * 2
    assert_same_bits(run, tmp_path / "whole")


def test_a_disk_that_is_full_for_one_rank_stops_all_and_keeps_the_last_checkpoint(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(rank_checks.train_on_a_full_disk, 2, config(tmp_path / "run", strategy="fsdp"))
    for answer in answers:
        assert answer.startswith("CheckpointError: cannot save ")
        assert "step_00000004" in answer
        assert "No space left on device (rank 1)" in answer
        assert "The last good checkpoint is " in answer
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_dies_ends_the_others(pool: Pool, tmp_path: Path, strategy: str) -> None:
    began = time.monotonic()
    options = config(tmp_path / "run", strategy=strategy)
    answers = pool.run(rank_checks.train_with, 2, rank_checks.Dying, options)
    assert time.monotonic() - began < LIMIT
    assert answers[1] is None
    # at the exchange of gradients, or at the next decision
    assert answers[0].startswith("RanksError: rank 0: another process of this run is gone ("), answers
    assert "onnection" in answers[0], answers[0]  # closed or reset by the peer
    assert answers[0].endswith(f"The last good checkpoint is {list_checkpoints(options.run)[-1]}."), answers[0]
    assert pool.run(rank_checks.train, 2, options) == [(6, None)] * 2


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        (
            {"batch_size": 6},
            4,
            "batch_size=6 is that of all processes together: it must be a multiple of 4 processes",
        ),
        ({"accumulate": 3}, 2, r"multiple of 2 processes x 3 micro-steps (--accumulate)"),
        ({"strategy": "single"}, 2, "2 processes were started, but --strategy is single; use ddp or fsdp"),
    ],
)
def test_what_cannot_work_is_refused_by_every_rank(
    pool: Pool, tmp_path: Path, changes: dict, ranks: int, message: str
) -> None:
    answers = pool.run(rank_checks.train, ranks, config(tmp_path / "run", **changes))
    assert all(answer.startswith("ValueError: ") and message in answer for answer in answers), answers
    assert not (tmp_path / "run").exists()


def test_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="--strategy fsdp needs a launcher that starts one process a GPU: torchrun "):
        join_ranks("fsdp", "cpu").__enter__()
    with join_ranks("auto", "cpu") as ranks:
        assert (ranks.strategy, ranks.rank, ranks.count, ranks.main) == ("single", 0, 1, True)
    with pytest.raises(ValueError, match=r"must be a multiple of 1 process x 3 micro-steps"):
        train(config(Path("unused"), accumulate=3), show=False)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "victim", "code"), [(signal.SIGKILL, "rank 1", 1), (signal.SIGTERM, "launcher", 1)])
def test_under_torchrun(tmp_path: Path, number: signal.Signals, victim: str, code: int) -> None:
    """A rank that dies ends the run within a minute, with the cause; SIGTERM saves, and the same command goes on."""
    run = tmp_path / "run"
    options = "--network DiT-Digits/8 --batch-size 4 --log-every 1 --sample-every 0 --checkpoint-every 3 --device cpu"

    def start(steps: int) -> subprocess.Popen:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
        command = [*launcher, "tvmatch", "train", "--run", str(run), "--steps", str(steps), *options.split()]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    launcher, deadline = start(100_000), time.monotonic() + 200
    while not list_checkpoints(run):
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]) if victim == "rank 1" else launcher.pid, number)
    errors = launcher.communicate(timeout=LIMIT)[1]
    assert launcher.returncode == code
    last = int(list_checkpoints(run)[-1].name[5:])
    if number == signal.SIGKILL:
        assert "Root Cause" in errors
        assert "exitcode  : -9" in errors.split("Root Cause")[1]
        assert last % 3 == 0
    else:
        assert f"SIGTERM: saved {list_checkpoints(run)[-1]}; the same command continues the run." in errors
    launcher = start(last + 2)
    errors = launcher.communicate(timeout=200)[1]
    assert launcher.returncode == 0, errors
    assert f"continuing {run} after step {last}" in errors
