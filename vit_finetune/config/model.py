"""Options of the section `model`: the network and the weights it starts from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from vit_finetune.config.kinds import PositiveFloat, PositiveInt, Rate, Size
from vit_finetune.recipe import Section


class ModelConfig(Section):
    """Which network, and which weights it starts from."""

    pretrained: str | None
    """Where the weights come from: a file or folder, `hf-hub:owner/name`, `timm:name.tag`, `demo` (the quickstart's),
    or null for random weights. No default, so that nothing is random by accident."""
    name: str | None = None
    """Architecture in timm's spelling; null where the source tells it."""
    img_size: Size | None = None
    """Picture size in pixels, one number or [height, width]; null keeps the checkpoint's."""
    in_chans: PositiveInt | None = None
    """Picture channels; null keeps the checkpoint's."""
    global_pool: Literal["token", "avg", "map"] | None = None
    """How tokens become one vector; null keeps the checkpoint's."""
    pos_embed: Literal["bicubic", "bilinear"] = "bicubic"
    """How position embeddings are resampled to another grid: timm's rule, or the ViT paper's."""
    head_init: Literal["zeros", "trunc_normal", "pretrained"] | PositiveFloat = "zeros"
    """The new head: zeros (ViT paper), truncated normal of 0.02, or a standard deviation; pretrained keeps the
    checkpoint's own head, which must be of the data's classes."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth, rising linearly from 0 at the first block to this at the last; probability."""
    drop_rate: Rate = 0.0
    """Dropout before the head; probability."""
    pos_drop_rate: Rate = 0.0
    """Dropout after the position embedding; probability."""
    patch_drop_rate: Rate = 0.0
    """Share of the patch tokens dropped in training."""
    proj_drop_rate: Rate = 0.0
    """Dropout after attention's and the MLP's projections; probability."""
    attn_drop_rate: Rate = 0.0
    """Dropout of the attention weights; probability."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Further ViTConfig fields, such as {depth: 2, embed_dim: 64} for a small network."""

    @model_validator(mode="after")
    def _needs_a_name(self) -> ModelConfig:
        if self.pretrained is None and self.name is None:
            raise ValueError("random weights (pretrained: null) need model.name, one of `vit-finetune models`")
        if self.pretrained is None and self.head_init == "pretrained":
            raise ValueError("model.head_init pretrained keeps a checkpoint's head, and pretrained: null has none")
        return self
