"""How many wrong labels the preflight's ranking finds: some labels of a folder of pictures are flipped at random.

The pictures are those of FOLDER/train; each flipped label becomes another class, chosen at random. Told is the share of
the flipped ones among the first pictures of the ranking, for several draws, and what the plain set is suspected of.

Run: python benchmarks/label_errors.py FOLDER [--flipped 0.05] [--draws 3] [--img-size 98]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np

from vit_finetune import Config, check, load_splits
from vit_finetune.common.seeding import derive_seed
from vit_finetune.data import ImageSet, Splits


def flipped(splits: Splits, share: float, draw: int) -> tuple[Splits, np.ndarray]:
    """Return the data set with some training labels changed, and which."""
    rng = np.random.default_rng(derive_seed(draw, "flip"))
    labels, count = splits.train.labels.astype(np.int64), len(splits.class_names)
    wrong = rng.choice(len(labels), round(share * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, count, len(wrong))) % count
    return replace(splits, train=ImageSet(splits.train.store, labels)), wrong


def main() -> None:
    """Print a line for each draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--img-size", type=int, default=98)
    arguments = parser.parse_args()
    config = Config.load(
        "frozen_features", overrides=[f"data.root={arguments.folder}", f"model.img_size={arguments.img_size}"]
    )
    splits = load_splits(root=arguments.folder)
    for draw in range(-1, arguments.draws):
        changed, wrong = flipped(splits, arguments.flipped if draw >= 0 else 0.0, draw)
        started = time.perf_counter()
        result = check(config, level="full", data=changed, say=lambda _: None)
        seconds, total = time.perf_counter() - started, len(changed.train)
        names = {changed.train.name(int(index)) for index in wrong}
        order: list[Any] = [row["name"] for row in result.ranking]
        suspected = sum(finding.how_many for finding in result.findings if finding.code == "label_error")
        line = f"{len(wrong):4} of {total:,} flipped  {suspected:4} suspected  {seconds:5.1f} s"
        if names:
            for part in (0.05, 0.1):
                share = len(names & set(order[: round(part * total)])) / len(names)
                line += f"  {share:.1%} in the first {part:.0%}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
