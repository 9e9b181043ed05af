"""The head swap of the ViT paper: whatever was on top goes, one linear layer takes its place.

The backbone is not touched; attention pooling and `fc_norm` belong to it.

Source: ViT (arXiv 2010.11929), section 3.2: a zero-initialised D x K layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models.backbone import Backbone

HeadInit = Literal["zeros", "trunc_normal"] | float
AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


def replace_head(
    model: AnyBackbone,
    num_classes: int,
    *,
    init: HeadInit = "zeros",
    class_names: Sequence[str] | None = None,
    previous: Sequence[str] | None = None,
) -> AnyBackbone:
    """Put a new linear layer of K classes on a model, in place.

    A distilled model keeps its distillation token and loses its second head: the new layer reads the mean of class and
    distillation token.

    Args:
        model: the network; changed.
        num_classes: K, at least 1.
        init: "zeros" (the first loss is then ln K), "trunc_normal" (std 0.02), or the std of a truncated normal.
        class_names: names of the K classes in order; needed with `previous`.
        previous: names of the old head's classes in order: classes known by name (case and separators do not matter)
            keep their rows, those of two heads averaged; the others start as `init` says.

    Returns:
        The same model. Device and dtype are kept; `config` and `num_classes` say K.

    Raises:
        RequestError: K is below 1 or disagrees with the names, names are ambiguous, or the old head doesn't fit
            `previous`.
    """
    _check_request(num_classes, class_names=class_names, init=init)
    like = model.patch_embed.proj.weight
    head = nn.Linear(model.embed_dim, num_classes, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        _initialise(head, init)
        if previous is not None:
            _copy_rows(model, head, class_names=class_names, previous=previous)
    model.head, model.head_dist = head.train(model.training), None
    model.num_classes = num_classes
    model.config = model.config.updated({"num_classes": num_classes})
    return model


def _check_request(num_classes: int, *, class_names: Sequence[str] | None, init: HeadInit) -> None:
    """Refuse a head that cannot be made.

    Raises:
        RequestError: an argument is outside of what `replace_head` allows.
    """
    if num_classes < 1:
        raise RequestError(f"num_classes={num_classes}: a head needs at least 1 class")
    if class_names is not None and len(class_names) != num_classes:
        raise RequestError(f"num_classes={num_classes}, but {len(class_names)} class names were given; make them agree")
    number = isinstance(init, int | float) and not isinstance(init, bool)
    if not (init in ("zeros", "trunc_normal") or (number and float(init) > 0)):
        raise RequestError(f"init={init!r} is not 'zeros', 'trunc_normal' or a standard deviation above 0")


def _initialise(head: nn.Linear, init: HeadInit) -> None:
    """Set a head's starting values."""
    nn.init.zeros_(head.bias)
    if init == "zeros":
        nn.init.zeros_(head.weight)
    else:
        nn.init.trunc_normal_(head.weight, std=0.02 if init == "trunc_normal" else float(init))


def _copy_rows(model: Backbone, head: nn.Linear, *, class_names: Sequence[str] | None, previous: Sequence[str]) -> None:
    """Copy the rows of classes that both heads know by name.

    Raises:
        RequestError: names are missing or ambiguous, or the old head doesn't have one row per name.
    """
    if class_names is None:
        raise RequestError("previous= needs class_names=: rows are found by name")
    weight, bias = _old_rows(model, expected=len(previous))
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(previous):
        rows.setdefault(_plain(name), []).append(row)
    if len({_plain(name) for name in class_names}) < len(class_names):
        raise RequestError("class_names holds two names that differ at most in case and separators; rename one")
    for new_row, name in enumerate(class_names):
        found = rows.get(_plain(name), [])
        if len(found) > 1:
            raise RequestError(
                f"class {name!r} fits rows {found} of the previous head; rename it or leave previous= out"
            )
        if found:
            head.weight[new_row], head.bias[new_row] = weight[found[0]], bias[found[0]]


def _old_rows(model: Backbone, *, expected: int) -> tuple[Tensor, Tensor]:
    """Return weight [K, D] and bias [K] of the present head, the mean of both for a distilled model.

    Raises:
        RequestError: there is no linear head, or it has another number of rows.
    """
    heads = [head for head in (model.head, model.head_dist) if isinstance(head, nn.Linear)]
    if not heads or heads[0].out_features != expected:
        got = f"one with {heads[0].out_features} classes" if heads else "none"
        raise RequestError(f"previous= names {expected} classes, but the model's linear head is {got}")
    return (
        torch.stack([head.weight for head in heads]).mean(dim=0),
        torch.stack([head.bias for head in heads]).mean(dim=0),
    )


def _plain(name: str) -> str:
    """Return a name without case and separators, for comparing: "Golden_retriever" is "golden retriever"."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()
