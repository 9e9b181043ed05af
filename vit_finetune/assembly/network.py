"""The network of a run, and the transforms of its pictures, as the configuration describes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.transforms import Transform, build_train_transform
from vit_finetune.models import Backbone, create_model, replace_head
from vit_finetune.tuning import add_lora
from vit_finetune.weights import LoadReport, from_pretrained


def network_options(config: Config) -> dict[str, Any]:
    """Return the fields of the network that the recipe sets."""
    section = config.model
    asked = {
        "img_size": section.img_size,
        "in_chans": section.in_chans,
        "global_pool": section.global_pool,
        "drop_path_rate": section.drop_path_rate,
        "drop_rate": section.drop_rate,
        "pos_drop_rate": section.pos_drop_rate,
        "patch_drop_rate": section.patch_drop_rate,
        "proj_drop_rate": section.proj_drop_rate,
        "attn_drop_rate": section.attn_drop_rate,
    }
    return {key: value for key, value in asked.items() if value is not None} | section.overrides


def build_model(config: Config, splits: Splits) -> tuple[Backbone, LoadReport]:
    """Return the network with its new head, and what happened to every tensor."""
    section, num_classes, overrides = config.model, len(splits.class_names), network_options(config)
    keeps_head = section.head_init == "pretrained"
    init = "zeros" if section.head_init == "pretrained" else section.head_init
    if section.pretrained is not None:
        model, report = from_pretrained(
            section.pretrained,
            name=section.name,
            num_classes=None if keeps_head else num_classes,
            head_init=init,
            pos_embed=section.pos_embed,
            **overrides,
        )
        if keeps_head:
            _check_classes(report, splits)
        return model, report
    name = section.name or ""  # the configuration refuses random weights without a name
    model = replace_head(create_model(name, **overrides), num_classes, init=init)
    chans, size = model.config.in_chans, model.config.img_size
    spec = PreprocessSpec(input_size=(chans, *size), mean=(0.5,) * chans, std=(0.5,) * chans, source="random weights")
    return model, LoadReport(
        loaded=(),
        resampled={},
        dropped={},
        newly_initialized=tuple(model.state_dict()),
        preprocess=spec,
        class_names=None,
        source="no file: random weights, as asked",
        architecture=name,
        notes=(),
    )


def _check_classes(report: LoadReport, splits: Splits) -> None:
    """Refuse to keep a head whose classes are not the data's, in its order."""
    if report.class_names != splits.class_names:
        theirs = ", ".join(report.class_names or ["classes without names"])
        raise RequestError(
            f"model.head_init pretrained: {report.source} has a head for {theirs}, and the data has the classes "
            f"{', '.join(splits.class_names)}; use model.head_init zeros for a new head"
        )


def add_adapters(config: Config, model: Backbone) -> None:
    """Put LoRA's adapters into the network where the recipe trains them."""
    lora = config.tuning.lora
    if lora is not None:
        add_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=lora.target_modules,
            dora=lora.dora,
        )


def preprocess_of(config: Config, model: Backbone, report: LoadReport) -> PreprocessSpec:
    """Return the checkpoint's preprocessing, with what the recipe says laid over it.

    Raises:
        RequestError: corruptions are asked for and the network takes no pictures of colours.
    """
    if config.evaluation.corruptions and model.config.in_chans not in (1, 3):
        raise RequestError(
            f"evaluation.corruptions are for pictures of colours, and the network takes {model.config.in_chans} "
            "channels; leave them out"
        )
    asked = config.data.model_dump(include={"interpolation", "crop_pct", "crop_mode", "mean", "std"}, exclude_none=True)
    spec = report.preprocess.with_size(*model.config.img_size)
    least = max(model.config.img_size)
    if config.data.working_size is not None and config.data.working_size < least:
        raise RequestError(f"data.working_size is {config.data.working_size}, the network takes {least}; give no less")
    left = tuple(name for name in spec.assumed if name not in asked)
    return replace(spec, **asked, assumed=left)


def train_transform_of(config: Config, preprocess: PreprocessSpec, *, as_bytes: bool = False) -> Transform:
    """Return the training transform that the recipe describes; with `as_bytes` it leaves normalising to the device."""
    data = config.data
    return build_train_transform(
        preprocess,
        scale=data.scale,
        ratio=data.ratio,
        hflip=data.hflip,
        vflip=data.vflip,
        color_jitter=data.color_jitter,
        auto_augment=data.auto_augment,
        random_erasing=data.random_erasing,
        resizer=data.resizer,
        as_bytes=as_bytes,
    )
