"""Cross-validate a recipe: every training picture is predicted by a model that has not seen it.

Run: python recipes/k_fold.py data.root=photos [--folds 5] [--groups REGEX] [--recipe linear_probe] [KEY=VALUE]...
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

from vit_finetune import Config, RequestError, WorkError, finetune, k_folds, mean_interval, open_splits


def main(arguments: list[str]) -> None:
    """Train one model a fold, write all out-of-fold predictions, print the mean with its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="linear_probe")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--groups", type=re.compile, help="pictures whose paths have the same first group stay together"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    config = Config.load(options.recipe, overrides=["run.dir=runs/k_fold", *options.overrides])
    place = Path(config.run.dir)

    def group_of(path: str) -> str:
        found = options.groups.search(path)
        if found is None or not found.groups():
            raise RequestError(f"--groups {options.groups.pattern} finds no (group) in {path}")
        return str(found[1])

    pictures = open_splits({**config.data.model_dump(), "val_split": None})
    groups = group_of if options.groups else None
    accuracies, tables = [], []
    for number, fold in enumerate(k_folds(pictures, options.folds, groups=groups, seed=config.run.seed)):
        one = Config.load(config, overrides=[f"run.dir={place}/fold-{number}"])
        result = finetune(one, data=fold, resume=True)  # the fold is its test split: it selects nothing
        accuracies.append(result.metrics["accuracy"])
        tables.append(pd.read_parquet(result.run_dir / "predictions.parquet").assign(fold=number))
    table = pd.concat(tables, ignore_index=True)
    table.to_parquet(place / "out_of_fold.parquet")
    mean, half = mean_interval(accuracies)
    print(f"accuracy {mean:.1%} +- {half:.1%} (95 %, {options.folds} folds), pooled {table['correct'].mean():.1%}")
    print(f"every picture's prediction: {place / 'out_of_fold.parquet'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
