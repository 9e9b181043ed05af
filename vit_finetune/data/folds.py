"""Cross-validation: the training pictures in folds, each of which is scored by a model that has not seen it.

Folds are functions of (seed, picture key, class), as everything random in a run; sklearn's splitters, which draw from
a generator, say the same about what is balanced (they are the oracle in the tests).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.folds import deal_groups
from vit_finetune.common.seeding import derive_seed
from vit_finetune.data.image_set import Splits


def k_folds(
    splits: Splits,
    num_folds: int = 5,
    *,
    groups: Callable[[str], Hashable] | Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Splits]:
    """Split the training pictures into folds: of each, the rest is trained on.

    The held-out fold is the `test` split and there is no `val`: it selects nothing, so what is scored on it is what
    the recipe gives on pictures nobody looked at. The val and test pictures of `splits` are left alone.

    Args:
        splits: the data; its `train` is split.
        num_folds: how many folds, at least 2.
        groups: pictures of one group stay together (a person, a video): a group a picture, or a function of the
            picture's key (its path below the root). None takes those that the data tells (`split_by: group`), and
            where it tells none balances the classes picture by picture.
        seed: decides which picture is in which fold.

    Returns:
        For each fold the splits to train and score with; over all of them every picture is in `test` once.

    Raises:
        RequestError: there are too few pictures or groups, or a class would be missing from a training part.
    """
    pictures = splits.train
    if num_folds < 2:
        raise RequestError(f"num_folds is {num_folds}; give at least 2")
    keys = [pictures.store.key(index) for index in range(len(pictures))]
    groups = pictures.groups if groups is None else groups
    named: Sequence[Hashable] = keys if groups is None else [*map(groups, keys)] if callable(groups) else groups
    if len(named) != len(keys):
        raise RequestError(f"{len(named)} groups for {len(keys)} pictures; give one each")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(named))}
    if len(numbers) < num_folds:
        raise RequestError(f"{len(numbers)} {'pictures' if groups is None else 'groups'} cannot fill {num_folds} folds")
    members = np.array([numbers[group] for group in named], dtype=np.int64)
    labels = pictures.single_labels("k_folds")
    _check_classes(members, labels, splits.class_names, what="picture" if groups is None else "group")
    fold_of = deal_groups(members, labels, num_folds, [derive_seed(seed, "fold", str(name)) for name in numbers])
    return [_one_fold(splits, fold_of[members] == fold, f"fold {fold + 1} of {num_folds}") for fold in range(num_folds)]


def _check_classes(
    members: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str], *, what: str
) -> None:
    """Refuse classes that cannot be both trained on and held out."""
    spread = Counter(label for _, label in set(zip(members.tolist(), labels.tolist(), strict=True)))
    single = [class_names[label] for label, count in sorted(spread.items()) if count == 1]
    if single:
        raise RequestError(
            f"classes within a single {what} cannot be trained on while it is held out: {', '.join(single)}"
        )


def _one_fold(splits: Splits, held_out: NDArray[np.bool_], note: str) -> Splits:
    """Return the splits of one fold."""
    pictures = splits.train
    train, test = pictures.take(np.flatnonzero(~held_out)), pictures.take(np.flatnonzero(held_out))
    return replace(splits, train=train, val=None, test=replace(test, weights=None), notes=(*splits.notes, note))
