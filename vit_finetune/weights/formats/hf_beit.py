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

import torch

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.rel_pos_vit import RelPosViTConfig
from vit_finetune.weights.formats.hf import LAYER, PATCH_RULE, VIT_ALIASES, config_of, fields_from, reference
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Format, Rule

_SELF = f"{LAYER}.attention.attention"
_BIAS = "relative_position_bias.relative_position_bias_table"
_SHARED = "rel_pos_bias.relative_position_bias_table"
_SEGMENTS = "a head for segmentation, whose network has no final norm; take the classifier that it was made from"


def _expanded(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:  # noqa: ARG001 - one signature for all
    changed = dict(tensors)
    shared = changed.pop(_SHARED, None)
    if shared is None:
        return changed
    for block in [name.removesuffix("norm1.weight") for name in tensors if name.endswith(".norm1.weight")]:
        name = f"{block}attn.relative_position_bias_table"
        own = tensors.get(name)
        changed[name] = shared if own is None else combine(torch.add, [own, shared], "the shared table added")
    return changed


def _told(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - as all
    means = any(name.endswith(("pooler.layernorm.weight", "lm_head.weight")) for name in shapes)
    return {"global_pool": "avg" if means else "token"}


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
        Rule(f"encoder.{_BIAS}", _SHARED),
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
    rewrites=(
        Rewrite(
            words="the position biases that all blocks share were given to each of them",
            read=_expanded,
            write=lambda tensors, config: dict(tensors),  # noqa: ARG005 - equal tables stay one for each block
        ),
    ),
    drop={
        f"{_SELF}.relative_position_bias.relative_position_index": "the place of each distance in the table, a formula",
        "encoder.relative_position_bias.relative_position_index": "the place of each distance in the table, a formula",
    },
    aside={
        "embeddings.mask_token": "used in masked pre-training only",
        "/lm_head.{kind}": "the head of masked pre-training, which guesses visual words",
    },
    refuse={
        "embeddings.position_embeddings": "positions that are added, which no network with biases of distances has "
        "among timm's registered names",
        **dict.fromkeys(("/decode_head.{rest}", "/auxiliary_head.{rest}"), _SEGMENTS),
    },
    holds={"global_pool": ("avg", "token"), "init_values": (), "use_fc_norm": (True, False), "norm_eps": ()},
    told=_told,
    check=_check,
    config_from=_config_from,
    config_to=_config_to,
    reference=reference,
)

FORMATS = (HF_BEIT,)
