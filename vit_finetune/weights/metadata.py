"""What our safetensors files say about themselves, so that one file alone is enough to predict.

A safetensors header carries a flat mapping of strings. Ours has two keys: `format` is "pt", which transformers asks
for, and `vit_finetune` is one JSON object with `architecture`, `model_args`, `preprocess` and `class_names`, and, of a
model for several classes a picture, `thresholds`, and of one whose probabilities were calibrated, `temperature`.
This module only writes and reads that mapping.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec

METADATA_KEY = "vit_finetune"


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What a safetensors header of ours says.

    Attributes:
        architecture: timm's name of the network, or None where it has none.
        model_args: the fields of the config in which the network differs from that name, as JSON values.
        preprocess: the evaluation transform.
        class_names: one per row of the head, in order.
        thresholds: of a model for several classes a picture, the probability from which on it has each; else None.
        temperature: what logits are divided by for calibrated probabilities; None where none was fitted.
    """

    architecture: str | None = None
    model_args: Mapping[str, Any]
    preprocess: PreprocessSpec | None = None
    class_names: tuple[str, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    temperature: float | None = None


def embedded_metadata(
    architecture: str | None,
    model_args: Mapping[str, Any],
    *,
    preprocess: PreprocessSpec | None = None,
    class_names: Sequence[str] | None = None,
    thresholds: Sequence[float] | None = None,
    temperature: float | None = None,
) -> dict[str, str]:
    """Return the header mapping for `safetensors.torch.save_file(..., metadata=...)`.

    Args:
        architecture: timm's name of the network.
        model_args: fields of the config in which the network differs from that name, as JSON values.
        preprocess: the evaluation transform.
        class_names: one per row of the head, in order.
        thresholds: one per class, of a model for several classes a picture.
        temperature: what logits are divided by for calibrated probabilities.

    Returns:
        Strings to strings; the same arguments give the same bytes.
    """
    value = {
        "architecture": architecture,
        "model_args": dict(model_args),
        "preprocess": None if preprocess is None else preprocess.to_mapping(),
        "class_names": None if class_names is None else list(class_names),
        **({} if thresholds is None else {"thresholds": list(thresholds)}),
        **({} if temperature is None else {"temperature": temperature}),
    }
    return {"format": "pt", METADATA_KEY: json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)}


def read_embedded(metadata: Mapping[str, str] | None) -> Embedded | None:
    """Read what `embedded_metadata` wrote.

    Args:
        metadata: a safetensors header mapping, as `safe_open(...).metadata()` gives it.

    Returns:
        The content, or None where the file carries nothing of ours.

    Raises:
        RequestError: our key is there but doesn't hold what it should.
    """
    if not metadata or METADATA_KEY not in metadata:
        return None
    try:
        value = json.loads(metadata[METADATA_KEY])
        names, preprocess, thresholds = (value.get(key) for key in ("class_names", "preprocess", "thresholds"))
        return Embedded(
            architecture=value.get("architecture"),
            model_args=dict(value.get("model_args") or {}),
            preprocess=None
            if preprocess is None
            else PreprocessSpec.from_mapping(preprocess, source="the file's metadata"),
            class_names=None if names is None else tuple(str(name) for name in names),
            thresholds=None if thresholds is None else tuple(float(number) for number in thresholds),
            temperature=None if value.get("temperature") is None else checked_temperature(value["temperature"]),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise RequestError(
            f"the safetensors metadata key {METADATA_KEY!r} is damaged ({error}); export the file again"
        ) from error


def checked_temperature(value: Any) -> float:
    """Return a temperature as a file tells it.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    temperature = float(value)
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature of {temperature}")
    return temperature
