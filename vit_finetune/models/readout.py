"""What reads classes off frozen features: the readouts, and the network in which one stands on a backbone.

Not here: the features themselves (features.py), how a readout is fitted (training/readout.py), its
files (weights/readout_folder.py).

Sources: DINO's kNN (arXiv 2104.14294), DINOv2's linear evaluation (2304.07193), Efficient Probing (2506.10178).
Legend: B batch, D width, L chosen blocks, G grid cells, F features of a readout, K classes, M stored pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.models.attending import attend
from vit_finetune.models.backbone import Backbone
from vit_finetune.models.features import FeatureLayout, Input, read_features, select


class Readout(nn.Module):
    """The base of every readout: named features to logits.

    Args:
        inputs: the features that are read, in order.
    """

    name = ""

    def __init__(self, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.inputs = tuple((str(kind), int(layer)) for kind, layer in inputs)

    def settings(self) -> dict[str, Any]:
        """Return what `build_readout` needs beside the tensors, as JSON values."""
        return {"name": self.name, "inputs": [list(item) for item in self.inputs]}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of the inputs side by side, [B, F]."""
        raise NotImplementedError


class LinearReadout(Readout):
    """One linear layer; standardisation and PCA before it are folded into its weights.

    Args:
        inputs: the features that are read.
        num_features: F.
        num_classes: K.
    """

    name = "linear"

    def __init__(self, inputs: Sequence[Input], *, num_features: int, num_classes: int) -> None:
        super().__init__(inputs)
        self.linear = nn.Linear(num_features, num_classes)

    def settings(self) -> dict[str, Any]:
        """Return what `build_readout` needs beside the tensors."""
        sizes = {"num_features": self.linear.in_features, "num_classes": self.linear.out_features}
        return super().settings() | sizes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of features [B, F]."""
        out: Tensor = self.linear(x)
        return out


class KNNReadout(Readout):
    """The weighted vote of the nearest training pictures; logits are the log shares of the votes.

    Args:
        inputs: the features that are read.
        num_features: F.
        num_classes: K.
        num_stored: M.
        k: how many neighbours vote, at most M.
        temperature: of the votes: a neighbour of cosine c has exp(c / temperature).

    Source: DINO's `eval_knn.py` (arXiv 2104.14294, appendix F).
    """

    name = "knn"
    _LEAST = 1e-6  # the share of a class without votes, so that its logit is finite

    def __init__(
        self,
        inputs: Sequence[Input],
        *,
        num_features: int,
        num_classes: int,
        num_stored: int,
        k: int,
        temperature: float,
    ) -> None:
        super().__init__(inputs)
        self.k, self.temperature, self.num_classes = k, temperature, num_classes
        self.bank: Tensor
        self.labels: Tensor
        self.register_buffer("bank", torch.zeros(num_stored, num_features))
        self.register_buffer("labels", torch.zeros(num_stored, dtype=torch.int64))

    def settings(self) -> dict[str, Any]:
        """Return what `build_readout` needs beside the tensors."""
        sizes = {"num_features": self.bank.shape[1], "num_classes": self.num_classes, "num_stored": len(self.bank)}
        return super().settings() | sizes | {"k": self.k, "temperature": self.temperature}

    def forward(self, x: Tensor) -> Tensor:
        """Return the log shares of the votes [B, K] of features [B, F]."""
        cosine = functional.normalize(x, dim=1) @ self.bank.T
        near, places = cosine.topk(self.k, dim=1)
        # Shifted by the nearest, which cancels in the shares, so that exp stays in range.
        votes = ((near - near[:, :1]) / self.temperature).exp()
        belongs = functional.one_hot(self.labels[places], self.num_classes).to(votes)
        shares = torch.einsum("bk,bkc->bc", votes, belongs)
        return (shares / shares.sum(dim=1, keepdim=True)).clamp_min(self._LEAST).log()


class AttentiveReadout(Readout):
    """Learned queries that each average a part of the values of all tokens of one block, then a linear layer.

    Query m looks at whole tokens (there is no key projection) and gathers the m-th of M slices of the projected values.

    Args:
        inputs: one entry, the grid of a block.
        dim: token width D, a multiple of `num_queries`.
        num_queries: M.
        num_classes: K.

    Raises:
        RequestError: D does not divide by M.

    Source: Efficient Probing (arXiv 2506.10178).
    """

    name = "attentive"

    def __init__(self, inputs: Sequence[Input], *, dim: int, num_queries: int, num_classes: int) -> None:
        super().__init__(inputs)
        if dim % num_queries:
            raise RequestError(f"{num_queries} queries do not share out a width of {dim}; give one of its divisors")
        self.dim, self.num_queries = dim, num_queries
        self.queries = nn.Parameter(torch.zeros(num_queries, dim))
        self.values = nn.Linear(dim, dim)
        self.linear = nn.Linear(dim, num_classes)

    def settings(self) -> dict[str, Any]:
        """Return what `build_readout` needs beside the tensors."""
        sizes = {"dim": self.dim, "num_queries": self.num_queries, "num_classes": self.linear.out_features}
        return super().settings() | sizes

    def pooled(self, x: Tensor) -> Tensor:
        """Return the gathered values [B, D] of tokens side by side [B, G*D]."""
        tokens = rearrange(x, "b (g d) -> b 1 g d", d=self.dim)
        values = rearrange(self.values(tokens), "b 1 g (m v) -> b m g v", m=self.num_queries)
        keys = tokens.expand(-1, self.num_queries, -1, -1)
        queries = rearrange(self.queries, "m d -> 1 m 1 d").expand(len(x), -1, -1, -1)
        return rearrange(attend(queries, keys, values), "b m 1 v -> b (m v)")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of tokens side by side [B, G*D]."""
        out: Tensor = self.linear(self.pooled(x))
        return out


