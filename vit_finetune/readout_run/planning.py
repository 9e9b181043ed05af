"""What a readout run derives before the first picture is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.splitting import groups_in
from vit_finetune.export import missing_for_onnx
from vit_finetune.models import Backbone, FeatureLayout
from vit_finetune.training import on_main, steps_in
from vit_finetune.training.feature_cache import FeatureCache, default_cache_dir, size_of
from vit_finetune.training.features import FeatureSource
from vit_finetune.training.folds import folds_of
from vit_finetune.training.sgd_readout import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class ReadoutPlan:
    """What follows from the configuration and the network before the first picture is read."""

    layout: FeatureLayout
    recipe: Recipe
    names: tuple[str, ...]
    cache: FeatureCache
    entry_bytes: dict[str, int]
    num_heads: int
    folds: NDArray[np.int64]

    @classmethod
    def of(cls, config: Config, model: Backbone, splits: Splits, accelerator: Accelerator) -> ReadoutPlan:
        """Derive it, and refuse what cannot be.

        Raises:
            RequestError: blocks that the network lacks, or features that the cache has no room for.
        """
        section, train = config.readout, config.train
        if section.onnx and (missing := missing_for_onnx()):
            raise RequestError(f"readout.onnx needs {', '.join(missing)}: pip install 'vit-finetune[onnx]'")
        if train.wise_ft:
            raise RequestError("train.wise_ft is for weights that train, and tuning.mode readout trains none; drop it")
        folds = folds_of(
            splits.train.single_labels("tuning.mode readout"),
            num_folds=section.num_folds,
            how=section.folds,
            seed=config.run.seed,
            groups=None if section.groups is None else groups_in(splits.train.store, section.groups, "readout.groups"),
        )
        batch = min(train.global_batch_size, len(splits.train))
        clock = {"num_train": len(splits.train), "global_batch_size": batch}
        recipe = Recipe(train.steps or steps_in(train.epochs or 0, **clock), batch, config.run.seed)
        names = section.candidates if section.name == "auto" else (section.name,)
        layout = FeatureLayout(chosen_layers(section.layers, model.config.depth, names), section.grid)
        root = default_cache_dir("features") if section.cache_dir is None else Path(section.cache_dir).expanduser()
        cache = FeatureCache(root, int(section.cache_limit_gb * 1e9))
        source = FeatureSource(model, layout, section.dtype, "")
        entries = {
            f"{name} view {view}": size_of(source.shapes(len(pictures)), np.dtype(section.dtype))
            for name, pictures in splits.named()
            for view in range(section.num_views if name == "train" else 1)
        }
        on_main(accelerator, lambda: cache.check_room(list(entries.values())))
        return cls(layout, recipe, names, cache, entries, getattr(model.config, "num_heads", 1), folds)

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "candidates": list(self.names),
            "layers": list(self.layout.layers),
            "grid": self.layout.grid,
            "num_steps": self.recipe.num_steps,
            "batch_size": self.recipe.batch_size,
            "feature_bytes": self.entry_bytes,
            "cache": str(self.cache.root),
        }


def chosen_layers(asked: tuple[int, ...] | str, depth: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return blocks counted from 0, ascending.

    Raises:
        RequestError: the network lacks one.
    """
    if isinstance(asked, str):
        # Evenly spaced up to the last one; DINOv2's grid of heads reads the last four themselves.
        apart = 1 if names == ("sgd_grid",) else max(1, round(depth / 6))
        return tuple(layer for layer in range(depth - 1 - 3 * apart, depth, apart) if layer >= 0)
    wrong = [layer for layer in asked if not -depth <= layer < depth]
    if wrong:
        raise RequestError(
            f"readout.layers {wrong} are not in a network of {depth} blocks; give -{depth} to {depth - 1}"
        )
    return tuple(sorted({layer % depth for layer in asked}))
