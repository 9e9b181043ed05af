"""Relatives of ViT in transformers that no plain ViT can hold: known by name, to say why and what to do instead.

Source: transformers 5 `models/dinov3_vit`, `models/beit`, `models/data2vec`, `models/siglip2`. Detected on files that
the library wrote.
"""

from __future__ import annotations

from vit_finetune.weights.rules import Format, Rule


def _refused(
    name: str, *, reason: str, lacking: str, present: tuple[str, ...], dims: dict[str, int] | None = None
) -> Format:
    """Return a format that is recognised, and neither read nor written.

    Args:
        name: of the format.
        reason: why it can't be read, and the way out.
        lacking: what our network has that this one hasn't, for who wants to write it.
        present: its fingerprint, as in `Format`.
        dims: the rest of its fingerprint.
    """
    return Format(
        name=name,
        library="transformers",
        present=present,
        dims=dims or {},
        rules=(Rule("{rest}", "{rest}"),),  # neither way is open: the two fields below close them
        refuse={"{rest}": reason},
        check=lambda config: lacking,  # noqa: ARG005 - one signature for all
    )


HF_DINOV3 = _refused(
    "hf_dinov3",
    reason="this is transformers' DINOv3, whose positions rotate queries and keys, while a plain ViT adds them once. "
    "create_model('vit_base_patch16_dinov3') and its kin are that network: take timm's copy of these weights",
    lacking="positions that are added (its own are rotary)",
    present=("embeddings.patch_embeddings.weight", "embeddings.register_tokens"),
)
HF_BEIT = _refused(
    "hf_beit",
    reason="this is transformers' BEiT (or Data2Vec), whose attention has position biases; no plain ViT does. "
    "create_model('beit_base_patch16_224') and its kin are that network: take timm's copy of these weights",
    lacking="positions that are added (its own are biases of its attention)",
    present=("embeddings.patch_embeddings.projection.weight", "lambda_1|relative_position_bias_table"),
)
HF_SIGLIP2_NAFLEX = _refused(
    "hf_siglip2_naflex",
    reason="this is SigLIP 2 NaFlex, which takes any number of patches and resizes its positions for each picture, "
    "which no plain ViT does. Take one of SigLIP 2's models of a fixed size, such as google/siglip2-base-patch16-224",
    lacking="positions of one size (its own are resized for each picture)",
    present=("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "post_layernorm.weight"),
    dims={"embeddings.patch_embedding.weight": 2},
)

FORMATS = (HF_DINOV3, HF_BEIT, HF_SIGLIP2_NAFLEX)
