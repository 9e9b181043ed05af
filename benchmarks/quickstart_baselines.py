"""What the quickstart's accuracy is worth: three usual ways to classify the same pictures without fine-tuning.

Raw pixels + support-vector machine, HOG + support-vector machine, and the demo weights' last class token +
logistic regression. What a method can choose (picture size, regularisation) is chosen by cross-validation
on train/ alone; val/ is scored once. Needs scikit-learn and scikit-image (the extra `dev`).

Run: python benchmarks/quickstart_baselines.py (after `make quickstart`), or with --data FOLDER for other pictures.

Sources: HOG: Dalal & Triggs 2005, doi:10.1109/CVPR.2005.177; frozen features: DINOv2, arXiv 2304.07193.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import hog
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from vit_finetune import from_pretrained, write_demo_digits
from vit_finetune.common.files import write_json
from vit_finetune.data import ImageSet, load_splits
from vit_finetune.data.transforms import build_eval_transform

Features = Callable[[Sequence[Image.Image]], NDArray[np.float32]]
NUM_FOLDS = 3
STRENGTHS = [0.1, 1.0, 10.0]  # of C: larger fits train/ more closely


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        method: for people.
        accuracy: share of val/ that is right.
        seconds: wall time from files to the score, cross-validation included.
        chosen: what cross-validation on train/ chose.
        cv_accuracy: what it expected of that choice.
        guesses: the class index it gives each picture of val/.
    """

    method: str
    accuracy: float
    seconds: float
    chosen: str
    cv_accuracy: float
    guesses: list[int] = field(repr=False)


def raw_pixels(pictures: Sequence[Image.Image], *, size: int) -> NDArray[np.float32]:
    """Return RGB pixels in [0, 1] of pictures resized to size x size: [N, 3 * size * size]."""
    return np.stack([np.asarray(picture.resize((size, size)), np.float32).ravel() / 255 for picture in pictures])


def gradients(pictures: Sequence[Image.Image], *, size: int, cell: int) -> NDArray[np.float32]:
    """Return histograms of oriented gradients of gray pictures resized to size x size, in cells of `cell` pixels."""
    gray = (np.asarray(picture.convert("L").resize((size, size)), np.float32) / 255 for picture in pictures)
    return np.stack([hog(picture, pixels_per_cell=(cell, cell), cells_per_block=(2, 2)) for picture in gray])


def class_tokens(pictures: Sequence[Image.Image], *, img_size: int) -> NDArray[np.float32]:
    """Return the demo weights' class token after the last norm: [N, width]."""
    model, report = from_pretrained("demo", num_classes=0, img_size=img_size)
    model.eval()
    transform = build_eval_transform(report.preprocess.with_size(img_size, img_size))
    with torch.inference_mode():
        batches = (torch.stack([transform(one) for one in pictures[i : i + 32]]) for i in range(0, len(pictures), 32))
        tokens = [model.forward_features(batch)[:, 0] for batch in batches]
    return torch.cat(tokens).numpy()


def fit_and_score(
    method: str, *, train: ImageSet, val: ImageSet, candidates: Mapping[str, Features], classifier: BaseEstimator
) -> Result:
    """Choose features and regularisation on train/, then score val/ once.

    Args:
        method: its name, for people.
        train: the pictures to choose and fit on.
        val: the pictures to score.
        candidates: name -> function from N pictures to [N, D] features.
        classifier: what is fitted to the standardised features; its argument C is searched.
    """
    started = time.perf_counter()
    pictures = [part.load(index) for part in (train, val) for index in range(len(part))]
    searches: dict[str, GridSearchCV] = {}
    features: dict[str, NDArray[np.float32]] = {}
    for name, extract in candidates.items():
        features[name] = extract(pictures)
        pipeline = Pipeline([("scale", StandardScaler()), ("classifier", classifier)])
        folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0)
        searches[name] = GridSearchCV(pipeline, {"classifier__C": STRENGTHS}, cv=folds)
        searches[name].fit(features[name][: len(train)], train.labels)
    best = max(searches, key=lambda name: searches[name].best_score_)
    guesses = searches[best].predict(features[best][len(train) :])
    accuracy = (guesses == val.labels).mean()
    chosen = f"{best}, C = {searches[best].best_params_['classifier__C']:g}"
    seconds = time.perf_counter() - started
    return Result(method, float(accuracy), seconds, chosen, float(searches[best].best_score_), guesses.tolist())


def measure(train: ImageSet, val: ImageSet, *, img_size: int) -> Iterator[Result]:
    """Yield the results of all three methods; the frozen features are taken at `img_size` pixels."""
    pixels = {f"{size} px": partial(raw_pixels, size=size) for size in (28,)}
    cells = ((56, 8),)
    hogs = {f"{size} px, cells of {cell}": partial(gradients, size=size, cell=cell) for size, cell in cells}
    tokens = {f"{img_size} px": partial(class_tokens, img_size=img_size)}
    score = partial(fit_and_score, train=train, val=val)
    yield score("raw pixels + SVM", candidates=pixels, classifier=SVC())
    yield score("HOG + SVM", candidates=hogs, classifier=SVC())
    probe = LogisticRegression(max_iter=1000)
    yield score("frozen class token + logistic regression", candidates=tokens, classifier=probe)


def main() -> None:
    """Read the command line, measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train/CLASS and val/CLASS; the quickstart's by default")
    parser.add_argument("--output", type=Path, default=Path("runs/baselines.json"), help="JSON file to write")
    parser.add_argument("--img-size", type=int, default=56, help="pixels a side for the frozen features")
    arguments = parser.parse_args()
    splits = load_splits(root=arguments.data or write_demo_digits("quickstart_images"))
    assert splits.val is not None  # load_splits holds a share of train/ out where there is no val/
    results = []
    for result in measure(splits.train, splits.val, img_size=arguments.img_size):
        print(f"{result.method:<42} {result.accuracy:7.1%} {result.seconds:7.1f} s   ({result.chosen})", flush=True)
        results.append(result)
    counts = {"num_train": len(splits.train), "num_val": len(splits.val), "class_names": list(splits.class_names)}
    write_json(arguments.output, counts | {"results": [asdict(result) for result in results]})
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
