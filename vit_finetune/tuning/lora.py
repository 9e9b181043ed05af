"""Low-rank adapters: put into a network, saved as peft saves them, and merged into plain weights.

peft replaces a linear layer by one of its own that holds the layer as `base_layer`. It is asked to do that inside our
network instead of wrapping it, so every other name stays timm's and `parameter_depth` still tells the depths apart.

Sources: LoRA (arXiv 2106.09685), DoRA (2402.09353); peft's `inject_adapter_in_model`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models import Backbone

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ADAPTER = "default"  # peft's name of the adapter of a network that has one
_PEFT_PREFIX = "base_model.model."  # how peft's files name the network inside its wrapper


def require_peft() -> None:
    """Say which extra is missing.

    Raises:
        RequestError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise RequestError("tuning.mode lora needs peft; install it with: pip install 'vit-finetune[lora]'")


def add_lora(
    model: Backbone,
    *,
    rank: int = 16,
    alpha: int = 16,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    dora: bool = False,
) -> None:
    """Put an adapter beside linear layers of the blocks; the output is the same until it has learned something.

    Args:
        model: the network; changed. Draws the adapters' start from torch's generator.
        rank: of each adapter, at least 1.
        alpha: an adapter's output is multiplied by alpha / rank.
        dropout: share of an adapter's inputs dropped in training, in [0, 1).
        target_modules: names of linear layers in the blocks, in full or the last parts ("qkv", "mlp.fc1"); None takes
            all of them.
        dora: learn the length of each weight column apart from its direction.

    Raises:
        RequestError: peft is not installed, the network has adapters already, or a name matches no linear layer.
    """
    require_peft()
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise RequestError("this network has adapters already; merge_lora(model) first")
    targets = _targets(model, target_modules)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, use_dora=dora)
    inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    _leave_inputs_alone(model)


def _leave_inputs_alone(model: Backbone) -> None:
    """Let adapters of their layer's type take what the layer takes: under autocast peft would copy it to 32 bits."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            dtypes = {parameter.dtype for parameter in layer.parameters()}
            layer.cast_input_dtype_enabled = len(dtypes) > 1


def _targets(model: Backbone, wanted: Sequence[str] | None) -> list[str]:
    """Return the full names of the linear layers that get an adapter.

    Raises:
        RequestError: a name matches none.
    """
    layers = [f"blocks.{name}" for name, layer in model.blocks.named_modules() if isinstance(layer, nn.Linear)]
    if wanted is None:
        return layers
    for name in wanted:
        if not any(_is_called(layer, name) for layer in layers):
            known = list(dict.fromkeys(layer.split(".", 2)[2] for layer in layers))
            raise RequestError(
                f"tuning.lora.target_modules names {name!r}, which is no linear layer of the blocks"
                f"{did_you_mean(name, known)}; they have {', '.join(known)}"
            )
    return [layer for layer in layers if any(_is_called(layer, name) for name in wanted)]


def _is_called(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def save_adapter(model: Backbone, folder: Path, *, base: str) -> Path:
    """Write the adapters and the head as peft's folder: `adapter_config.json` and `adapter_model.safetensors`.

    `PeftModel.from_pretrained(network, folder)` puts them back onto the network they were trained on: that of `base`,
    at the same size and with a head of as many classes.

    Args:
        model: the network with adapters; not changed.
        folder: where to write; an older folder there is replaced.
        base: where the network's own weights came from.

    Returns:
        `folder`.

    Raises:
        RequestError: the network has no adapters.
    """
    configs: Any = getattr(model, "peft_config", None)
    if configs is None:
        raise RequestError("this network has no adapters to save; add_lora(model) puts them in")
    from peft import get_peft_model_state_dict

    config = replace(configs[_ADAPTER], inference_mode=True, base_model_name_or_path=base, modules_to_save=["head"])
    tensors = get_peft_model_state_dict(model, adapter_name=_ADAPTER)
    tensors |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    whole = {_PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_folder(folder, replace=True) as temporary:
        config.save_pretrained(str(temporary))
        plain = json.loads((temporary / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        plain["target_modules"].sort()  # a set in peft: its order would be another one in every process
        write_json(temporary / ADAPTER_CONFIG, plain)
        save_file(whole, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return folder


def merge_lora(model: Backbone) -> None:
    """Add the adapters to the weights they stand beside and take them out: the network is a plain one again.

    Args:
        model: the network; changed. Without adapters nothing happens.

    Raises:
        WorkError: a merged weight is not finite.
    """
    if getattr(model, "peft_config", None) is None:
        return
    from peft.tuners.lora import LoraLayer

    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]:
        layer.merge(safe_merge=True)  # into new memory: a mapped file is not written to
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    del model.peft_config
