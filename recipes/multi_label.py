"""Several classes a picture: train on a table of files and their classes.

Run: python recipes/multi_label.py TABLE.csv [KEY=VALUE]...
The table has the columns file (below the table's folder) and classes (names with spaces between them, or none).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from vit_finetune import Config, RequestError, WorkError, finetune, splits_from


def main(arguments: list[str]) -> None:
    """Train with a sigmoid a class, a fifth held out, and say how well the classes are ranked."""
    if not arguments or "=" in arguments[0]:
        raise RequestError("give a table with the columns file and classes: multi_label.py TABLE.csv [KEY=VALUE]...")
    table, overrides = Path(arguments[0]), arguments[1:]
    with table.open(encoding="utf-8", newline="") as lines:
        samples = [(table.parent / row["file"], tuple(row["classes"].split())) for row in csv.DictReader(lines)]
    fixed = ["data.source=python", "train.task=multilabel", "evaluation.metric=mean_average_precision"]
    config = Config.load("linear_probe", overrides=[*fixed, "run.dir=runs/multi_label", *overrides])
    result = finetune(config, data=splits_from(samples, val_fraction=0.2))
    print(f"mean average precision on the held-out pictures: {result.metrics['mean_average_precision']:.3f}")
    print(f"the model: {result.run_dir / 'model'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
