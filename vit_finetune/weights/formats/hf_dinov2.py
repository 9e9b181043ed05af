"""DINOv2 as transformers writes it (`Dinov2Model` and its kin, names on disk).

Source: transformers 5 `models/dinov2/modeling_dinov2.py`. Queries, keys and values are separate there and one matrix
here, in that order. `Dinov2ForImageClassification` applies its classifier to the class token joined with the mean
patch, twice our width: the backbone converts, that head has no counterpart.
"""

from __future__ import annotations

from vit_finetune.weights.rules import Format, Rule

_LAYER = "encoder.layer.{i}"
_QKV = tuple(f"{_LAYER}.attention.attention.{part}" for part in ("query", "key", "value"))
_SAME_LAYOUT = {
    f"{_LAYER}.norm1": "norm1",
    f"{_LAYER}.attention.output.dense": "attn.proj",
    f"{_LAYER}.norm2": "norm2",
    f"{_LAYER}.mlp.fc1": "mlp.fc1",
    f"{_LAYER}.mlp.fc2": "mlp.fc2",
    f"{_LAYER}.mlp.weights_in": "mlp.fc1",
    f"{_LAYER}.mlp.weights_out": "mlp.fc2",
}

HF_DINOV2 = Format(
    name="hf_dinov2",
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight"),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias"),
        Rule(tuple(f"{part}.weight" for part in _QKV), "blocks.{i}.attn.qkv.weight", "qkv o i -> (qkv o) i"),
        Rule(tuple(f"{part}.bias" for part in _QKV), "blocks.{i}.attn.qkv.bias", "qkv o -> (qkv o)"),
        *(
            Rule(f"{theirs}.{kind}", f"blocks.{{i}}.{ours}.{kind}")
            for theirs, ours in _SAME_LAYOUT.items()
            for kind in ("weight", "bias")
        ),
        Rule(f"{_LAYER}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
        Rule(f"{_LAYER}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
        Rule("layernorm.weight", "norm.weight"),
        Rule("layernorm.bias", "norm.bias"),
    ),
    present=("embeddings.patch_embeddings.projection.weight", "layer_scale1.lambda1"),
    absent=(".register_tokens",),
    prefixes=("dinov2.", "backbone."),
    drop={
        r"embeddings\.mask_token": "used in pre-training only",
        r"classifier\.(weight|bias)": "a head on class token and mean patch together, which has no counterpart here",
    },
)
