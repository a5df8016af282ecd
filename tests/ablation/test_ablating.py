"""Ablations from end to end on tiny runs: figures, tables, pictures, and going on after an interruption."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tvmatch.ablation import ablating, running
from tvmatch.ablation.ablating import Plan, ablate
from tvmatch.ablation.kept import Result
from tvmatch.ablation.points import PointSource, exact_samples, two_colours
from tvmatch.ablation.report import markdown, show, statistic, summarise
from tvmatch.ablation.running import Interrupted
from tvmatch.ablation.study import Study
from tvmatch.ablation.tasks import judge
from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Network
from tvmatch.training.loop import TrainingError, TrainingResult
from tvmatch.training.trained import TrainedRun

TINY = {"network": "MLP-8x1", "steps": 3, "batch_size": 8, "log_every": 1}
STUDY = Study("two jumps", {"paper": {}, "near": {"jumps": "near"}})
PLAN = Plan({"jumps": STUDY}, seeds=2, calls=(1, 2), samples=20, options=TINY)


def test_a_study_gives_figures_a_table_and_a_picture_and_is_done_once(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    report = ablate(PLAN, tmp_path, say=said.append)
    table = report["studies"]["jumps"]["summary"]
    assert [(row["variant"], row["nfe"], row["seeds"]) for row in table] == [
        ("paper", 1, 2), ("paper", 2, 2), ("near", 1, 2), ("near", 2, 2),
    ]  # fmt: skip
    assert all(row["map_error"]["mean"] > 0 and row["lipschitz"]["mean"] > 0 for row in table)
    assert table[0]["map_error"] != table[2]["map_error"]
    assert json.loads((tmp_path / "ablations.json").read_text()) == json.loads(json.dumps(report))
    assert "| near | " in (tmp_path / "ablations.md").read_text()
    assert (tmp_path / "jumps.png").stat().st_size > 5000
    assert not list((tmp_path / "runs").iterdir())  # figures are kept, runs are not
    assert said[-1].startswith("4/4  points, ")
    assert "jumps=near" in said[-1]
    assert said[-1].endswith(" 0 s left")

    monkeypatch.setattr(ablating, "run_cells", lambda cells, *rest: iter([] if not cells else [1 / 0]))
    assert ablate(PLAN, tmp_path)["studies"] == report["studies"]


@pytest.mark.slow
def test_several_workers_give_the_same_figures(tmp_path: Path) -> None:
    plan = Plan({"jumps": STUDY}, seeds=1, calls=(1,), samples=20, options=TINY)
    alone, several = ablate(plan, tmp_path / "a"), ablate(plan, tmp_path / "b", workers=2)
    assert alone["studies"] == several["studies"]


def test_a_signal_keeps_what_is_done_and_the_same_command_goes_on(tmp_path: Path, monkeypatch) -> None:
    real, calls = running.train, []

    def second_is_interrupted(config, source, show):
        calls.append(config.seed)
        if len(calls) == 2:
            return TrainingResult(1, tmp_path, signal.SIGTERM, 0.0)
        return real(config, source, show)

    monkeypatch.setattr(running, "train", second_is_interrupted)
    with pytest.raises(Interrupted, match=r"SIGTERM: stopped; the same command continues\."):
        ablate(PLAN, tmp_path)
    partial = json.loads((tmp_path / "ablations.json").read_text())
    assert len(partial["runs"]) == 1
    assert len(ablate(PLAN, tmp_path)["runs"]) == 4
    assert len(calls) == 5


def test_a_signal_while_a_run_is_judged_ends_the_work_after_it(tmp_path: Path, monkeypatch) -> None:
    real = running.judge

    def judged(*arguments: object) -> list:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(running, "judge", judged)
    with pytest.raises(Interrupted, match="SIGTERM"):
        ablate(PLAN, tmp_path)
    assert len(json.loads((tmp_path / "ablations.json").read_text())["runs"]) == 1


def test_a_run_that_diverges_is_a_result_and_a_full_disk_is_not(tmp_path: Path, monkeypatch) -> None:
    def fails(cause: BaseException | None):
        def train(*rest: object, **more: object) -> None:
            raise TrainingError("step 9: 11 steps in a row were not finite. They were skipped") from cause

        return train

    plan = Plan({"jumps": STUDY}, seeds=1, calls=(1,), samples=20, options=TINY)
    monkeypatch.setattr(running, "train", fails(OSError("No space left on device")))
    with pytest.raises(TrainingError):
        ablate(plan, tmp_path)
    monkeypatch.setattr(running, "train", fails(None))
    table = ablate(plan, tmp_path)["studies"]["jumps"]["summary"]
    assert table[0] == {"variant": "paper", "seeds": 0, "diverged": 1}
    assert "0 (1 diverged)" in (tmp_path / "ablations.md").read_text()


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"objective": "inductive-moment-matching", "batch_size": 6}, "groups of 4 samples .* divide the 6 samples"),
        ({"terminal_every": 4, "batch_size": 6}, "terminal_every=4 must divide the 6 samples"),
        ({"graphs": "on"}, "--graphs on needs a GPU"),
        ({"initial": "nowhere"}, "there is no folder nowhere"),
        ({"guidance": "2", "label_dropout": 0.0}, "label_dropout 0: guidance 2 asks for the velocity without a class"),
    ],
)
def test_what_training_would_refuse_stops_all_before_the_first_run(tmp_path: Path, last: dict, message: str) -> None:
    study = Study("the last cannot be trained", {"good": {}, "bad": last})
    shared = {name: value for name, value in TINY.items() if name not in last}
    with pytest.raises(ValueError, match=message):
        ablate(Plan({"bad": study}, seeds=1, calls=(1,), samples=20, options=shared), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scales_that_were_not_trained_for_are_warned_of_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ablating, "run_cells", lambda *rest: iter([]))
    said: list[str] = []
    study = Study("two", {"a": {"guidance": "1:2"}, "b": {"guidance": "3"}, "c": {"jumps": "near"}}, scales=(1.5, 3.0))
    ablate(Plan({"two": study}, seeds=2, samples=20, options=TINY), tmp_path, say=said.append)
    expect = "; expect poor samples."
    assert said[:-1] == [
        f"w=3 was not seen in training (--guidance 1:2){expect}",
        f"w=1.5 was not seen in training (--guidance 3){expect}",
        f"w=3 was not seen in training (--guidance 1.5){expect}",
    ]


def test_means_and_deviations_by_hand() -> None:
    def result(error: float) -> Result:
        rows = [{"nfe": 1, "w": 1.0, "map_error": error, "w2": error}]
        return {"diverged": None, "rows": rows, "figures": {"gradient_norm": 2 * error}}

    results = {("paper", 0): result(1.0), ("paper", 1): result(2.0), ("near", 0): result(5.0)}
    table = summarise(STUDY, results)
    assert table[0]["map_error"] == {"mean": 1.5, "deviation": pytest.approx(0.5**0.5)}
    assert table[0]["gradient_norm"]["mean"] == 3.0
    assert table[1]["w2"] == {"mean": 5.0, "deviation": None}
    assert show(statistic([1.0, 2.0])) == "1.5 ± 0.71"
    text = markdown("jumps", STUDY, table)
    assert "| paper | 1.5 ± 0.71 | 1.5 ± 0.71 | 3 ± 1.4 |  | 2 |" in text


class ExactMap(Network):
    """F of the map that takes noise straight to where the exact flow takes it, known at t = 1, s = 0 alone."""

    def __init__(self, ends: torch.Tensor, shift: float) -> None:
        super().__init__(2, (2, 1, 1))
        self.ends, self.shift = torch.nn.Parameter(ends.float()), shift

    def forward(self, x, t, s, label, w):
        if len(x) != len(self.ends):  # the check that samples are finite
            return torch.zeros_like(x)
        return (x + 0 * t[:, None, None, None] - self.ends[:, :, None, None] - self.shift) / w[:, None, None, None]


@pytest.mark.parametrize("w", [1.0, 2.0])
def test_points_are_judged_by_the_exact_map(w: float) -> None:
    """No error for the exact map; a shift of all points by d in both coordinates has the error d sqrt(2)."""
    ends = exact_samples(30, w)[2]
    for shift, error in ((0.0, 0.0), (0.1, 0.1 * 2**0.5)):
        run = TrainedRun(FlowMap(ExactMap(ends, shift)), (), "terminal-velocity", "1:3", w, 0, Path(), 0.0)
        (row,) = judge("points", Path(), run, (1,), (w,), 30)
        assert row["map_error"] == pytest.approx(error, abs=1e-6)
        assert row["w2"] == pytest.approx(error, abs=1e-6)


def test_samples_that_are_not_finite_give_no_figures() -> None:
    network = ExactMap(torch.zeros(64, 2), float("nan"))
    run = TrainedRun(FlowMap(network), (), "terminal-velocity", "1", 1.0, 0, Path(), 0.0)
    assert judge("points", Path(), run, (1,), (1.0,), 30) == []


def test_the_points_are_of_two_classes_and_have_no_mirror_image() -> None:
    source = PointSource(size=200)
    batch = source.batch([0, 199])
    assert batch.shape == (2, 2, 1, 1)
    assert str(batch.dtype) == "float32"
    nearest = torch.cdist(torch.from_numpy(source.points[:, :, 0, 0]).double(), two_colours().whole.means).argmin(1)
    assert torch.equal(nearest % 2, torch.from_numpy(source.labels))
    assert source.fingerprint == PointSource(size=200).fingerprint != PointSource(size=201).fingerprint
    with pytest.raises(ValueError, match="cannot be mirrored"):
        source.batch([0], flips=torch.ones(1).bool().numpy())


def test_a_report_of_other_studies_is_not_replaced(tmp_path: Path) -> None:
    one, other = ({name: Study(name, variants)} for name, variants in (("one", {"a": {}}), ("other", {"a": {}})))
    more = {"one": Study("one", {"a": {}, "b": {"jumps": "near"}})}

    def run(studies: dict[str, Study]) -> set[str]:
        options = {"seeds": 1, "calls": (1,), "samples": 20, "options": TINY}
        return set(ablate(Plan(studies, **options), tmp_path)["studies"])

    assert run(one) == {"one"}
    report = (tmp_path / "ablations.json").read_bytes()
    with pytest.raises(ValueError, match="reports one, which this would leave out"):
        run(other)
    assert (tmp_path / "ablations.json").read_bytes() == report
    assert run(one | other) == {"one", "other"}
    with pytest.raises(ValueError, match="reports other, which"):
        run(more)
    assert run(more | other) == {"one", "other"}
    with pytest.raises(ValueError, match="reports one, which"):
        run(one | other)  # a variant less


def test_a_report_is_replaced_by_more_and_never_by_less(tmp_path: Path, monkeypatch) -> None:
    def plan(**changes: Any) -> Plan:
        return dataclasses.replace(Plan({"jumps": STUDY}, 2, (1, 2), 20, {**TINY, "evaluation_ema": (0.9,)}), **changes)

    ablate(plan(seeds=1, calls=(1,)), tmp_path)
    assert ablate(plan(), tmp_path)["seeds"] == 2  # more calls and seeds
    report = (tmp_path / "ablations.json").read_bytes()
    monkeypatch.setattr(ablating, "run_cells", None)
    for less, message in (
        ({"seeds": 1}, r"is of seeds 2 \(now 1\), and this would replace it; ask for the same"),
        ({"samples": 21}, r"is of samples 20 \(now 21\)"),
        ({"options": TINY}, r"is of options {.*'evaluation_ema': \[0.9\]} \(now {.*}\)"),
        ({"calls": (1,)}, "reports jumps, which this would leave out, whole or in part"),
        ({"studies": {"jumps": dataclasses.replace(STUDY, scales=(2.0,))}}, "reports jumps, which"),
        ({"studies": {"jumps": dataclasses.replace(STUDY, task="pictures")}}, "reports jumps, which"),
    ):
        with pytest.raises(ValueError, match=message):
            ablate(plan(**less), tmp_path)
    assert (tmp_path / "ablations.json").read_bytes() == report


@pytest.mark.parametrize(
    "content", ["{}", "[]", "[1", "null", '{"studies": {"jumps": []}}', '{"studies": {"jumps": {}}}']
)
def test_a_damaged_report_is_named_with_what_to_do(content: str, tmp_path: Path) -> None:
    (tmp_path / "ablations.json").write_text(content)
    with pytest.raises(ValueError, match=r"ablations\.json is damaged; move it away: .* finished runs in .*cells\.$"):
        ablate(PLAN, tmp_path)
    assert (tmp_path / "ablations.json").read_text() == content


def test_what_is_given_twice_or_decided_twice_is_refused_before_the_first_run(tmp_path: Path) -> None:
    for plan, message in (
        (dataclasses.replace(PLAN, calls=(1, 1)), r"nfe must be given without repetition, got \[1, 1\]"),
        (
            dataclasses.replace(PLAN, studies={"jumps": dataclasses.replace(STUDY, scales=(1.5, 1.5))}),
            r"w must be given without repetition, got \[1.5, 1.5\]",
        ),
        (
            dataclasses.replace(PLAN, options=TINY | {"jumps": "far"}),
            "--set jumps=far: the study 'jumps' varies it; leave it out",
        ),
        (
            dataclasses.replace(PLAN, studies={"jumps": dataclasses.replace(STUDY, base={"steps": 2})}),
            "--set steps=3: the study 'jumps' sets it; leave it out",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ablate(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
