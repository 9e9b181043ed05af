"""A soup of runs: train one recipe with several seeds and average the models that help each other.

Run: python recipes/soup.py data.root=photos [--runs 3] [--recipe lp_ft] [KEY=VALUE]...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vit_finetune import Config, RequestError, WorkError, finetune, greedy_soup, open_splits


def main(arguments: list[str]) -> None:
    """Train the runs on the same split, cook the greedy soup on what they held out, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="lp_ft")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(arguments)
    config = Config.load(options.recipe, overrides=["run.dir=runs/soup", *options.overrides])
    place, seed = Path(config.run.dir), config.run.seed
    pictures = open_splits(config.data, seed=seed)  # once: another seed would hold out other pictures
    runs = []
    for number in range(options.runs):
        one = Config.load(config, overrides=[f"run.dir={place}/run-{number}", f"run.seed={seed + number}"])
        runs.append(finetune(one, data=pictures, resume=True))
    soup = greedy_soup(runs, place / "soup", data=pictures, split="val", overwrite=True)
    for number, run in enumerate(runs):
        print(f"run {number}: {run.metrics['accuracy']:.1%}")
    print(
        f"soup of {', '.join(map(str, soup.chosen))}: {soup.metrics['accuracy']:.1%} on the val pictures that chose it"
    )
    print(f"the model: {soup.run_dir / 'model'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
