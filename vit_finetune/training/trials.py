"""What was tried on held-out folds of the training pictures, and the choice among it.

A try is chosen by folds of the training pictures, nothing else is looked at: of the tries whose accuracy is within one
standard error of the best, which is as far as that many pictures tell them apart, the one of the smallest
cross-entropy, which sees finer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vit_finetune.models import LinearReadout, Readout
from vit_finetune.training.linear_readout import Space, average_linear
from vit_finetune.training.solvers import fit_sharpness


@dataclass
class Held:
    """What one try says about held-out pictures, and what they are."""

    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keep one fold's held-out pictures."""
        self.logits.append(logits)
        self.labels.append(labels)

    def sharpness(self) -> float:
        """Return the factor by which the logits fit best."""
        return fit_sharpness(torch.cat(self.logits), torch.cat(self.labels))

    def figures(self) -> tuple[float, float]:
        """Return accuracy and mean cross-entropy."""
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        right = int((logits.argmax(dim=1) == labels).sum())
        return right / len(labels), float(functional.cross_entropy(logits.double(), labels))


@dataclass(frozen=True)
class Trial:
    """One readout with its settings, scored on the folds.

    Attributes:
        readout: its name.
        settings: what was tried, for people.
        accuracy: share of right guesses over all held-out pictures.
        loss: their mean cross-entropy.
        count: held-out pictures.
        fit: fits it on all training pictures.
        space: the features of a linear readout, which a mean may take in; None of others.
        held: what such a one says about held-out pictures, fold by fold in ascending order; of others it is not kept.
        seconds: that the tries of this group took, shared out among them.
    """

    readout: str
    settings: Mapping[str, Any]
    accuracy: float
    loss: float
    count: int
    fit: Callable[[], Readout]
    space: Space | None = None
    held: Held = field(default_factory=Held)
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        readout: str,
        settings: Mapping[str, Any],
        held: Held,
        fit: Callable[[], Readout],
        space: Space | None = None,
    ) -> Trial:
        """Return a try with its figures."""
        count, kept = sum(map(len, held.labels)), Held() if space is None else held
        return cls(readout, settings, *held.figures(), count, fit, space, kept)

    def to_mapping(self) -> dict[str, Any]:
        """Return what was tried and how it did, as JSON values; the seconds are a clock's and not among them."""
        figures = {"accuracy": self.accuracy, "loss": self.loss}
        return {"readout": self.readout, "settings": dict(self.settings), **figures}


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the try of the smallest loss among those within one standard error of the highest accuracy."""
    top = max(trials, key=lambda trial: trial.accuracy)
    error = (top.accuracy * (1 - top.accuracy) / top.count) ** 0.5
    return min((trial for trial in trials if trial.accuracy >= top.accuracy - error), key=lambda trial: trial.loss)


def best_per_space(trials: Sequence[Trial]) -> list[Trial]:
    """Return the best linear readout of each space of features, in the order of the tries."""
    spaces = dict.fromkeys(trial.space for trial in trials if trial.space is not None)
    return [best_of([trial for trial in trials if trial.space == space]) for space in spaces]


def mean_held(trials: Sequence[Trial]) -> Held:
    """Return the mean of what linear readouts say about held-out pictures."""
    folds = zip(*(trial.held.logits for trial in trials), strict=True)
    return Held([torch.stack(parts).mean(dim=0) for parts in folds], trials[0].held.labels)


def mean_of(trials: Sequence[Trial]) -> Trial:
    """Return the try whose logits are the mean of those of linear readouts, which is one linear layer again."""
    settings = {"mean_of": [dict(trial.settings) for trial in trials]}
    return Trial.of("mean", settings, mean_held(trials), partial(_fit_mean, [trial.fit for trial in trials]))


def best_mean(trials: Sequence[Trial]) -> Trial | None:
    """Return the mean of linear readouts of several spaces that errs least on held-out pictures.

    Spaces see different things, so that the mean of their best readouts mostly errs less than any choice of one. They
    join in turn, each time the one with which the cross-entropy falls most, and none with which it does not fall.

    Args:
        trials: everything that was tried.

    Returns:
        The mean; None where one space is best alone, or only one was tried.

    Source: forward selection of ensembles (Caruana et al. 2004), each member once.
    """
    left, chosen = best_per_space(trials), list[Trial]()
    best: Trial | None = None
    while left:
        means = [mean_of([*chosen, one]) for one in left]
        place = min(range(len(means)), key=lambda index: means[index].loss)
        if best is not None and means[place].loss >= best.loss:
            break
        best = means[place]
        chosen.append(left.pop(place))
    return best if len(chosen) > 1 else None


def _fit_mean(fits: Sequence[Callable[[], Readout]]) -> Readout:
    return average_linear([readout for fit in fits if isinstance(readout := fit(), LinearReadout)])
