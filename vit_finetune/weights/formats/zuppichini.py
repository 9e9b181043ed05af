"""The ViT of a widely read notebook (F. S. Zuppichini, "Implementing Vi(sual)T(transformer) in PyTorch").

Source: its repository (github.com/FrancescoSaverioZuppichini/ViT), every revision of the notebook, the README and
`main.py`; verified against restatements of them. It pools over all tokens and normalises after that.

Attention came in several forms. The last one packs queries, keys and values head by head, doesn't scale the scores and
divides by the root of the *width* after the softmax. Folding that into queries and values gives the same function, to
one rounding. Before, queries, keys and values were layers of their own, and three revisions scale in three ways without
a trace in the weights: before the softmax by the root of a head's width (the notebook since its last fix), or after it,
by the root of a head's width or of the whole width (`main.py`). Such files fit three formats, so that one has to be
named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format, Rule

_ATTENTION = "1.{i}.0.fn.1"


def _head_width(fields: Mapping[str, Any]) -> float:
    return float(fields["embed_dim"] // fields["num_heads"])


def _after_by_width(fields: Mapping[str, Any]) -> tuple[float, float, float]:
    """No scale before the softmax, the root of the width after it."""
    return _head_width(fields) ** 0.5, 1.0, float(fields["embed_dim"]) ** -0.5


def _after_by_head(fields: Mapping[str, Any]) -> tuple[float, float, float]:
    """No scale before the softmax, the root of a head's width after it."""
    return _head_width(fields) ** 0.5, 1.0, _head_width(fields) ** -0.5


def _told(shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any]) -> dict[str, Any]:
    del fields
    token = shapes.get("0.cls_token") or shapes.get("0.positions")
    return {"embed_dim": token[-1]} if token else {}


def _check(config: ViTConfig) -> str:
    if config.num_classes == 0:
        return "no head (its classifier always has one; keep the head, or put one in)"
    if config.img_size[0] != config.img_size[1] or config.patch_size[0] != config.patch_size[1]:
        return f"img_size={config.img_size} with patch_size={config.patch_size} (it holds squares)"
    return ""


def _format(name: str, attention: tuple[Rule, ...], mark: str) -> Format:
    return Format(
        name=name,
        library="notebook",
        present=("0.cls_token", "0.positions", mark),
        rules=(
            Rule("0.cls_token", "cls_token"),
            Rule("0.positions", "pos_embed", "n d -> 1 n d"),
            Rule("0.projection.0.{kind}", "patch_embed.proj.{kind}"),
            Rule("1.{i}.0.fn.0.{kind}", "blocks.{i}.norm1.{kind}"),
            *attention,
            Rule(f"{_ATTENTION}.projection.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
            Rule("1.{i}.1.fn.0.{kind}", "blocks.{i}.norm2.{kind}"),
            Rule("1.{i}.1.fn.1.0.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
            Rule("1.{i}.1.fn.1.3.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
            Rule("2.1.{kind}", "fc_norm.{kind}"),
            Rule("2.2.{kind}", "head.{kind}"),
        ),
        refuse={
            "0.projection.1.{kind}": "a linear layer on flat patches, of an earlier cell of the notebook; put its "
            "weight in as 0.projection.0.weight, rearranged from (rows columns channels) to a convolution's",
        },
        holds={"norm_eps": (1e-5,), "global_pool": ("avg",), "fc_norm": (True,), "pool_include_prefix": (True,)},
        told=_told,
        check=_check,
        file="model.pt",
    )


def _separate(scale: Callable[[Mapping[str, Any]], tuple[float, ...]] | None) -> tuple[Rule, ...]:
    layers = tuple(f"{_ATTENTION}.{part}.{{kind}}" for part in ("queries", "keys", "values"))
    return (Rule(layers, "blocks.{i}.attn.qkv.{kind}", "qkv d ... -> (qkv d) ...", scale=scale),)


FORMATS = (
    _format(
        "zuppichini",
        (
            Rule(
                f"{_ATTENTION}.qkv.{{kind}}",
                "blocks.{i}.attn.qkv.{kind}",
                "(nh hd qkv) ... -> (qkv nh hd) ...",
                scale=_after_by_width,
            ),
        ),
        "0.fn.1.qkv.weight",
    ),
    _format("zuppichini_separate", _separate(None), "0.fn.1.queries.weight"),
    _format("zuppichini_separate_scaled_after", _separate(_after_by_head), "0.fn.1.queries.weight"),
    _format("zuppichini_separate_scaled_by_width", _separate(_after_by_width), "0.fn.1.queries.weight"),
)
