"""BEiT and BEiT v2 as Microsoft released them: timm's names, with tables of indices that are formulas.

A file of masked pre-training has one table of position biases for all blocks, which timm's registered networks have one
by one: each gets a copy, which is the same function. Written are fine-tuned networks, without the indices, which the
repository's own loading code makes itself.

Source: microsoft/unilm `beit/modeling_finetune.py`, `beit/modeling_pretrain.py`, `beit/utils.py`. Verified against
timm's reader of these files. Epsilon is 1e-6 in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vit_finetune.models.rel_pos_vit import RelPosViTConfig
from vit_finetune.weights.formats.timm import KIN
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Format, Rule

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
INDEX = "the place of each distance in the table, which is a formula"
GUESSES = "the head of masked pre-training, which guesses visual words"
_OWN = (".mask_token", ".gamma_1", ".q_bias", ".relative_position_bias_table")


def pooling_told(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Return the pooling that names tell: the mean has its own norm, and is what pre-training leads to.

    Args:
        shapes: of the file's tensors.
        known: not read; one signature for all formats.
    """
    of_means = ("pooler.layernorm.weight", "fc_norm.weight", "lm_head.weight")
    return {"global_pool": "avg" if any(name.endswith(of_means) for name in shapes) else "token"}


def _expanded(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:  # noqa: ARG001 - one signature for all
    changed = dict(tensors)
    shared = changed.pop(SHARED_TABLE, None)
    if shared is None:
        return changed
    for block in [name.removesuffix("norm1.weight") for name in tensors if name.endswith(".norm1.weight")]:
        name = f"{block}attn.relative_position_bias_table"
        own = tensors.get(name)
        changed[name] = shared if own is None else combine(torch.add, [own, shared], "the shared table added")
    return changed


SHARED_BIASES = Rewrite(
    words="the position biases that all blocks share were given to each of them",
    read=_expanded,
    write=lambda tensors, config: dict(tensors),  # noqa: ARG005 - equal tables stay one for each block
)

_SAME = (
    *("cls_token", "patch_embed.proj.{kind}", "norm.{kind}", "fc_norm.{kind}", "head.{kind}"),
    *(f"blocks.{{i}}.{part}.{{kind}}" for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    *(f"blocks.{{i}}.attn.{part}" for part in ("qkv.weight", "q_bias", "v_bias", "relative_position_bias_table")),
    *("blocks.{i}.gamma_1", "blocks.{i}.gamma_2", SHARED_TABLE),
)

MICROSOFT_BEIT = Format(
    name="microsoft_beit",
    library="microsoft/unilm",
    families=(RelPosViTConfig,),
    present=("patch_embed.proj.weight", "cls_token", "relative_position_index"),
    absent=(*(mark for mark in KIN if mark not in _OWN), ".layers.0."),
    rules=tuple(Rule(name, name) for name in _SAME),
    rewrites=(SHARED_BIASES,),
    drop={"blocks.{i}.attn.relative_position_index": INDEX, "rel_pos_bias.relative_position_index": INDEX},
    aside={"mask_token": "used in masked pre-training only", "lm_head.{kind}": GUESSES},
    refuse={"pos_embed": "positions that are added, which no network with biases of distances has among timm's names"},
    holds={"global_pool": ("avg", "token"), "init_values": (), "use_fc_norm": (True, False), "norm_eps": (1e-6,)},
    told=pooling_told,
    file="model.pth",
    wrapper="model",
)

FORMATS = (MICROSOFT_BEIT,)
