"""What leaves: a model folder that timm and transformers open without us. Knows models and weights, not runs."""

from __future__ import annotations

from vit_finetune.export.folder import export_model_folder

__all__ = ["export_model_folder"]
