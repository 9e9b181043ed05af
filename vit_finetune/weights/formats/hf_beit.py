"""BEiT as transformers writes it (`BeitModel` and its kin, on disk and in memory), and Data2Vec's vision network.

Both have the same names behind different prefixes; written is BEiT. Where the mean of the patches is pooled, the final
norm is the pooler's, and the tokens have none. A file of masked pre-training has one table of position biases for all
blocks, which timm's registered networks have one by one: each gets a copy, which is the same function.

Source: transformers 5 `models/beit/modeling_beit.py` and `models/data2vec/modeling_data2vec_vision.py`. Verified
against the library in both directions, bitwise where each block has its own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.rel_pos_vit import RelPosViTConfig
from vit_finetune.weights.formats.hf import LAYER, PATCH_RULE, VIT_ALIASES, config_of, fields_from, reference
from vit_finetune.weights.formats.microsoft_beit import GUESSES, INDEX, SHARED_BIASES, SHARED_TABLE, pooling_told
from vit_finetune.weights.rules import Format, Rule

_SELF = f"{LAYER}.attention.attention"
_BIAS = "relative_position_bias.relative_position_bias_table"
_SEGMENTS = "a head for segmentation, whose network has no final norm; take the classifier that it was made from"


def _config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    found = fields_from(config)
    if found.pop("act_layer", "gelu") != "gelu":
        raise NotRepresentable(f"hidden_act={config['hidden_act']!r}: a network with relative positions has 'gelu'")
    return found


def _check(config: RelPosViTConfig) -> str:
    (height, width), (rows, columns) = config.img_size, config.patch_size
    if height != width or rows != columns:
        return f"img_size={config.img_size} with patch_size={config.patch_size} (it holds squares)"
    if config.global_pool == "avg" and not config.norm_after_pool and config.num_classes:
        return "use_fc_norm=False with global_pool='avg' (it norms the mean)"
    if config.global_pool == "token" and config.norm_after_pool:
        return "use_fc_norm=True with global_pool='token' (it norms every token)"
    return ""


def _config_to(config: RelPosViTConfig) -> dict[str, Any]:
    name = "BeitForImageClassification" if config.num_classes else "BeitModel"
    return config_of(config, model_type="beit", architecture=name) | {
        "use_relative_position_bias": True,
        "use_mean_pooling": config.norm_after_pool,
        "layer_scale_init_value": config.init_values or 0.0,
        "drop_path_rate": config.drop_path_rate,
    }


HF_BEIT = Format(
    name="hf_beit",
    library="transformers",
    families=(RelPosViTConfig,),
    present=("embeddings.patch_embeddings.projection.weight", "lambda_1|relative_position_bias_table"),
    prefixes=("beit.", "data2vec_vision."),
    prefix=lambda config: "beit." if config.num_classes else "",
    aliases={
        f"layers.{{i}}.{_BIAS}": f"{_SELF}.{_BIAS}",
        "shared_position_bias.{rest}": "encoder.relative_position_bias.{rest}",
        **VIT_ALIASES,
    },
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        PATCH_RULE,
        Rule(f"{LAYER}.layernorm_before.{{kind}}", "blocks.{i}.norm1.{kind}"),
        Rule(
            tuple(f"{_SELF}.{part}.weight" for part in ("query", "key", "value")),
            "blocks.{i}.attn.qkv.weight",
            "qkv o i -> (qkv o) i",
        ),
        Rule(f"{_SELF}.query.bias", "blocks.{i}.attn.q_bias"),
        Rule(f"{_SELF}.value.bias", "blocks.{i}.attn.v_bias"),
        Rule(f"{_SELF}.{_BIAS}", "blocks.{i}.attn.relative_position_bias_table"),
        Rule(f"encoder.{_BIAS}", SHARED_TABLE),
        Rule(f"{LAYER}.attention.output.dense.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
        Rule(f"{LAYER}.lambda_1", "blocks.{i}.gamma_1"),
        Rule(f"{LAYER}.layernorm_after.{{kind}}", "blocks.{i}.norm2.{kind}"),
        Rule(f"{LAYER}.intermediate.dense.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
        Rule(f"{LAYER}.output.dense.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
        Rule(f"{LAYER}.lambda_2", "blocks.{i}.gamma_2"),
        Rule("layernorm.{kind}", "norm.{kind}"),
        Rule("/layernorm.{kind}", "norm.{kind}"),  # masked pre-training's, outside of the network
        Rule("pooler.layernorm.{kind}", "fc_norm.{kind}"),
        Rule("/classifier.{kind}", "head.{kind}"),
    ),
    rewrites=(SHARED_BIASES,),
    drop={
        f"{_SELF}.relative_position_bias.relative_position_index": INDEX,
        "encoder.relative_position_bias.relative_position_index": INDEX,
    },
    aside={
        "embeddings.mask_token": "used in masked pre-training only",
        "/lm_head.{kind}": GUESSES,
    },
    refuse={
        "embeddings.position_embeddings": "positions that are added, which no network with biases of distances has "
        "among timm's registered names",
        **dict.fromkeys(("/decode_head.{rest}", "/auxiliary_head.{rest}"), _SEGMENTS),
    },
    holds={"global_pool": ("avg", "token"), "init_values": (), "use_fc_norm": (True, False), "norm_eps": ()},
    told=pooling_told,
    check=_check,
    config_from=_config_from,
    config_to=_config_to,
    reference=reference,
)

FORMATS = (HF_BEIT,)
