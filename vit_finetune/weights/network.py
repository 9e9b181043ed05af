"""Which network planned tensors are of, and whether they are all of it, name by name and shape by shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.rel_pos_vit import RelPosViTConfig
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.models.variants import build_model
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.lazy import Lazy, Plan
from vit_finetune.weights.rules import Format, fill, template, two_sides

# What leaves no trace in names and shapes, with values that change neither.
_TRACELESS: dict[type[NetworkConfig], dict[str, Any]] = {
    ViTConfig: {"num_heads": 1, "norm_eps": 1e-6, "act_layer": "gelu"},
    RopeViTConfig: {"num_heads": 1, "norm_eps": 1e-6, "img_size": (224, 224), "use_rot_pos_emb": False},
    RelPosViTConfig: {"norm_eps": 1e-6},
}
_ESSENTIAL: dict[type[NetworkConfig], tuple[str, ...]] = {ViTConfig: ("patch_embed.proj.weight", "pos_embed")}
_LISTED = 8


def network_of(plan: Plan, layout: Format, *, stated: NetworkConfig | None, names_only: bool = False) -> NetworkConfig:
    """Return the network that tensors under our names are of, after checking that they are all of it.

    Args:
        plan: of reading the file.
        layout: the file's format, for messages in its words.
        stated: the network as the source names it; None reads it off names, shapes and the plan's fields.
        names_only: only names and shapes matter for what follows, so what leaves no trace in them isn't asked for.

    Raises:
        RequestError: a tensor is missing, left over or of another shape, or a field is needed that nothing tells.
    """
    head = plan.tensors.get("head.weight")
    classes = head.shape[0] if head and head.shape else 0
    config = (
        stated.updated({"num_classes": classes})
        if stated
        else _told(plan, layout, names_only=names_only).updated({"num_classes": classes})
    )
    with torch.device("meta"):
        wanted = build_model(config).state_dict()
    _compare(plan.tensors, {name: tuple(value.shape) for name, value in wanted.items()}, plan, layout)
    return config


def traceless(family: type[NetworkConfig]) -> dict[str, Any]:
    """Return fields that names and shapes don't tell, with values that change neither."""
    return dict(_TRACELESS[family])


def _told(plan: Plan, layout: Format, *, names_only: bool) -> NetworkConfig:
    _refuse_lesser_first_block(plan, layout)
    family = layout.family(plan.tensors)
    known = {**(traceless(family) if names_only else {}), **plan.fields}
    if names_only and "cls_token" in plan.tensors and not {"fc_norm.weight", "attn_pool.latent"} & plan.tensors.keys():
        known.setdefault("global_pool", "token")
    known.pop("num_classes", None)
    if missing := [name for name in _ESSENTIAL.get(family, ()) if name not in plan.tensors]:
        raise RequestError(
            f"the {layout.name} tensors lack {', '.join(_in_their_words(n, plan, layout) for n in missing)}"
        )
    try:
        return family.from_state_dict({name: value.meta for name, value in plan.tensors.items()}, known=known)
    except RequestError:
        raise
    except KeyError as error:
        name = _in_their_words(f"blocks.0.{error.args[0]}", plan, layout)
        raise RequestError(f"the {layout.name} tensors lack {name}") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise RequestError(f"the {layout.name} tensors have shapes that no network has ({error})") from error


def _refuse_lesser_first_block(plan: Plan, layout: Format) -> None:
    """Refuse a first block without what another has: blocks are read off it, and the others would seem too much."""
    parts = [name.split(".", 2) for name in plan.tensors if name.startswith("blocks.")]
    lacking = {
        first: ".".join(part) for part in parts if (first := ".".join(["blocks", "0", *part[2:]])) not in plan.tensors
    }
    if lacking:
        told = [
            f"{_in_their_words(first, plan, layout)} beside {_in_their_words(other, plan, layout)}"
            for first, other in lacking.items()
        ]
        more = f" and {len(told) - _LISTED} more" if len(told) > _LISTED else ""
        raise RequestError(f"the {layout.name} tensors lack {', '.join(told[:_LISTED])}{more}: blocks have equal names")


def _compare(tensors: Mapping[str, Lazy], wanted: Mapping[str, tuple[int, ...]], plan: Plan, layout: Format) -> None:
    problems = []
    if tensors.keys() != wanted.keys():
        missing = [_in_their_words(name, plan, layout) for name in wanted.keys() - tensors.keys()]
        extra = [", ".join(tensors[name].sources) or name for name in tensors.keys() - wanted.keys()]
        problems.append(two_sides(extra, missing, "more than the network has", "missing"))
    shapes = [
        f"{', '.join(tensors[name].sources) or name} gives {name} the shape {list(tensors[name].shape)} instead of "
        f"{list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if shapes:
        more = f" and {len(shapes) - _LISTED} more" if len(shapes) > _LISTED else ""
        problems.append(f"{len(shapes)} of another shape: {', '.join(shapes[:_LISTED])}{more}")
    kinds = [
        f"{', '.join(value.sources)} ({str(value.meta.dtype).removeprefix('torch.')})"
        for value in tensors.values()
        if not value.meta.is_floating_point()
    ]
    if kinds:
        problems.append(f"{len(kinds)} not of a floating-point type: {', '.join(kinds[:_LISTED])}")
    if problems:
        raise RequestError(f"the {layout.name} tensors are not one whole network: {'; '.join(problems)}")


def _in_their_words(name: str, plan: Plan, layout: Format) -> str:
    """Return what the file would have called a tensor of ours: as its kin there are spelt, else by the first rule."""
    spellings = [
        (rule.sources, match.groupdict())
        for rule in layout.rules
        for target in rule.targets
        if (match := template(target).fullmatch(name))
    ]
    if not spellings:
        return name
    has_kin = (
        found
        for found in spellings
        if any(template(text).fullmatch(n) for text in found[0] if text for n in plan.names)
    )
    sources, values = next(has_kin, spellings[0])
    texts = [fill(text, values) for text in sources if text is not None]
    return ", ".join(plan.names.get(text, text).removeprefix("/") for text in texts)


def refuse_not_finite(name: str, value: torch.Tensor) -> None:
    """Refuse NaN and infinity, which no conversion mends and every library loads.

    Args:
        name: of the tensor, for the error.
        value: its values.

    Raises:
        RequestError: one of them is not finite.
    """
    # One pass without memory: a sum that is finite has finite terms. Else look closer, as large terms overflow too.
    if not torch.isfinite(value.sum()) and (bad := int((~torch.isfinite(value)).sum())):
        raise RequestError(f"{name} holds {bad} values that are NaN or infinite; the file it comes from is damaged")
