"""One data-only module per layout of ViT weights, and the choice between them.

To add a format, write one module here and enter it into the list below:

1. Open with what writes such files, where its names come from, and how they were verified.
2. Write one `Rule` per kind of tensor, theirs on the left. Names have placeholders (`{i}` a number, `{kind}` weight or
   bias, `{rest}`), layouts are einops patterns; the way back needs nothing more. `rules.py` explains every word.
3. Say what the file holds that we don't (`drop`, `aside`, `refuse`, each with the reason), what we hold that it
   doesn't (`ours_only`), what its library asks for beside the network (`theirs_only`), and other spellings
   (`aliases`, `stacked`, `prefixes`).
4. Say which networks it can express: `families` its configs, `holds` the fields that may differ from their defaults. It
   serves both ways: a field that isn't listed is known when reading, and refused when writing.
5. Give the fingerprint (`present` name endings, `absent` name parts, which begin with a dot): exactly one format may
   fit any file, so look at the kin.
6. Translate the library's configuration (`config_from`, `config_to`), where it has one; else give `defaults`.
7. End with `FORMATS = (MY_FORMAT, ...)` and add cases to `tests/weights/formats/cases_<module>.py`.

`torchvision.py` is the shortest complete example, `hf_dinov2.py` one with everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.weights.formats import (
    aitech,
    block_notebook,
    facebook,
    facebook_dinov3,
    hf_beit,
    hf_clip,
    hf_deit,
    hf_dinov2,
    hf_dinov2_with_registers,
    hf_dinov3,
    hf_ijepa,
    hf_others,
    hf_siglip,
    hf_vit,
    jax,
    jeonsworld,
    microsoft_beit,
    mmpretrain,
    open_clip,
    rotary_releases,
    simple_vit,
    timm,
    torchvision,
    vit_pytorch,
    zuppichini,
)
from vit_finetune.weights.rules import Format

_MODULES = (
    timm,
    hf_vit,
    hf_deit,
    hf_ijepa,
    hf_dinov2,
    hf_dinov2_with_registers,
    hf_clip,
    hf_siglip,
    hf_dinov3,
    hf_beit,
    hf_others,
    torchvision,
    open_clip,
    facebook,
    facebook_dinov3,
    microsoft_beit,
    rotary_releases,
    jax,
    vit_pytorch,
    simple_vit,
    zuppichini,
    aitech,
    jeonsworld,
    mmpretrain,
    block_notebook,
)
FORMATS: dict[str, Format] = {layout.name: layout for module in _MODULES for layout in module.FORMATS}


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        RequestError: there is no such format.
    """
    if name not in FORMATS:
        raise RequestError(f"there is no format {name!r}{did_you_mean(name, FORMATS)}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def detect_format(tensors: Mapping[str, Any]) -> str:
    """Return the name of the one format whose fingerprint the names carry.

    Args:
        tensors: the file's tensors; only names and shapes are looked at.

    Raises:
        RequestError: no format fits, or more than one does.
    """
    fitting = [name for name, layout in FORMATS.items() if layout.matches(tensors)]
    fitting = [name for name in fitting if not set(FORMATS[name].yields_to) & set(fitting)]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(sorted(tensors)[:4])
    if not fitting:
        raise RequestError(
            f"these {len(tensors)} tensors are in no known ViT layout (known: {', '.join(FORMATS)}); "
            f"their names begin with {shown or 'nothing'}"
        )
    raise RequestError(
        f"these tensors fit several layouts ({', '.join(fitting)}): say which one it is; their names begin with {shown}"
    )
