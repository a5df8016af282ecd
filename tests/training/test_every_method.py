"""Every objective under the trainer: killed and continued to the same bits, the same in micro-steps and on ranks."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.training.pool import Pool
from tests.training.support import TINY, assert_same_bits, last_tensors, tiny_config, tiny_network
from tvmatch.ablation.points import PointSource
from tvmatch.data.digits import digits_source
from tvmatch.data.source import Source
from tvmatch.flow_map import FlowMap
from tvmatch.networks.mlp import MLPConfig
from tvmatch.networks.presets import build_network
from tvmatch.objectives import Part
from tvmatch.training.build import build_objective
from tvmatch.training.config import ObjectiveName, TrainConfig
from tvmatch.training.distributed import distribute
from tvmatch.training.loop import train
from tvmatch.training.preparing import prepare
from tvmatch.training.progress import TrainingProgress
from tvmatch.training.ranks import Ranks, join_ranks
from tvmatch.training.run_folder import MetricsFile

ALONE = Ranks(torch.device("cpu"))
# curricula and learned weights move from the first step on
OPTIONS: dict[str, Any] = {"guidance": "1:2", "batch_size": 16, "steps": 3, "checkpoint_every": 1, "warmup_steps": 0}


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_killed_and_continued_and_in_micro_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    options = OPTIONS | {"objective": objective}
    train(tiny_config(tmp_path / "whole", **options), show=False)
    write = MetricsFile.write

    def killed(self: MetricsFile, values: dict) -> None:
        write(self, values)
        if values["step"] == 2:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny_config(tmp_path / "killed", **options), show=False)
    train(tiny_config(tmp_path / "killed", **options), show=False)
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")

    if objective == "inductive-moment-matching":
        # its groups are formed within a micro-step, of samples of one class or, as here, of none
        options |= {"label_dropout": 1 - 1e-9}  # with guidance all of them is refused
        train(tiny_config(tmp_path / "of_no_class", **options), show=False)
        (tmp_path / "whole").rename(tmp_path / "with_classes")
        (tmp_path / "of_no_class").rename(tmp_path / "whole")
    train(tiny_config(tmp_path / "parts", accumulate=2, **options), show=False)
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    # AdamW divides by the size of a gradient: of one near zero, the order of sums is felt
    for name, value in whole.items():
        assert float((parts[name].double() - value.double()).abs().max()) < 1e-4, name


def test_groups_that_a_batch_cuts_apart_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", objective="inductive-moment-matching", batch_size=6)
    with pytest.raises(ValueError, match=r"groups of 4 samples .* of batch_size=6; make it a multiple of 4\."):
        train(config, show=False)
    assert not config.run.exists()
    train(replace(config, batch_size=8, steps=1), show=False)


def test_a_run_says_how_it_departs_from_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(TrainingProgress, "say", lambda self, text: said.append(text))
    for precision, told in (("float32", 0), ("bfloat16", 1)):
        config = tiny_config(tmp_path / precision, objective="inductive-moment-matching", batch_size=8, steps=1)
        said.clear()
        train(replace(config, precision=precision), show=False)
        assert said[0] == "training on 1438 pictures in 10 classes: '0', '1', '2', ..."
        assert len(said[1:]) == told
    assert "r is at least 0.0312 (t - s) below t" in said[1]


@pytest.mark.parametrize(("source", "network", "mean"), [(digits_source, TINY, -1.0), (PointSource, "MLP-8x1", -0.307)])
def test_times_of_consistency_training_follow_the_data(source: Callable[[], Source], network: str, mean: float) -> None:
    """Pixels in [-1, 1] have a deviation of about 0.5, what is no picture has 1."""
    config = tiny_config(Path("unused"), objective="consistency-training", network=network)
    objective = prepare(config, source(), ALONE)[0].objective
    assert objective.jumps.scheme.mean == pytest.approx(mean, abs=1e-3)


def gradients(names: tuple[ObjectiveName, ...], strategy: str) -> dict[str, dict[str, torch.Tensor]]:
    """Loss and gradients of one step of every method, of 16 points that all ranks share."""
    found = {}
    with join_ranks(strategy, "cpu") as ranks:
        count = 16 // ranks.count
        part = Part(ranks.rank * count, count, 16)
        for name in names:
            torch.manual_seed(0)
            flow = FlowMap(build_network(MLPConfig(hidden_size=8, depth=1, num_classes=3))).double()
            for parameter in flow.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            # in order of the classes, as inductive moment matching puts what each rank has
            points, label = torch.randn(16, 2, dtype=torch.float64), torch.arange(16) // 4 - 1
            dropout = 0.0 if name == "inductive-moment-matching" else 0.1
            config = TrainConfig(objective=name, guidance="1:2", label_dropout=dropout)
            objective = build_objective(config, flow)
            objective.advance(0.5)
            module = distribute(objective, [], ranks)
            objective.seed(7)
            loss = module(part.cut(points), part.cut(label), part).loss
            loss.backward()
            parameters = objective.trained().items()
            found[name] = {n: p.grad for n, p in parameters} | {"loss": ranks.mean(loss.detach().clone())}
    return found


def test_two_ranks_give_the_loss_and_gradients_of_one() -> None:
    names = get_args(ObjectiveName)
    alone = gradients(names, "single")
    pool = Pool(2)
    try:
        answers = pool.run(gradients, 2, names, "ddp")
    finally:
        pool.close()
    for answer in answers:
        assert isinstance(answer, dict), answer
        for name in names:
            assert answer[name].keys() == alone[name].keys()
            for key, value in alone[name].items():
                torch.testing.assert_close(answer[name][key], value, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
