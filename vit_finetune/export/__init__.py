"""What leaves: a model folder that timm and transformers open without us. Knows models and weights, not runs."""

from __future__ import annotations

from vit_finetune.export.folder import export_model_folder
from vit_finetune.export.onnx import export_onnx, missing_for_onnx
from vit_finetune.export.readout import Exported, export_readout

__all__ = ["Exported", "export_model_folder", "export_onnx", "export_readout", "missing_for_onnx"]
