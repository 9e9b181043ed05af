"""Nearest neighbours as a readout: nothing is fitted, the embeddings of training pictures are stored.

Source: DINO's `eval_knn.py` (arXiv 2104.14294): cosine, votes of exp(cosine / 0.07).
"""

from __future__ import annotations

import numpy as np
from torch.nn import functional

from vit_finetune.models import KNNReadout
from vit_finetune.models.features import Input
from vit_finetune.training.features import FeatureTable

TEMPERATURE = 0.07


def fit_knn(table: FeatureTable, rows: np.ndarray, *, k: int) -> KNNReadout:
    """Store the embeddings of pictures, all their views, as the neighbours that vote.

    Args:
        table: the training pictures.
        rows: which of them.
        k: how many vote, at most as many as are stored.
    """
    item: Input = ("embedding", -1)
    bank = functional.normalize(table.read(item, rows, all_views=True), dim=1)
    readout = KNNReadout(
        (item,),
        num_features=bank.shape[1],
        num_classes=table.num_classes,
        num_stored=len(bank),
        k=k,
        temperature=TEMPERATURE,
    )
    readout.bank.copy_(bank)
    readout.labels.copy_(table.targets(rows, all_views=True))
    return readout.eval()
