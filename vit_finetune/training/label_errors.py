"""Which labels are probably wrong: confident learning on what readouts of frozen features say about held-out pictures.

Two opinions, neither of which has seen the label it speaks about. Linear readouts on several blocks and patch tokens,
averaged, rank the pictures by the probability of the label they have; where a set has more classes than they can learn
from a block of it, the nearest neighbours do. The neighbours' vote is told beside it. Confident learning says how many
labels are wrong, the ranking says which: on 1,100 hand signs with 55 wrong labels the first 55 of the ranking hold nine
tenths of them, and the pictures that confident learning itself picks four fifths.

Source: confident learning (Northcutt, Jiang, Chuang 2021, arXiv 1911.00068), ranked by self-confidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_finetune.common.seeding import derive_seed
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.folds import folds_of
from vit_finetune.training.knn_readout import fit_knn
from vit_finetune.training.linear_readout import MAX_LANDMARKS, Landmarks
from vit_finetune.training.readout import logits_of, search_linear, spaces_of
from vit_finetune.training.trials import best_per_space, mean_held

NUM_FOLDS = 5
NUM_DEALS = 2  # ways to deal pictures into folds whose opinions are averaged: a second one finds 1 to 3 % more
NUM_NEIGHBOURS = 10
LINEAR = ("multilayer", "spatial")
MAX_CLASSES = MAX_LANDMARKS // 20  # with more, a block has too few pictures of each for a linear readout


@dataclass(frozen=True)
class LabelOpinion:
    """What is thought of the labels of pictures.

    Attributes:
        own: probability of the label that each has, [N].
        guess: the likeliest class of each, [N].
        neighbours: the class that its nearest neighbours vote for, [N].
        order: places of all pictures, the most suspicious first, [N].
        num_wrong: how many labels are probably wrong: the first of the order.
    """

    own: NDArray[np.float64]
    guess: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    order: NDArray[np.int64]
    num_wrong: int


def judge_labels(table: FeatureTable, *, seed: int) -> LabelOpinion:
    """Say which labels are probably wrong.

    Args:
        table: features of the pictures; at least `NUM_FOLDS` of them.
        seed: decides what is held out together.
    """
    votes = _neighbours(table, seed)
    probabilities = votes if table.num_classes > MAX_CLASSES else _linear(table, seed)
    own = probabilities[np.arange(len(table)), table.labels]
    return LabelOpinion(
        own=own,
        guess=probabilities.argmax(axis=1),
        neighbours=votes.argmax(axis=1),
        order=np.argsort(own, kind="stable"),
        num_wrong=int(confidently_another(probabilities, table.labels).sum()),
    )


def confidently_another(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell where another class than the label is confidently the right one: off the diagonal of the confident joint.

    A class is confidently a picture's where it is at least as probable as on average over the pictures labelled so.

    Args:
        probabilities: of pictures that were held out [N, K].
        labels: class indices [N].

    Returns:
        [N].
    """
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    totals = np.bincount(labels, weights=own, minlength=probabilities.shape[1])
    thresholds = np.divide(totals, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.asarray((confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels))


def _neighbours(table: FeatureTable, seed: int) -> NDArray[np.float64]:
    """Return what the nearest pictures of other folds say, [N, K]."""
    folds = folds_of(table.labels, num_folds=NUM_FOLDS, how="stratified", seed=seed)
    rows = np.arange(len(table))

    def held_out(fold: int) -> Tensor:
        k = min(NUM_NEIGHBOURS, int((folds != fold).sum()))
        return logits_of(table, fit_knn(table, rows[folds != fold], k=k), rows[folds == fold])

    return _spread(folds, held_out, table.num_classes)


def _linear(table: FeatureTable, seed: int) -> NDArray[np.float64]:
    """Return what linear readouts say, [N, K]; a large set is dealt out into blocks, each a set of its own."""
    num_blocks = -(-len(table) // MAX_LANDMARKS)
    if num_blocks == 1:
        return np.asarray(np.mean([_linear_in_block(table, seed + deal) for deal in range(NUM_DEALS)], axis=0))
    blocks = folds_of(table.labels, num_folds=num_blocks, how="stratified", seed=derive_seed(seed, "blocks"))
    found = np.zeros((len(table), table.num_classes))
    for block in range(num_blocks):
        rows = np.flatnonzero(blocks == block)
        views = tuple({name: array[rows] for name, array in view.items()} for view in table.views)
        part = FeatureTable(views, table.labels[rows], table.layers, table.num_classes)
        found[rows] = _linear(part, seed)
    return found


def _linear_in_block(table: FeatureTable, seed: int) -> NDArray[np.float64]:
    folds = folds_of(table.labels, num_folds=NUM_FOLDS, how="stratified", seed=seed)
    opinions, marks = [], Landmarks(table)
    for name in LINEAR:
        tries = [trial for space in spaces_of(name, table) for trial in search_linear(name, marks, folds, space)]
        logits = mean_held(best_per_space(tries)).logits
        by_fold = dict(zip(np.unique(folds).tolist(), logits, strict=True))
        opinions.append(_spread(folds, by_fold.__getitem__, table.num_classes))
    return np.asarray(np.mean(opinions, axis=0), dtype=np.float64)


def _spread(folds: NDArray[np.int64], logits: Callable[[int], Tensor], num_classes: int) -> NDArray[np.float64]:
    """Return probabilities [N, K] in the order of the pictures, from logits fold by fold."""
    found = np.zeros((len(folds), num_classes))
    for fold in np.unique(folds).tolist():
        found[folds == fold] = torch.softmax(logits(fold).double(), dim=1).numpy()
    return found
