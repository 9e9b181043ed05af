"""What the formats of transformers share: how its configuration says the fields that weights don't tell.

Not a format. `fields_from` and `config_of` are pure and cover what all vision configurations have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.weights.rules import Rule

# transformers' `hidden_act` to ours; the first spelling of each is the one that is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}

# Blocks as transformers 4 and 5 write them to disk, under `encoder.layer.{i}.`, for ViT, DeiT and I-JEPA.
LAYER = "encoder.layer.{i}"
ATTENTION_RULES = (
    Rule(
        tuple(f"{LAYER}.attention.attention.{part}.{{kind}}" for part in ("query", "key", "value")),
        "blocks.{i}.attn.qkv.{kind}",
        "qkv o ... -> (qkv o) ...",
    ),
    Rule(f"{LAYER}.attention.output.dense.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
)
VIT_BLOCK_RULES = (
    Rule(f"{LAYER}.layernorm_before.{{kind}}", "blocks.{i}.norm1.{kind}"),
    *ATTENTION_RULES,
    Rule(f"{LAYER}.layernorm_after.{{kind}}", "blocks.{i}.norm2.{kind}"),
    Rule(f"{LAYER}.intermediate.dense.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule(f"{LAYER}.output.dense.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
)
PATCH_RULE = Rule("embeddings.patch_embeddings.projection.{kind}", "patch_embed.proj.{kind}")

# What transformers 5 calls the same parts in memory, where it renamed modules but kept the names on disk.
ATTENTION_ALIASES = {
    f"{LAYER}.attention.q_proj.{{kind}}": f"{LAYER}.attention.attention.query.{{kind}}",
    f"{LAYER}.attention.k_proj.{{kind}}": f"{LAYER}.attention.attention.key.{{kind}}",
    f"{LAYER}.attention.v_proj.{{kind}}": f"{LAYER}.attention.attention.value.{{kind}}",
    f"{LAYER}.attention.o_proj.{{kind}}": f"{LAYER}.attention.output.dense.{{kind}}",
}
VIT_ALIASES = {
    "layers.{i}.attention.q_proj.{kind}": f"{LAYER}.attention.attention.query.{{kind}}",
    "layers.{i}.attention.k_proj.{kind}": f"{LAYER}.attention.attention.key.{{kind}}",
    "layers.{i}.attention.v_proj.{kind}": f"{LAYER}.attention.attention.value.{{kind}}",
    "layers.{i}.attention.o_proj.{kind}": f"{LAYER}.attention.output.dense.{{kind}}",
    "layers.{i}.mlp.fc1.{kind}": f"{LAYER}.intermediate.dense.{{kind}}",
    "layers.{i}.mlp.fc2.{kind}": f"{LAYER}.output.dense.{{kind}}",
    "layers.{i}.{rest}": f"{LAYER}.{{rest}}",
}


def act_from(name: str) -> str:
    """Return our name of an activation of transformers'.

    Raises:
        NotRepresentable: our network has no such activation.
    """
    if name not in _ACTIVATIONS:
        raise NotRepresentable(f"hidden_act={name!r} is none of {', '.join(_ACTIVATIONS)}: our network has no such one")
    return _ACTIVATIONS[name]


def act_to(name: str) -> str:
    """Return transformers' name of an activation of ours."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == name)


def fields_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a network's config that a vision configuration of transformers says.

    Args:
        config: the parsed `config.json`, or the part of it that is about the vision tower.
    """
    found: dict[str, Any] = {}
    if "num_attention_heads" in config:
        found["num_heads"] = config["num_attention_heads"]
    if "layer_norm_eps" in config:
        found["norm_eps"] = float(config["layer_norm_eps"])
    if "hidden_act" in config:
        found["act_layer"] = act_from(config["hidden_act"])
    for theirs, ours in (("image_size", "img_size"), ("patch_size", "patch_size")):
        if (value := config.get(theirs)) is not None:
            found[ours] = (value, value) if isinstance(value, int) else tuple(value)
    return found


def config_of(config: NetworkConfig, *, model_type: str, architecture: str) -> dict[str, Any]:
    """Return what all vision configurations of transformers say about a network.

    Args:
        config: the network.
        model_type: transformers' key of the family.
        architecture: the class that loads the weights.
    """
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "hidden_act": act_to(getattr(config, "act_layer", "gelu")),
        "layer_norm_eps": config.norm_eps,
        "image_size": _side(config.img_size),
        "patch_size": _side(config.patch_size),
        "num_channels": config.in_chans,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def opened(folder: Path) -> Any:
    """Return the model of a folder, as the class that its `config.json` names, in transformers."""
    import transformers

    from vit_finetune.weights.readers import read_json

    name = read_json(folder / "config.json")["architectures"][0]
    model = getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32
    )
    return model.eval()


def reference(folder: Path, config: NetworkConfig) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of a folder's model in transformers."""
    model = opened(folder)
    if config.num_classes:
        return lambda images: model(pixel_values=images).logits
    # A head of the library's own kind may sit on the network that is compared. (`base_model` of a bare network is not
    # always itself: DINOv3's is its encoder.)
    network = model.base_model if hasattr(model, "classifier") else model
    return lambda images: network(pixel_values=images).last_hidden_state


def _side(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
