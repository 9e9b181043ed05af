"""SigLIP 2 NaFlex of transformers, which no network here can hold: known by name, to say why and what to do instead.

Source: transformers 5 `models/siglip2`. Detected on files that the library wrote.
"""

from __future__ import annotations

from vit_finetune.weights.rules import Format, Rule

HF_SIGLIP2_NAFLEX = Format(
    name="hf_siglip2_naflex",
    library="transformers",
    present=("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "post_layernorm.weight"),
    dims={"embeddings.patch_embedding.weight": 2},
    rules=(Rule("{rest}", "{rest}"),),  # neither way is open: the two fields below close them
    refuse={
        "{rest}": "this is SigLIP 2 NaFlex, which takes any number of patches and resizes its positions for each "
        "picture, which no plain ViT does. Take one of SigLIP 2's models of a fixed size, such as "
        "google/siglip2-base-patch16-224"
    },
    check=lambda config: "positions of one size (its own are resized for each picture)",  # noqa: ARG005 - as all
)

FORMATS = (HF_SIGLIP2_NAFLEX,)
