"""Our default in half of the time that timm's train.py takes, seed by seed, in turns: who is right more often?

timm's script trains from the same weights for so many epochs; then `train image_folder` gets half of the seconds that
it took, start and end included, and nothing of earlier runs. val/ is scored once by each and chosen by neither. Seconds
of both are of the same minutes of the same machine, which matters where other programs come and go.

Run: python benchmarks/half_the_time.py FOLDER[:IMG_SIZE[:HFLIP]] --timm-train train.py [--epochs 3] [--lr 3e-4]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from scipy.stats import binomtest
from small_folders import ours, peer_weights, task_of, timm_run

from vit_finetune.common.files import write_json

START_UP_SECONDS = 5  # of our command before its budget's clock begins: imports


def main() -> None:
    """Print a line for each seed, and the pairs of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="FOLDER[:IMG_SIZE[:HFLIP]]", help="with train/CLASS and val/CLASS")
    parser.add_argument("--timm-train", type=Path, required=True, help="timm's train.py, which is in no wheel")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-4, help="of timm's, with layer decay 0.75")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/half_the_time"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    task = task_of("data", options.data, 0, options.work.resolve())
    weights = peer_weights(task.work)["timm"] / "model.safetensors"
    rows, won, lost = [], 0, 0
    for seed in range(options.num_seeds):
        place = task.work / f"timm-{seed}"
        seconds = timm_run(
            task, seed, place, lr=options.lr, epochs=options.epochs, script=options.timm_train, weights=weights
        )
        theirs = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        half = dataclasses.replace(task, seconds=round(seconds / 2) - START_UP_SECONDS)
        mine, taken = ours(half, seed, task.work / f"ours-{seed}")
        right = [(mine[name] == label, theirs[name] == label) for name, label in task.truth.items()]
        won, lost = won + sum(a > b for a, b in right), lost + sum(a < b for a, b in right)
        a, b = (sum(side) / len(right) for side in zip(*right, strict=True))
        rows.append({"seed": seed, "timm": b, "timm_seconds": seconds, "ours": a, "ours_seconds": taken})
        print(f"seed {seed}: timm {b:.1%} in {seconds:.0f} s, ours {a:.1%} in {taken:.0f} s", flush=True)
        write_json(options.work / "rows.json", {"rows": rows, "won": won, "lost": lost})
    told = f", p {binomtest(won, won + lost).pvalue:.1g}" if won + lost else ""
    print(f"ours right and timm's wrong {won}, the reverse {lost}{told}")


if __name__ == "__main__":
    main()
