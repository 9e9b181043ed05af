"""Where a network looks: attention rolled out to the picture, distances of attention, and heat laid on a picture.

What it is not: a proof of why a class was chosen. Rollout shows what could have flowed to the class token; only the
gradient-weighted maps (`explain_gradients.py`) depend on the class.

Sources: attention rollout, Abnar and Zuidema 2020 (arXiv 2005.00928), as in figure 6 of the ViT paper (2010.11929,
appendix D.7); filters, position similarity and attention distance: its figure 7, left to right.
Legend: B pictures, nh heads, N tokens incl. prefix, gh gw patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models import Backbone

_EPS = 1e-12


def attention_rollout(maps: Sequence[Tensor], *, num_prefix_tokens: int) -> Tensor:
    """Return how much of each patch could reach the token that the head reads, over all layers.

    Heads are averaged, each token keeps half of itself (the residual connection), and the layers are multiplied.

    Args:
        maps: one [B, nh, N, N] per layer, from the first, as `attention_maps` gives them; rows look at columns.
        num_prefix_tokens: tokens before the patches. With some, the first one (the class token) is read; without any,
            the mean of all patches.

    Returns:
        Shares [B, gh*gw], patches row by row, each row adding up to 1.

    Raises:
        RequestError: there is no map, a map is not square, or not larger than the prefix.
    """
    if not maps or any(item.ndim != 4 or item.shape[-1] != item.shape[-2] for item in maps):
        raise RequestError(f"got maps {[tuple(item.shape) for item in maps]}; give at least one [B, heads, N, N]")
    size = maps[0].shape[-1]
    if not 0 <= num_prefix_tokens < size:
        raise RequestError(f"{num_prefix_tokens} prefix tokens of {size} tokens leave no patch")
    eye = torch.eye(size, dtype=maps[0].dtype, device=maps[0].device)
    flow = eye.expand(maps[0].shape[0], -1, -1)
    for item in maps:
        mixed = item.mean(dim=1) + eye
        flow = mixed / mixed.sum(dim=-1, keepdim=True) @ flow
    read = flow[:, 0] if num_prefix_tokens else flow.mean(dim=1)
    patches = read[:, num_prefix_tokens:]
    return patches / patches.sum(dim=-1, keepdim=True).clamp(min=_EPS)


def attention_distances(maps: Sequence[Tensor], *, grid_size: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Return how far each head looks: the mean distance between patches, weighted by attention.

    Args:
        maps: one [B, nh, N, N] per layer.
        grid_size: rows and columns of patches.
        num_prefix_tokens: tokens before the patches; attention from and to them is left out.

    Returns:
        Distances in patches [layers, nh], averaged over pictures and patches.

    Raises:
        RequestError: the maps are not of this grid.
    """
    rows, columns = grid_size
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    between = torch.cdist(places, places)
    out = []
    for item in maps:
        patches = item[..., num_prefix_tokens:, num_prefix_tokens:].double().cpu()
        if patches.shape[-1] != len(places):
            raise RequestError(f"maps of {patches.shape[-1]} patches for a grid of {rows}x{columns}")
        weights = patches / patches.sum(dim=-1, keepdim=True).clamp(min=_EPS)
        out.append((weights * between).sum(dim=-1).mean(dim=(0, 2)))
    return torch.stack(out)


def position_similarity(model: Backbone) -> Tensor:
    """Return how alike the position embeddings of patches are, as cosines.

    Args:
        model: a network with learned or fixed absolute positions.

    Returns:
        [gh, gw, gh, gw]: for each patch, its similarity with every patch, from -1 to 1.

    Raises:
        RequestError: the network's positions are not embeddings that are added to patches (rotary, relative).
    """
    embedding = getattr(model, "pos_embed", None)
    if not isinstance(embedding, Tensor):
        raise RequestError(
            f"{model.name or 'this network'} has no position embeddings to compare: its positions act inside attention"
        )
    rows, columns = model.config.grid_size
    patches = embedding.detach().float().cpu()[0, -rows * columns :]
    unit = patches / patches.norm(dim=1, keepdim=True).clamp(min=_EPS)
    out: Tensor = rearrange(unit @ unit.T, "(a b) (c d) -> a b c d", a=rows, c=rows)
    return out


def patch_filters(model: Backbone, num_filters: int = 28) -> Tensor:
    """Return the principal components of the patch embedding's filters, the strongest first.

    Args:
        model: the network.
        num_filters: how many; fewer where the embedding has fewer.

    Returns:
        Filters [num_filters, C, p, p] of unit length, each of the sign that makes its largest weight positive.

    Raises:
        RequestError: fewer than one is asked for.
    """
    if num_filters < 1:
        raise RequestError(f"{num_filters} filters; give 1 or more")
    weight = model.patch_embed.proj.weight.detach().float().cpu()
    _, _, components = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    chosen = components[:num_filters]
    largest = chosen.gather(1, chosen.abs().argmax(dim=1, keepdim=True))
    filters: Tensor = (chosen * largest.sign()).reshape(-1, *weight.shape[1:])
    return filters


def overlay(image: Image.Image, heat: NDArray[Any], *, strength: float = 0.55) -> Image.Image:
    """Return a picture with heat laid over it: dark blue where there is little, yellow where there is most.

    Args:
        image: any picture.
        heat: [h, w], stretched over the whole picture; only its order from lowest to highest matters, not its scale.
        strength: of the colour, in [0, 1]; where heat is lowest, the picture is darkened by it.

    Returns:
        A picture in mode RGB of the same size.

    Raises:
        RequestError: the heat is not two-dimensional or not finite.
    """
    values = np.asarray(heat, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise RequestError(f"the heat is {values.shape} and must be finite numbers [h, w]")
    span = float(values.max() - values.min())
    scaled = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    smooth = Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    colours = colourise(np.clip(np.asarray(smooth), 0, 1))
    return Image.blend(image.convert("RGB"), Image.fromarray(colours), strength)


def colourise(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return colours [h, w, 3] of values in [0, 1] [h, w], from dark blue over red to yellow.

    The order of brightness is the order of the values, so it reads in grey and for colour-blind people too.

    Args:
        values: [h, w].
    """
    place = np.clip(np.asarray(values, dtype=np.float64), 0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(place, stops, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


# Nine even steps of matplotlib's colour map "inferno" (Smith and van der Walt, CC0).
_COLOURS = (
    *((0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84), (228, 90, 49)),
    *((249, 142, 9), (249, 203, 53), (252, 255, 164)),
)
