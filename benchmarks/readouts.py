"""How well each readout of frozen features does, and how long it takes, cold and warm, on a folder of pictures.

Each row is a run of `tuning.mode: readout` in this process: cold computes the features, warm takes them from the cache.
The baselines are scikit-learn's on the same features: last class token + logistic regression (C by cross-validation)
and, with `--pixels`, raw pixels + support-vector machine. Everything is chosen on train/ alone; val/ is scored once.

Run: python benchmarks/readouts.py FOLDER [--img-size 98] [--names knn logistic spatial auto] [--folds stratified]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from vit_finetune import finetune, load_splits
from vit_finetune.data import Splits

NAMES = ("knn", "logistic", "multilayer", "spatial", "sgd_grid", "attentive", "auto")


def run(arguments: argparse.Namespace, name: str, work: Path, *, cold: bool) -> tuple[float, float, float]:
    """Return accuracy, seconds of the whole run, and seconds of search and fit alone."""
    cache = work / (f"cold_{name}" if cold else "warm")
    config: dict[str, Any] = {
        "model": {"pretrained": arguments.pretrained, "img_size": arguments.img_size},
        "data": {"root": arguments.folder},
        "tuning": {"mode": "readout"},
        "readout": {"name": name, "folds": arguments.folds, "cache_dir": str(cache)},
        "train": {"epochs": arguments.epochs},
        "run": {"dir": str(work / "run")},
    }
    started = time.perf_counter()
    result = finetune(config, overwrite=True)
    seconds = time.perf_counter() - started
    rows = map(json.loads, (work / "run" / "timing.jsonl").read_text(encoding="utf-8").splitlines())
    return result.metrics["accuracy"], seconds, sum(row["seconds"] for row in rows if row["part"] in ("search", "fit"))


def class_token_baseline(work: Path, splits: Splits) -> float:
    """Return the val accuracy of scikit-learn's logistic regression on the cached embeddings."""
    assert splits.val is not None
    entries = [np.load(path) for path in (work / "warm").glob("*/embedding.npy")]
    train, val = (next(part for part in entries if len(part) == len(of)) for of in (splits.train, splits.val))
    model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=8, cv=3, max_iter=300, scoring="accuracy"))
    return float(model.fit(train, splits.train.labels).score(val, splits.val.labels))


def pixel_baseline(splits: Splits) -> float:
    """Return the val accuracy of a support-vector machine on gray 32 x 32 pixels."""
    assert splits.val is not None
    train, val = (
        np.stack([np.asarray(of.load(i).convert("L").resize((32, 32))).ravel() / 255 for i in range(len(of))])
        for of in (splits.train, splits.val)
    )
    search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 10, 100]}, cv=3)
    return float(search.fit(train, splits.train.labels).score(val, splits.val.labels))


def main() -> None:
    """Print a row for each readout and baseline as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="root/{train,val}/CLASS/...")
    parser.add_argument("--pretrained", default="demo")
    parser.add_argument("--img-size", type=int, default=98)
    parser.add_argument("--folds", default="contiguous", choices=["contiguous", "stratified"])
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--cold", action="store_true", help="compute the features anew for each readout")
    parser.add_argument("--pixels", action="store_true", help="raw pixels + support-vector machine too")
    arguments = parser.parse_args()
    rows: list[str] = [f"{'readout':<24}  {'val':>6}  {'run s':>7}  {'search and fit s':>16}"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in arguments.names:
            for cold in (True, False) if arguments.cold else (False,):
                accuracy, seconds, fitted = run(arguments, name, work, cold=cold)
                label = f"{name} ({'cold' if cold else 'warm'})" if arguments.cold else name
                rows.append(f"{label:<24}  {accuracy:6.4f}  {seconds:7.1f}  {fitted:16.1f}")
        splits = load_splits(root=arguments.folder)
        started = time.perf_counter()
        accuracy = class_token_baseline(work, splits)
        rows.append(f"{'sklearn, class token':<24}  {accuracy:6.4f}  {'':7}  {time.perf_counter() - started:16.1f}")
        if arguments.pixels:
            started = time.perf_counter()
            accuracy = pixel_baseline(splits)
            rows.append(
                f"{'sklearn, pixels + SVM':<24}  {accuracy:6.4f}  {'':7}  {time.perf_counter() - started:16.1f}"
            )
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
