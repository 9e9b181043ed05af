"""Wrong labels are found where features tell the classes apart, and how many there are is counted as published."""

from __future__ import annotations

import numpy as np
import pytest

from vit_finetune.training import label_errors
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.label_errors import confidently_another, judge_labels


def table_of(labels: np.ndarray, truth: np.ndarray, *, num_classes: int) -> FeatureTable:
    """Return features that stand around a centre for each true class."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (num_classes, 12))

    def around() -> np.ndarray:
        return (centres[truth] + rng.normal(0, 0.3, (len(truth), 12))).astype(np.float32)

    pooled = {kind: around()[:, None] for kind in ("cls", "avg", "max", "min")}
    view = {"embedding": around(), **pooled, "grid": around()[:, None, None]}
    return FeatureTable((view,), labels, (0,), num_classes)


@pytest.mark.parametrize(("most", "largest"), [(102, 2048), (102, 80), (1, 2048)], ids=["linear", "blocks", "knn"])
def test_judge_labels__flipped(monkeypatch: pytest.MonkeyPatch, most: int, largest: int) -> None:
    """Flipped labels come first, and no more are counted: by linear readouts, in blocks, and by neighbours."""
    monkeypatch.setattr(label_errors, "MAX_CLASSES", most)
    monkeypatch.setattr(label_errors, "MAX_LANDMARKS", largest)
    truth = np.arange(150) % 3
    labels = truth.copy()
    flipped = np.array([4, 20, 77, 103, 140])
    labels[flipped] = (labels[flipped] + 1) % 3
    opinion = judge_labels(table_of(labels, truth, num_classes=3), seed=0)
    assert set(opinion.order[:5].tolist()) == set(flipped.tolist())
    assert 3 <= opinion.num_wrong <= 5  # thresholds are averages, so a wrong one may lie just below
    assert opinion.guess[flipped].tolist() == truth[flipped].tolist() == opinion.neighbours[flipped].tolist()
    assert sorted(opinion.order.tolist()) == list(range(150))
    assert (np.diff(opinion.own[opinion.order]) >= 0).all()


def test_judge_labels__clean() -> None:
    """Where every label is right, none is counted as wrong."""
    truth = np.arange(120) % 3
    assert judge_labels(table_of(truth, truth, num_classes=3), seed=0).num_wrong == 0


def test_confidently_another__by_hand() -> None:
    """Thresholds are 0.75, 0.5 and 0.8; a class without a picture has none, and is nobody's."""
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0, 0.0],  # 0, above 0's threshold
            [0.6, 0.4, 0.0, 0.0],  # 0, below its own, and no other is above its own
            [0.2, 0.6, 0.2, 0.0],  # 1
            [0.1, 0.4, 0.5, 0.0],  # 1, below; 2 is below its threshold of 0.8
            [0.0, 0.2, 0.8, 0.0],  # 2
            [0.0, 0.0, 0.8, 0.2],  # 2
        ]
    )
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert not confidently_another(probabilities, labels).any()
    moved = np.array([0, 1, 1, 1, 2, 2])  # thresholds 0.9, 0.467, 0.8: the second picture is nobody's
    assert not confidently_another(probabilities, moved).any()
    wrong = np.array([0, 0, 2, 1, 2, 2])  # thresholds 0.75, 0.4, 0.6: 1 is confidently the third's
    assert confidently_another(probabilities, wrong).tolist() == [False, True, True, False, False, False]
