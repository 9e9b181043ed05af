"""Frozen features: one forward pass over pictures into the cache, or straight out of it.

Each process computes the pictures of its own contiguous share; the arrays are the same at any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vit_finetune.common.errors import WorkError
from vit_finetune.models import Backbone, FeatureLayout, forward_prefix, prefix_tensors, read_features
from vit_finetune.models.features import Input
from vit_finetune.training.feature_cache import FeatureCache, Shapes, cache_key, write_rows
from vit_finetune.training.shared_entries import fill_entry

if TYPE_CHECKING:
    from accelerate import Accelerator

_FORMAT = 2  # raised when the same facts would give other numbers than before
_HEAD = ("head.", "head_dist.")


class PictureBatch(Protocol):
    """What is read."""

    @property
    def images(self) -> Tensor:
        """Pixels as the network takes them [B, C, H, W]."""

    @property
    def indices(self) -> Tensor:
        """Places in the split, ascending, int64 [B]."""


class Source(Protocol):
    """What gives features of pictures."""

    @property
    def dtype(self) -> str:
        """Of what is kept."""

    def shapes(self, count: int) -> Shapes:
        """Return the shapes of the arrays of so many pictures."""

    def read(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the features of images [B, C, H, W] by name, [B, ...]."""


@dataclass(frozen=True)
class FeatureSource:
    """A frozen network and how its features are kept.

    Attributes:
        backbone: the network, on its device, in eval mode.
        layout: which features.
        dtype: float32 or float16, of what is kept.
        weights: digest of the network's weights, of `weights_digest`.
    """

    backbone: Backbone
    layout: FeatureLayout
    dtype: str
    weights: str

    def shapes(self, count: int) -> Shapes:
        """Return the shapes of the arrays of so many pictures."""
        return {name: (count, *shape) for name, shape in self.layout.shapes(self.backbone).items()}

    def read(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the features of images [B, C, H, W] by name, [B, ...]."""
        return read_features(self.backbone, images, self.layout)

    def facts(self, pictures: str, transform: Mapping[str, Any], accelerator: Accelerator) -> dict[str, Any]:
        """Return all that the features of some pictures depend on.

        Args:
            pictures: digest of their bytes, in order.
            transform: what is done to them, as JSON values.
            accelerator: of the run: its device and precision round differently.
        """
        return {
            "format": _FORMAT,
            "weights": self.weights,
            "network": {name: str(value) for name, value in self.backbone.config.to_mapping().items()},
            "layers": list(self.layout.layers),
            "grid": self.layout.grid,
            "dtype": self.dtype,
            "pictures": pictures,
            "transform": dict(transform),
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
        }


@dataclass(frozen=True)
class FeatureTable:
    """The features of a split.

    Attributes:
        views: of each view of the pictures the arrays by name, [N, ...]; the first is the evaluation transform's.
        labels: class indices, int64 [N].
        layers: the blocks that cls, avg and grid are of.
        num_classes: K.
    """

    views: tuple[Mapping[str, np.ndarray], ...]
    labels: np.ndarray
    layers: tuple[int, ...]
    num_classes: int

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def read(self, item: Input, rows: np.ndarray, *, all_views: bool = False) -> Tensor:
        """Return one input of some pictures as float32 [n, F], or of all their views, [views * n, F].

        Args:
            item: the kind of feature and the block.
            rows: places of the pictures.
            all_views: the rows of the first view, then those of the second, ...
        """
        kind, layer = item
        views = self.views if all_views else self.views[:1]
        parts = [
            view[kind][rows] if kind == "embedding" else view[kind][rows, self.layers.index(layer)] for view in views
        ]
        stacked = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32)).flatten(1)

    def targets(self, rows: np.ndarray, *, all_views: bool = False) -> Tensor:
        """Return class indices in the order of `read`."""
        return torch.from_numpy(np.tile(self.labels[rows], len(self.views) if all_views else 1))


@dataclass(frozen=True)
class PrefixSource:
    """The first half of a network, in which nothing trains (`models.prefix`).

    Attributes:
        backbone: the network, on its device.
        boundary: where the second half begins, above 0.
        dtype: of what is kept: as it is computed, so that nothing is rounded.
    """

    backbone: Backbone
    boundary: int
    dtype: str = "float32"

    def shapes(self, count: int) -> Shapes:
        """Return the shape of the one array of so many pictures."""
        width, is_pooled = self.backbone.embed_dim, self.boundary > len(self.backbone.blocks)
        return {"prefix": (count, width) if is_pooled else (count, self.backbone.config.num_tokens, width)}

    def read(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return what the second half is given of images [B, C, H, W]."""
        return {"prefix": forward_prefix(self.backbone, images, self.boundary)}

    def facts(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return all that its numbers depend on but the pictures, their rounding included."""
        return {
            "format": _FORMAT,
            "weights": digest_of(prefix_tensors(self.backbone, self.boundary)),
            "network": {name: str(value) for name, value in self.backbone.config.to_mapping().items()},
            "boundary": self.boundary,
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            "num_processes": accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
        }


def weights_digest(backbone: Backbone) -> str:
    """Return a digest of every tensor but the head's, 64 hexadecimal digits."""
    return digest_of(item for item in backbone.state_dict().items() if not item[0].startswith(_HEAD))


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of named tensors, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_features(
    source: Source,
    batches: Callable[[], Iterable[PictureBatch]],
    *,
    count: int,
    facts: Mapping[str, Any],
    cache: FeatureCache,
    accelerator: Accelerator,
    keep: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], bool]:
    """Return the features of pictures, out of the cache or computed into it.

    Args:
        source: what computes them.
        batches: gives this process's share of the pictures, in order.
        count: pictures over all processes.
        facts: all that they depend on; they name the entry.
        cache: where entries lie, on a disk that all processes share.
        accelerator: of the run.
        keep: keys that this run uses too, and that must not be evicted for this one.

    Returns:
        The arrays, memory-mapped, [N, ...], equal on every process; and whether they were there already.

    Raises:
        WorkError: the disk is full, or the processes do not share the cache.
    """
    key = cache_key(facts)
    dtype = np.dtype(source.dtype)

    def write(folder: Path) -> None:
        for batch in batches():
            for name, rows in _read_batch(source, batch, accelerator).items():
                write_rows(folder, name, int(batch.indices[0]), rows.astype(dtype, copy=False))

    hit = fill_entry(
        cache,
        key,
        accelerator=accelerator,
        start=lambda: cache.start(key, source.shapes(count), dtype, keep=keep),
        write=write,
        finish=lambda folder: cache.finish(key, folder, facts),
    )
    arrays = cache.find(key)
    if arrays is None:
        raise WorkError(
            f"the features in {cache.root} cannot be read by process {accelerator.process_index}: they were evicted, "
            "or the processes do not share this folder; set readout.cache_dir and readout.cache_limit_gb"
        )
    return arrays, hit


@torch.inference_mode()
def _read_batch(source: Source, batch: PictureBatch, accelerator: Accelerator) -> dict[str, np.ndarray]:
    images = batch.images.to(accelerator.device, non_blocking=True)
    with accelerator.autocast():
        features = source.read(images)
    return {name: value.float().cpu().numpy() for name, value in features.items()}