READOUTS: dict[str, type[Readout]] = {kind.name: kind for kind in (LinearReadout, KNNReadout, AttentiveReadout)}


def build_readout(settings: Mapping[str, Any]) -> Readout:
    """Return a readout of given settings, its tensors still to be loaded.

    Args:
        settings: what `Readout.settings` gave.

    Raises:
        RequestError: the settings are of no readout that is known here.
    """
    values = dict(settings)
    kind = READOUTS.get(str(values.pop("name", None)))
    if kind is None:
        raise RequestError(f"readout {settings.get('name')!r} is none of {', '.join(READOUTS)}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the settings of the {kind.name} readout are damaged: {error}") from error


class ReadoutModel(Backbone):
    """A frozen backbone and the readout on it: images to logits, and all else that a backbone can do.

    `forward_features`, `get_intermediate_layers` and attention maps are the backbone's; `forward_head` stops where the
    readout would have been fed from one vector, at the embedding.

    Args:
        backbone: the network, without a head.
        readout: what reads its features.
        layout: the features that are read.
        num_classes: K.
    """

    def __init__(self, backbone: Backbone, readout: Readout, *, layout: FeatureLayout, num_classes: int) -> None:
        super().__init__(backbone.config.updated({"num_classes": num_classes}))
        self.backbone, self.readout, self.layout = backbone, readout, layout
        self.name = backbone.name

    def __getattr__(self, name: str) -> Any:
        """Return what only the backbone has: its parts, under the names that every backbone gives them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("backbone"), name)

    def start(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> tuple[Tensor, Sequence[tuple[Tensor, ...]]]:
        """Return what the backbone's first block sees; see `Backbone.start`."""
        return self.backbone.start(x, sample_seeds=sample_seeds)

    def pool(self, x: Tensor) -> Tensor:
        """Return the backbone's one vector [B, D] per image of tokens [B, N, D]."""
        return self.backbone.pool(x)

    def forward(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> Tensor:
        """Return logits [B, K] of images [B, C, H, W]; `sample_seeds` are for training, which a readout is past."""
        del sample_seeds
        features = read_features(self.backbone, x, self.layout)
        out: Tensor = self.readout(select(features, self.readout.inputs, self.layout.layers))
        return out
