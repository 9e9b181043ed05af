"""The Vision Transformer itself."""

from __future__ import annotations

from vit_finetune.models.vit_config import ViTConfig

__all__ = ["ViTConfig"]
