"""timm's words for a network: the registered name it comes closest to, and the arguments in which it differs.

Source: timm 1.0 `models/_hub.py` (`_parse_model_cfg`) and the constructors that it passes `model_args` to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import list_models, variant_config
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import structure

# A network that differs from its registered name in one of these has no description in timm's JSON.
NOT_IN_JSON = {
    "distilled": "timm ties it to the name",
    "embed_norm": "timm takes a Python class for it",
    "patch_norm_in": "no plain ViT of timm's has such a norm",
    "attn_head_dim": "timm's plain ViT divides its width among the heads",
    "mlp_layer": "timm takes a Python class for it",
    "attn_layer": "timm takes a Python class for it",
    "block_fn": "timm takes a Python class for it",
    "norm_eps": "timm takes it inside a Python function only",
}
_SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "in_chans", "img_size")


def hub_config(
    config: NetworkConfig,
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    preprocess: PreprocessSpec,
    class_names: Sequence[str] | None,
    tag: str,
) -> dict[str, Any]:
    """Return the content of the `config.json` that timm opens.

    Args:
        config: the network.
        architecture: timm's name.
        model_args: the arguments in which the network differs from that name.
        preprocess: the evaluation transform.
        class_names: one per row of the head; None where they have no names.
        tag: where the weights come from, in a word.
    """
    is_distilled = getattr(config, "distilled", False)
    return {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        "global_pool": config.global_pool,
        **({} if class_names is None else {"label_names": list(class_names)}),
        "model_args": dict(model_args),
        "pretrained_cfg": {
            "tag": tag,
            "custom_load": False,
            **preprocess.to_mapping(),
            "fixed_input_size": not config.dynamic_img_size,
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if is_distilled else "head",
        },
    }


def closest_name(config: NetworkConfig, preferred: str | None = None) -> tuple[str, dict[str, Any], list[str]]:
    """Return the registered name that needs the fewest arguments to become a network.

    Args:
        config: the network.
        preferred: the name that its source gives; taken where timm can say the differences to it.

    Returns:
        The name, timm's `model_args` (with `img_size` always, without the number of classes), and the fields that
        timm's JSON can't say.
    """
    family = type(config)
    kin = {name: other for name in list_models() if type(other := variant_config(name)) is family}

    keys = (*_SIZES, *structure(family))

    def differing(name: str) -> list[str]:
        return [key for key in keys if _acts(config, key) != _acts(kin[name], key)]

    def distance(name: str) -> tuple[int, int, bool, str]:
        fields = differing(name)
        return sum(key in NOT_IN_JSON for key in fields), len(fields), name != preferred, name

    name = min(kin, key=distance)
    values = config.to_mapping()
    fields = differing(name)
    args = {key: values[key] for key in dict.fromkeys(["img_size", *fields]) if key not in NOT_IN_JSON}
    built = variant_config(name).updated(args)
    if isinstance(built, ViTConfig) and _acts(built, "fc_norm") != _acts(config, "fc_norm"):
        args["fc_norm"] = _acts(config, "fc_norm")  # the pooling among the arguments would move the norm
    return name, args, [key for key in fields if key in NOT_IN_JSON]


def _acts(config: NetworkConfig, key: str) -> Any:
    """Return a field as the network acts on it, as far as it decides which network it is."""
    if key == "mlp_ratio":
        return getattr(config, "hidden_width", int(config.embed_dim * config.mlp_ratio))
    return config.acting(key) is not None if key == "init_values" else config.acting(key)
