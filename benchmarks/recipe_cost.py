#!/usr/bin/env python3
"""What the recipes would cost, projected from measured training steps.

    python benchmarks/recipe_cost.py [RECIPE] [--results benchmarks/results/train_step_h200.json]

A projection: steps x batch / (images a second on one GPU). None of these runs was made here.
"""

import argparse
import json
from pathlib import Path

from tvmatch.training.recipes import RECIPES, fastest_row, find_recipe, projected_gpu_hours

MEASURED = Path(__file__).parent / "results" / "train_step_h200.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    for name in [options.recipe] if options.recipe else RECIPES:
        recipe = find_recipe(name)
        config, row = recipe.config(), fastest_row(recipe, results["rows"])
        hours = projected_gpu_hours(recipe, results["rows"])
        what = f"{name}: {config.network}, {config.steps} steps of {config.batch_size}"
        if row is None or hours is None:
            print(f"{what}: no step on {'x'.join(map(str, recipe.shape))} was measured in {options.results.name}")
        else:
            way = "recorded" if row.get("graph") else "launched"
            shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
            print(
                f"{what} at {row['images_per_second']:.1f} images/s on one {results['device']}: {shown} GPU-hours "
                f"(a projection from a {way} step of {row['batch']} samples, recompute {row['policy']}, commit "
                f"{row.get('commit', results['commit'])})"
            )
            if way == "recorded" and config.batch_size > row["batch"]:
                print(
                    f"  which holds where each GPU takes {row['batch']} samples a step, --accumulate 1 and --graphs on "
                    f"({config.batch_size // row['batch']} GPUs). Fewer need --accumulate: their steps are launched "
                    "from Python, which has not been measured and takes longer."
                )


if __name__ == "__main__":
    main()
