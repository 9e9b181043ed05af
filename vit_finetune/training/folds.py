"""Which training pictures are held out together when readouts are compared: pure functions of labels and groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.folds import deal_groups
from vit_finetune.common.seeding import derive_seed

FOLDS = ("stratified", "contiguous")


def folds_of(
    labels: NDArray[np.int64], *, num_folds: int, how: str, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Return the fold of each picture, [N], in [0, num_folds).

    Args:
        labels: class indices [N].
        num_folds: at least 2.
        how: "stratified" deals each class out at random; "contiguous" cuts each class, in its order, into runs, which
            holds pictures of one series, person or day out together where files are named in that order.
        seed: of the run; decides how "stratified" deals.
        groups: a name for each picture: pictures of one name are never in two folds, and `how` is not used.

    Raises:
        RequestError: there are fewer pictures, or groups, than folds.
    """
    if groups is not None:
        return _grouped(labels, num_folds=num_folds, groups=groups)
    if len(labels) < num_folds or num_folds < 2:
        raise RequestError(f"readout.num_folds is {num_folds} for {len(labels)} training pictures; give 2 or more each")
    folds = np.zeros(len(labels), dtype=np.int64)
    generator = np.random.default_rng(derive_seed(seed, "folds"))
    dealt = 0
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if how == "contiguous":
            folds[places] = np.arange(len(places)) * num_folds // len(places)
        else:
            # Goes on dealing where the last class ended, so that small classes don't all land in the first folds.
            folds[generator.permutation(places)] = (dealt + np.arange(len(places))) % num_folds
            dealt += len(places)
    return folds


def _grouped(labels: NDArray[np.int64], *, num_folds: int, groups: Sequence[str]) -> NDArray[np.int64]:
    """Deal out whole groups; of equals, the first by name comes first."""
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < num_folds:
        raise RequestError(
            f"readout.groups finds {len(names)} groups ({', '.join(map(str, names[:5]))}) for {num_folds} folds; "
            "choose a finer expression or a smaller readout.num_folds"
        )
    fold_of = deal_groups(members, labels, num_folds, range(len(names)))
    return fold_of[members]
