"""A fitted readout as a model folder: timm's, where timm's layout computes the same; else our own, said plainly.

timm's head is one linear layer on one vector. It holds a linear readout of that vector, and an attentive probe on all
tokens of the last block with as many queries as the network has heads: that is timm's attention pooling with an MLP
that adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.export.folder import WEIGHTS_NAME, export_model_folder, timm_model_args
from vit_finetune.models import (
    AttentiveReadout,
    Backbone,
    FeatureLayout,
    LinearReadout,
    Readout,
    VisionTransformer,
    ViTConfig,
    build_model,
    replace_head,
)
from vit_finetune.models.layers import AttentionPool
from vit_finetune.weights.readout_folder import READOUT_CONFIG, readout_config


@dataclass(frozen=True)
class Exported:
    """How a readout was written.

    Attributes:
        kind: "timm" or "own".
        note: who opens the folder, for people.
    """

    kind: str
    note: str


def export_readout(
    backbone: Backbone,
    readout: Readout,
    layout: FeatureLayout,
    dst: str | Path,
    *,
    preprocess: PreprocessSpec,
    class_names: Sequence[str],
    temperature: float | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a backbone with its readout as a model folder, whole or not at all.

    Args:
        backbone: the frozen network, on the CPU; it is not changed.
        readout: fitted on its features.
        layout: of those features.
        dst: the folder to make.
        preprocess: the evaluation transform.
        class_names: K names, in order.
        temperature: what the logits are divided by for calibrated probabilities.
        overwrite: replace an older model folder at `dst`.

    Returns:
        Which of the two it became.

    Raises:
        RequestError: `dst` is there and not to be replaced.
    """
    dst = Path(dst)
    plain = as_plain(backbone, readout, layout, num_classes=len(class_names))
    if plain is not None:
        export = partial(export_model_folder, plain, dst, preprocess=preprocess, class_names=class_names)
        export(temperature=temperature, overwrite=overwrite)
        return Exported("timm", "timm and transformers open this folder")
    if dst.exists() and not overwrite:
        raise RequestError(f"{dst} exists already; choose another place or pass overwrite=True")
    tensors = {f"backbone.{name}": value for name, value in backbone.state_dict().items() if not _is_head(name)}
    tensors |= {f"readout.{name}": value for name, value in readout.state_dict().items()}
    with atomic_folder(dst, replace=overwrite) as folder:
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(whole, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        config = readout_config(backbone, readout, layout, preprocess=preprocess, class_names=class_names)
        write_json(folder / READOUT_CONFIG, {**config, "temperature": temperature})
    return Exported(
        "own", "timm has no layout for this readout: vit-finetune opens this folder, and readout.onnx=true adds ONNX"
    )


def as_plain(backbone: Backbone, readout: Readout, layout: FeatureLayout, *, num_classes: int) -> Backbone | None:
    """Return a plain network that computes what a readout does, or None where there is none.

    Args:
        backbone: the frozen network; it is not changed, and shares its tensors with what is returned.
        readout: fitted on its features.
        layout: of those features.
        num_classes: K.
    """
    if isinstance(readout, LinearReadout) and _reads_the_embedding(backbone, readout):
        plain = _copy(backbone, {})
    elif isinstance(readout, AttentiveReadout) and _is_attention_pooling(backbone, readout, layout):
        plain = _copy(backbone, {"global_pool": "map", "fc_norm": False})
        _fill_attention_pool(plain, readout)
    else:
        return None
    replace_head(plain, num_classes)
    assert isinstance(plain.head, nn.Linear)
    with torch.no_grad():
        plain.head.weight.copy_(readout.linear.weight)
        plain.head.bias.copy_(readout.linear.bias)
    return plain.eval()


def _reads_the_embedding(backbone: Backbone, readout: Readout) -> bool:
    """Say whether a readout sees what the network's own head sees: so called, or the last class token as it is."""
    last, config = len(backbone.blocks) - 1, backbone.config
    if readout.inputs == (("embedding", -1),):
        return True
    pools_token = isinstance(config, ViTConfig) and config.global_pool == "token" and not config.distilled
    return readout.inputs == (("cls", last),) and pools_token and not isinstance(backbone.norm, nn.Identity)


def _is_attention_pooling(backbone: Backbone, readout: AttentiveReadout, layout: FeatureLayout) -> bool:
    """Say whether timm's attention pooling can compute an attentive probe."""
    config = backbone.config
    if not isinstance(backbone, VisionTransformer) or backbone.name is None or not isinstance(config, ViTConfig):
        return False
    if config.distilled or config.pool_include_prefix or not isinstance(backbone.norm, nn.LayerNorm):
        return False
    try:
        timm_model_args(config.updated({"global_pool": "map", "fc_norm": False}), backbone.name)
    except RequestError:
        return False
    whole_grid = layout.cells(backbone) == config.grid_size
    last = (("grid", config.depth - 1),)
    return whole_grid and readout.inputs == last and readout.num_queries == config.num_heads


def _copy(backbone: Backbone, changes: dict[str, object]) -> Backbone:
    """Return a network of its own around the same tensors, with another pooling where asked for, without a head."""
    config = backbone.config.updated({**changes, "num_classes": 0})
    with torch.device("meta"):
        plain = build_model(config)
    plain.name = backbone.name
    tensors = {name: value for name, value in backbone.state_dict().items() if not _is_head(name)}
    new = {name: torch.zeros(value.shape) for name, value in plain.state_dict().items() if name not in tensors}
    kept = {name: value for name, value in tensors.items() if name in plain.state_dict()}
    plain.load_state_dict({**kept, **new}, assign=True)
    return plain


def _fill_attention_pool(plain: Backbone, readout: AttentiveReadout) -> None:
    """Write a probe's queries and values as attention pooling whose only query picks one key per head.

    The probe saw tokens normalised without weights, so the final norm gets none.
    Head m's key has the score of query m as its first coordinate and nothing else; the latent query has ones there.
    """
    pool = plain.attn_pool
    assert isinstance(pool, AttentionPool)
    width, heads = readout.dim, readout.num_queries
    first = torch.arange(heads) * (width // heads)
    assert isinstance(plain.norm, nn.LayerNorm)
    plain.norm.weight = nn.Parameter(torch.ones(width))
    plain.norm.bias = nn.Parameter(torch.zeros(width))
    with torch.no_grad():
        pool.q.bias[first] = 1.0
        # Scores are divided by sqrt(width / heads) there and by sqrt(width) in the probe.
        pool.kv.weight[first] = readout.queries / heads**0.5
        pool.kv.weight[width:] = readout.values.weight
        pool.kv.bias[width:] = readout.values.bias
        pool.proj.weight.copy_(torch.eye(width))
        if isinstance(pool.norm, nn.LayerNorm):
            pool.norm.weight.fill_(1.0)


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "head_dist."))
