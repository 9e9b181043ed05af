"""From a finished model to a file that runs somewhere else: exported, proven, described, pushed."""

from __future__ import annotations

from vit_finetune.shipping.hub import Pushed, push_model
from vit_finetune.shipping.story import TARGETS, ExportResult, export_model

__all__ = ["TARGETS", "ExportResult", "Pushed", "export_model", "push_model"]
