"""The CIFAR-10 tables of docs/evaluation.md are those of the committed runs, and so are the figures told elsewhere."""

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cifar10"
OBJECTIVES = {
    "tvm": "terminal-velocity",
    "mean_flow": "mean-flow",
    "consistency_training": "consistency-training",
    "inductive_moment_matching": "inductive-moment-matching",
    "flow_matching": "flow-matching",
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cifar10_figures

    yield cifar10_figures
    for name in ("cifar10_figures", "cifar10_runs", "cifar10_bars"):
        sys.modules.pop(name, None)


def test_tables_are_those_of_the_runs(figures) -> None:
    text = figures.PAGE.read_text()
    runs = figures.read_runs(RESULTS)
    assert figures.filled(text, runs) == text, "run: python benchmarks/cifar10_figures.py"
    assert figures.filled(text, runs[:1] + runs[2:]) != text
    with pytest.raises(ValueError, match="must have the marker"):
        figures.filled("a page without markers", runs)


def test_recipe_readme_and_pages_tell_what_was_measured(figures) -> None:
    runs = figures.of_seconds(figures.read_runs(RESULTS), 420)
    means = {
        method: [mean(run.frechet(calls) for run in figures.alike(runs, method)) for calls in (1, 2, 4)]
        for method in OBJECTIVES
    }
    script = (ROOT / "runs" / "cifar10_1gpu.sh").read_text()
    for method, line in OBJECTIVES.items():
        told = next(row for row in script.splitlines() if row.startswith(f"#   {line}  "))
        numbers = [float(word) for word in told.split("(")[0].split()[2:] if word != "/"]
        assert numbers == pytest.approx(means[method], rel=0.003)
    readme, methods, paper_map, changelog = (
        (ROOT / name).read_text() for name in ("README.md", "docs/methods.md", "docs/paper_map.md", "CHANGELOG.md")
    )
    ours, theirs = ([f"{value:.1f}" for value in means[method]] for method in ("tvm", "mean_flow"))
    for method in ("consistency_training", "inductive_moment_matching"):
        told = [f"{value:.1f}" for value in means[method]]
        assert f"| {' | '.join(told)} |" in readme
        assert f"{told[0]} and {told[2]}" in paper_map
    assert f"| {' | '.join(f'**{value}**' for value in ours)} |" in readme
    assert f"| {' | '.join(theirs)} |" in readme
    assert f"| {' | '.join(ours)} |" in methods
    assert f"| {' | '.join(theirs)} |" in methods
    assert f"FID-20k {' / '.join(ours)}" in paper_map
    assert f"FID-20k of {ours[0]}, {ours[1]} and {ours[2]}" in changelog
    longest = [run for run in figures.read_runs(RESULTS) if run.seconds == 1200]
    long, others = ([row for run in longest if (run.method == "tvm") == ours for row in run.whole] for ours in (1, 0))
    best = [min(row["frechet"] for row in long if row["nfe"] == calls) for calls in (1, 4)]
    assert f"{best[0]:.2f} / {best[1]:.2f}" in script
    assert f"| {best[0]:.2f} and {best[1]:.2f} |" in readme
    assert f"FID-50k {best[0]:.2f} / {best[1]:.2f} in 1 / 4 calls" in paper_map
    assert f"FID-50k of {best[0]:.2f} and {best[1]:.2f}" in changelog
    for first, last in zip(
        others[::3], others[2::3], strict=True
    ):  # MeanFlow's and flow matching's, in 1, 2 and 4 calls
        assert f"{first['frechet']:.1f} and {last['frechet']:.1f}" in readme
        assert f"{first['frechet']:.1f} and {last['frechet']:.1f}" in paper_map
    for rows, digits in ((long, 2), (others[:3], 2), (others[3:], 1)):
        words = [f"{row['frechet']:.{digits}f}" for row in rows]
        assert f"{words[0]}, {words[1]} and {words[2]}" in " ".join(methods.split())


def test_every_run_has_its_log_config_metrics_samples_and_figures() -> None:
    """What makes a figure one that can be looked into: of all folders, those to come too."""
    folders = [path for path in RESULTS.iterdir() if path.is_dir()]
    assert len(folders) > 16
    for folder in folders:
        warm = "flow_matching" not in folder.name
        names = ["config.yaml", "commit.txt", "time.txt", "train.log", "evaluate.log", "run_metrics.jsonl"]
        names += ["warm_config.yaml", "warm_metrics.jsonl"] if warm else []
        for name in names:
            assert (folder / name).stat().st_size > 0, f"{folder.name} has no {name}"
        for pattern in ("samples_*.png", "evaluation*.json", *(["nearest_*.png"] if warm else [])):
            assert list(folder.glob(pattern)), f"{folder.name} has no {pattern}"


def test_no_mean_is_taken_over_other_pairs_and_both_trainings_of_a_seed_are_told(figures) -> None:
    runs = figures.of_seconds(figures.read_runs(RESULTS), 420)
    assert [len(figures.alike(runs, method)) for method in OBJECTIVES] == [3, 3, 2, 2, 1]
    pairs = {run.chosen for run in runs if run.method == "flow_matching"}
    assert pairs == {(0.998, 2), (0.998, 1.5)}
    assert "**flow matching" not in figures.quality_table(runs)
    assert "**TVM, 3 seeds**" in figures.quality_table(runs)
    again = figures.again_table(runs).splitlines()[2:]
    assert len(again) == 12
    assert again[0] == "| TVM, seed 1 | d689e99 | 0.9995, 2.5 | 17.94 | 11.90 | 10.50 |"
    both = [
        [float(line.split("|")[4]) for line in again if line.startswith(f"| {name},")] for name in ("TVM", "MeanFlow")
    ]
    assert max(both[0]) < min(both[1])  # ahead whichever training of a seed is taken


def test_what_the_page_says_beside_its_tables_is_measured(figures) -> None:
    """Ranges and orders in sentences, which no table is made of: they stay behind when a seed is trained again."""
    runs = figures.read_runs(RESULTS)
    page, paper_map = (
        " ".join((ROOT / "docs" / name).read_text().split()) for name in ("evaluation.md", "paper_map.md")
    )

    def between(values: list[float], digits: int) -> str:
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    short = figures.of_seconds(runs, 420)
    rows = {
        method: [row for run in short if run.method == method for row in run.scored["rows"]] for method in OBJECTIVES
    }
    recall = {method: [row["recall"] for row in rows[method] if row["nfe"] > 1] for method in OBJECTIVES}
    two = recall["consistency_training"] + recall["inductive_moment_matching"]
    assert f"({between(two, 2)} against {between(recall['tvm'], 2)})" in page
    long = [row["recall"] for run in runs if run.method == "tvm" and run.seconds > 420 for row in run.whole]
    told = (
        f"(TVM's {between(long, 2)} of the long runs, {between([row['recall'] for row in rows['tvm']], 2)} after 420 s)"
    )
    assert told in page
    first = {
        method: [
            (run.before[1] if run.before else run.scored)["rows"][0]["frechet"] for run in short if run.method == method
        ]
        for method in ("tvm", "mean_flow")
    }
    assert f"in one call {between(first['tvm'], 1)} against {between(first['mean_flow'], 1)}" in page
    for method, name in (("tvm", "to TVM"), ("mean_flow", "to MeanFlow")):
        run = next(run for run in short if run.method == method)
        scores = [row["frechet"] for choice in run.choices for row in choice["rows"] if row["w"] == run.chosen[1]]
        assert f"{name} ({between(scores, 2)} at w = {run.chosen[1]:g})" in page
    best = {}
    for run in runs:
        if run.tradeoff is not None:
            by_calls = [[row for row in run.tradeoff["rows"] if row["nfe"] == calls] for calls in (1, 2, 4)]
            best[run.method, run.seconds] = [min(found, key=lambda row: row["frechet"])["w"] for found in by_calls]
    falls = {run for run, scales in best.items() if scales[0] > scales[1] >= scales[2]}
    assert falls == {("tvm", 420), ("tvm", 1200), ("mean_flow", 1200), ("flow_matching", 420)}
    for run in falls - {("tvm", 1200)}:  # whose eight calls are told with them
        assert "{:g}, {:g} and {:g}".format(*best[run]) in page
    assert "flow matching's after 420 s: {:g}, {:g} and {:g}".format(*best["flow_matching", 420]) in page
    assert "flow matching's alone, {:g}, {:g} and {:g}".format(*best["flow_matching", 420]) in paper_map


def test_bars_are_judged_by_every_seed(figures) -> None:
    runs = figures.read_runs(RESULTS)
    table = figures.bars_table(runs)
    assert table.count("| met |") == 12
    assert "**missed**" not in table
    assert "**not run**" not in table
    ours_alone = figures.bars_table([run for run in runs if run.seconds != 1200 or run.method == "tvm"])
    assert ours_alone.count("| **not run** |") == 2
    assert "| the same minutes for MeanFlow |  | beside TVM | **not run** |" in ours_alone
    assert "9.07 ± 0.02 of 3 noises (DiT-S/2, 20 minutes" in table  # and the four calls are of the same run
    assert "5.89 (DiT-S/2, 20 minutes" in table
    assert "12.05 (DiT-S/2, 24 minutes" in figures.bars_table([run for run in runs if run.seconds != 1200])
    two = [run for run in runs if run.seconds > 420 or run.seed < 2]
    assert figures.bars_table(two).count("**missed**") == 2  # three seeds are the bar of TVM beside MeanFlow


def test_the_same_minutes_of_another_method_stand_beside_the_best_run(figures) -> None:
    runs = [run for run in figures.read_runs(RESULTS) if run.seconds != 1200 or run.method == "tvm"]
    ours = next(run for run in runs if run.seconds == 1200)
    worse = tuple(row | {"frechet": row["frechet"] + 1} for row in ours.whole)
    other = dataclasses.replace(ours, method="mean_flow", whole=worse)
    one_call = tuple(row for row in worse if row["nfe"] == 1)
    changes = ({}, {"seconds": 1440}, {"network": "DiT-S/4"}, {"whole": one_call})
    for theirs in (dataclasses.replace(other, **change) for change in changes):
        table = figures.bars_table([*runs, theirs])
        told = "20 minutes, TVM beside MeanFlow in 4 calls | 5.89 (w = 2) against 6.89 (w = 2) | ahead | met |" in table
        assert told == (theirs == other)
        assert table.count("| **not run** |") == (1 if theirs == other else 2)
    better = tuple(row | {"frechet": row["frechet"] - 1} for row in ours.whole)
    table = figures.bars_table([*runs, dataclasses.replace(other, whole=better)])
    assert table.count("| ahead | **missed** |") == 2


def test_the_page_tells_the_earlier_run_of_the_same_command_that_was_better(figures) -> None:
    """MeanFlow's first 20 minutes, of which only the log is left: a table of one run alone would hide it."""
    log = (RESULTS / "mean_flow_1200s_seed0" / "earlier" / "evaluate.log").read_text()
    table = log.split(" 50000 samples\n\n")[1].split("\n\n")[0]
    frechet = [line.split("|")[3].strip() for line in table.splitlines()[2:]]
    page = " ".join(figures.PAGE.read_text().split())
    assert f"{frechet[0]}, {frechet[1]} and {frechet[2]} in 1, 2 and 4 calls" in page
    first, last = float(frechet[0]), float(frechet[2])
    assert f"({first:.1f} and {last:.1f} in an earlier run of the same seed)" in (ROOT / "README.md").read_text()


def test_pictures_are_drawn_and_a_misnamed_folder_is_refused(figures, tmp_path: Path) -> None:
    runs = figures.of_seconds(figures.read_runs(RESULTS), 420)
    figures.draw(runs, tmp_path / "frechet.png")
    figures.draw_samples(tmp_path / "samples.png")
    drawn, kept = (np.asarray(Image.open(p)) for p in (tmp_path / "samples.png", ROOT / "docs/images/cifar10.png"))
    assert np.array_equal(drawn[44:], kept[44:])  # under the names, whose letters another Pillow may draw otherwise
    assert (tmp_path / "frechet.png").stat().st_size > 10_000
    shutil.copytree(RESULTS / "tvm_420s_seed0", tmp_path / "runs" / "tvm_420s_seed3")
    folder = tmp_path / "runs" / "tvm_420s_seed3"
    for name, what in (
        ("tvm_420s_seed3", "seed: 0"),
        ("mean_flow_420s_seed0", "objective: terminal-velocity"),
        ("tvm_480s_seed0", "seconds: 420"),
    ):
        folder = folder.rename(folder.with_name(name))
        with pytest.raises(ValueError, match=f"another {what}"):
            figures.read_runs(tmp_path / "runs")
    folder.rename(tmp_path / "runs" / "tvm")
    with pytest.raises(ValueError, match="METHOD_SECONDSs_seedN"):
        figures.read_runs(tmp_path / "runs")


def test_labels_beside_lines_keep_their_distance(figures) -> None:
    assert figures.spread([1.0, 5.0, 1.1, 1.15], 0.2) == pytest.approx([1.0, 5.0, 1.2, 1.4])
