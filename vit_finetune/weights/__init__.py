"""Files to tensors to our layout, with every tensor accounted for. Knows the network; no data, no training."""

from __future__ import annotations

from vit_finetune.weights.averaging import average_state_dicts, interpolate_state_dicts
from vit_finetune.weights.conversion_report import ConversionReport
from vit_finetune.weights.convert import convert_state_dict
from vit_finetune.weights.convert_checkpoint import convert_checkpoint
from vit_finetune.weights.diff import Difference, diff_checkpoints
from vit_finetune.weights.formats import detect_format
from vit_finetune.weights.inspect import Inspection, inspect_checkpoint
from vit_finetune.weights.load import from_pretrained, load_pretrained, own_memory
from vit_finetune.weights.metadata import embedded_metadata, read_embedded
from vit_finetune.weights.report import LoadReport
from vit_finetune.weights.sources import read_source

__all__ = [
    "ConversionReport",
    "Difference",
    "Inspection",
    "LoadReport",
    "average_state_dicts",
    "convert_checkpoint",
    "convert_state_dict",
    "detect_format",
    "diff_checkpoints",
    "embedded_metadata",
    "from_pretrained",
    "inspect_checkpoint",
    "interpolate_state_dicts",
    "load_pretrained",
    "own_memory",
    "read_embedded",
    "read_source",
]
