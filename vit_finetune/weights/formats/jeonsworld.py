"""ViT of the repository jeonsworld/ViT-pytorch, a reader of the original JAX weights with layers of its own names.

Source: its `models/modeling.py`; verified against a restatement of it, bitwise both ways. Its GELU is the erf form,
though the JAX weights that it reads were trained with the other.
"""

from __future__ import annotations

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format, Rule

_EMBEDDINGS = "transformer.embeddings"
_LAYER = "transformer.encoder.layer.{i}"


def _check(config: ViTConfig) -> str:
    return "" if config.num_classes else "no head (its classifier always has one; keep the head, or put one in)"


FORMATS = (
    Format(
        name="jeonsworld",
        library="ViT-pytorch",
        present=(f"{_EMBEDDINGS}.patch_embeddings.weight", "transformer.encoder.encoder_norm.weight"),
        rules=(
            Rule(f"{_EMBEDDINGS}.cls_token", "cls_token"),
            Rule(f"{_EMBEDDINGS}.position_embeddings", "pos_embed"),
            Rule(f"{_EMBEDDINGS}.patch_embeddings.{{kind}}", "patch_embed.proj.{kind}"),
            Rule(f"{_LAYER}.attention_norm.{{kind}}", "blocks.{i}.norm1.{kind}"),
            Rule(
                tuple(f"{_LAYER}.attn.{part}.{{kind}}" for part in ("query", "key", "value")),
                "blocks.{i}.attn.qkv.{kind}",
                "qkv d ... -> (qkv d) ...",
            ),
            Rule(f"{_LAYER}.attn.out.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
            Rule(f"{_LAYER}.ffn_norm.{{kind}}", "blocks.{i}.norm2.{kind}"),
            Rule(f"{_LAYER}.ffn.fc1.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
            Rule(f"{_LAYER}.ffn.fc2.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
            Rule("transformer.encoder.encoder_norm.{kind}", "norm.{kind}"),
            Rule("head.{kind}", "head.{kind}"),
        ),
        refuse={
            f"{_EMBEDDINGS}.hybrid_model.{{rest}}": "a ResNet before the patches, which no plain ViT can hold; load "
            "the JAX file of that network with timm's vit_..._r50_... names",
        },
        check=_check,
        file="model.bin",
        pos_embed="bilinear",
    ),
)
