"""Frozen features: what readouts see of a picture, off one pass through a backbone.

A readout sees named features of a picture: `embedding`, what the network's own head would see; and of chosen blocks the
class token (`cls`), the mean patch token (`avg`), the extremes of each feature over all patches (`max`, `min`) and the
patch tokens averaged over a coarse grid (`grid`). The first two go through the final norm, as in DINOv2's linear
evaluation, where it stands before pooling. The tokens of the others are each normalised without weights: those of the
final norm are made for the last block, and for earlier ones they were measured to cost a point. What is small and
stands anywhere, as a flaw in a fabric, is lost in a mean over hundreds of patches, not in an extreme.

Source: DINOv2's linear evaluation (arXiv 2304.07193).
Legend: B batch, D width, L chosen blocks, G grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.models.backbone import Backbone

# One input of a readout: the kind of feature and the block it is of (counted from 0); `embedding` is of no block.
Input = tuple[str, int]


@dataclass(frozen=True)
class FeatureLayout:
    """Which features are read off a backbone.

    Attributes:
        layers: blocks counted from 0, ascending.
        grid: the most rows and the most columns of patch tokens that are kept; more are averaged.
    """

    layers: tuple[int, ...]
    grid: int

    def __post_init__(self) -> None:
        """Refuse what cannot be read.

        Raises:
            RequestError: blocks are not ascending, or the grid has no cell.
        """
        if list(self.layers) != sorted(set(self.layers)) or not self.layers or self.grid < 1:
            raise RequestError(
                f"features of blocks {self.layers} on a grid of {self.grid}: give ascending blocks and 1 cell or more"
            )

    def cells(self, backbone: Backbone) -> tuple[int, int]:
        """Return rows and columns of the kept grid."""
        rows, columns = backbone.config.grid_size
        return min(rows, self.grid), min(columns, self.grid)

    def shapes(self, backbone: Backbone) -> dict[str, tuple[int, ...]]:
        """Return the shape of each feature of one picture: what `read_features` gives, without B."""
        rows, columns = self.cells(backbone)
        count, width = len(self.layers), backbone.embed_dim
        shapes: dict[str, tuple[int, ...]] = {"embedding": (width,)}
        if backbone.num_prefix_tokens:
            shapes["cls"] = (count, width)
        pooled = dict.fromkeys(("avg", "max", "min"), (count, width))
        return shapes | pooled | {"grid": (count, rows * columns, width)}


def grid_average(size: int, cells: int) -> Tensor:
    """Return the matrix [cells, size] that averages neighbours as torch's adaptive average pooling does."""
    matrix = torch.zeros(cells, size)
    for row in range(cells):
        start, stop = row * size // cells, -(-(row + 1) * size // cells)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


def read_features(backbone: Backbone, x: Tensor, layout: FeatureLayout) -> dict[str, Tensor]:
    """Return the features of images in one pass.

    Args:
        backbone: the network; its head is not used.
        x: images [B, C, H, W], of the size the network is configured for.
        layout: which features.

    Returns:
        embedding [B, D], cls [B, L, D] (not for a network without class token), avg, max and min [B, L, D] and grid
        [B, L, G, D], cells row by row.
    """
    last = len(backbone.blocks) - 1
    wanted = sorted({*layout.layers, last})
    parts = cast(
        "list[tuple[Tensor, Tensor]]",
        backbone.get_intermediate_layers(x, wanted, return_prefix_tokens=True),
    )
    raw = [torch.cat([prefix, patches], dim=1) for patches, prefix in parts]
    embedding = backbone.forward_head(backbone.norm(raw[-1]), pre_logits=True)
    kept = torch.stack([part for part, index in zip(raw, wanted, strict=True) if index in layout.layers], dim=1)
    bare = functional.layer_norm(kept, kept.shape[-1:], eps=backbone.config.norm_eps)[
        :, :, backbone.num_prefix_tokens :
    ]
    normed = backbone.norm(kept)
    prefix, patches = normed[:, :, : backbone.num_prefix_tokens], normed[:, :, backbone.num_prefix_tokens :]
    features = {"embedding": embedding, **({"cls": prefix[:, :, 0]} if prefix.shape[2] else {})}
    extremes = {"max": bare.amax(dim=2), "min": bare.amin(dim=2)}
    return features | {"avg": patches.mean(dim=2), **extremes, "grid": _on_grid(bare, backbone, layout)}


def _on_grid(patches: Tensor, backbone: Backbone, layout: FeatureLayout) -> Tensor:
    """Average patch tokens [B, L, N, D] over the cells of the grid: [B, L, G, D]."""
    (rows, columns), (few_rows, few_columns) = backbone.config.grid_size, layout.cells(backbone)
    if (rows, columns) == (few_rows, few_columns):
        return patches
    vertical, horizontal = grid_average(rows, few_rows).to(patches), grid_average(columns, few_columns).to(patches)
    picture = rearrange(patches, "b l (r c) d -> b l r c d", r=rows)
    picture = torch.einsum("yr,blrcd->blycd", vertical, picture)
    return rearrange(torch.einsum("xc,blycd->blyxd", horizontal, picture), "b l y x d -> b l (y x) d")


def select(features: Mapping[str, Tensor], inputs: Sequence[Input], layers: Sequence[int]) -> Tensor:
    """Return the inputs of a readout side by side, [B, F].

    Args:
        features: of `read_features`.
        inputs: which, in order.
        layers: the blocks that the features are of.
    """
    parts = []
    for kind, layer in inputs:
        value = features[kind] if kind == "embedding" else features[kind][:, list(layers).index(layer)]
        parts.append(value.flatten(1))
    return torch.cat(parts, dim=1)
