"""The simplified ViT of a lecture notebook with `block1` to `block3`: known, to say why it can't be converted.

Source: the notebook, run. It looks like timm's ViT and computes something else.
"""

from __future__ import annotations

from vit_finetune.weights.rules import Format, Rule

_WHY = (
    "this is the notebook ViT with block1 to block3, which computes what no ViT does: proj_q is applied three times, "
    "so that queries, keys and values are one and proj_k and proj_v were never trained; attention runs between the "
    "heads of one token instead of between tokens, and a reshape then mixes heads with tokens, so that most patches "
    "can't reach the result; the second residual adds the block's input instead of the attention's; scores are scaled "
    "by the width instead of a head's; pos_embed is never added. Converted weights would compute something else: train "
    "a ViT of the same size instead, such as create_model('vit_tiny_patch16_224', depth=3)"
)

FORMATS = (
    Format(
        name="block_notebook",
        library="notebook",
        present=("block1.attn.proj_q.weight",),
        rules=(Rule("patch_embed.proj.{kind}", "patch_embed.proj.{kind}"),),
        refuse={"{rest}": _WHY},
        check=lambda config: "attention between tokens (its own is between the heads of one token)",  # noqa: ARG005
    ),
)
