"""The network: plain Vision Transformers in timm's layout. Knows torch and einops; no files, no network.

Reading order: `layers.py`, `noise.py`, `attention.py`, `blocks.py`, `vit.py`, `variants.py`; then `head.py`.
"""

from vit_finetune.models.attention import attention_maps
from vit_finetune.models.head import replace_head
from vit_finetune.models.summary import SummaryRow, count_parameters, summarize, summary_lines
from vit_finetune.models.variants import NOT_PLAIN, build_model, create_model, list_models, variant_config
from vit_finetune.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "NOT_PLAIN",
    "SummaryRow",
    "ViTConfig",
    "VisionTransformer",
    "attention_maps",
    "build_model",
    "count_parameters",
    "create_model",
    "list_models",
    "replace_head",
    "summarize",
    "summary_lines",
    "variant_config",
]
