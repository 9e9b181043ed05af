"""One data-only module per layout of ViT weights, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.formats.hf_dinov2 import HF_DINOV2
from vit_finetune.weights.formats.timm import TIMM
from vit_finetune.weights.rules import Format

FORMATS: dict[str, Format] = {layout.name: layout for layout in (TIMM, HF_DINOV2)}


def detect_format(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the one format whose fingerprint the names carry.

    Args:
        tensors: the file's tensors; only names are looked at.

    Raises:
        RequestError: no format fits, or more than one does.
    """
    fitting = [name for name, layout in FORMATS.items() if layout.matches(tensors)]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(sorted(tensors)[:4])
    if not fitting:
        raise RequestError(
            f"these {len(tensors)} tensors are in no known ViT layout (known: {', '.join(FORMATS)}); "
            f"their names begin with {shown or 'nothing'}"
        )
    raise RequestError(f"these tensors fit several layouts ({', '.join(fitting)}); their names begin with {shown}")
