"""The networks: Vision Transformers in timm's layout. Knows torch and einops; no files, no network.

Reading order: `layers.py`, `noise.py`, `backbone.py`; the plain ViT in `attention.py`, `blocks.py`, `vit.py`; rotary
positions in `rope.py`, `rope_vit.py`; relative ones in `rel_pos_vit.py`; then `variants.py`, `head.py`, `merging.py`.
"""

from vit_finetune.models.attention import attention_maps
from vit_finetune.models.backbone import Backbone
from vit_finetune.models.bias_table import resize_bias_table
from vit_finetune.models.features import FeatureLayout, read_features
from vit_finetune.models.head import replace_head
from vit_finetune.models.merging import MergedTokens, check_mergeable
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.prefix import SecondHalf, boundary_of, forward_prefix, prefix_tensors
from vit_finetune.models.readout import (
    AttentiveReadout,
    KNNReadout,
    LinearReadout,
    Readout,
    ReadoutModel,
    build_readout,
)
from vit_finetune.models.rel_pos_vit import RelPosViT, RelPosViTConfig
from vit_finetune.models.rope_vit import RopeViT, RopeViTConfig
from vit_finetune.models.summary import SummaryRow, count_parameters, summarize, summary_lines
from vit_finetune.models.variants import NOT_PLAIN, build_model, create_model, list_models, variant_config
from vit_finetune.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "NOT_PLAIN",
    "AttentiveReadout",
    "Backbone",
    "FeatureLayout",
    "KNNReadout",
    "LinearReadout",
    "MergedTokens",
    "NetworkConfig",
    "Readout",
    "ReadoutModel",
    "RelPosViT",
    "RelPosViTConfig",
    "RopeViT",
    "RopeViTConfig",
    "SecondHalf",
    "SummaryRow",
    "ViTConfig",
    "VisionTransformer",
    "attention_maps",
    "boundary_of",
    "build_model",
    "build_readout",
    "check_mergeable",
    "count_parameters",
    "create_model",
    "forward_prefix",
    "list_models",
    "prefix_tensors",
    "read_features",
    "replace_head",
    "resize_bias_table",
    "summarize",
    "summary_lines",
    "variant_config",
]
