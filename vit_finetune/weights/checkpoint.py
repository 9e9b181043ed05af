"""What a source of weights holds, before anything is done with it.

Every reader ends in a `Checkpoint`: the tensors under the names the file gave them, and whatever else the source says
about itself. Nothing is guessed here; what a source doesn't say is None or empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.weights.way_back import Earlier


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of one source.

    Attributes:
        tensors: name to tensor, as the file names them (wrappers and wrapper prefixes removed); often memory-mapped.
        description: the source in words, for people.
        architecture: timm's name of the network, where the source says it.
        model_args: fields of the config in which the network differs from that name, as JSON values.
        library: the configuration of the library that wrote the weights, as it is; formats translate it.
        preprocess: the evaluation transform; None where the source says nothing.
        class_names: one per row of the head, in order; None where the source says nothing.
        thresholds: of a model for several classes a picture, one per class; else None.
        temperature: what logits are divided by for calibrated probabilities; None where none was fitted.
        dropped: tensors that the reader set aside, each with its reason.
        notes: what the reader decided, one sentence each.
        earlier: the file that a conversion made this one from, with what has no place here.
    """

    tensors: Mapping[str, Tensor]
    description: str
    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    library: Mapping[str, Any] = field(default_factory=dict)
    preprocess: PreprocessSpec | None = None
    class_names: tuple[str, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    temperature: float | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    earlier: Earlier | None = None


@contextmanager
def naming(checkpoint: Checkpoint) -> Iterator[None]:
    """Name a source in whatever is wrong with its tensors.

    Args:
        checkpoint: the source.
    """
    try:
        yield
    except RequestError as error:
        raise type(error)(f"{checkpoint.description}: {error}") from error
