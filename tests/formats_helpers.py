"""What a writer of formats provides for the tests: a `Case`, the few lines that make a reference model and save it.

Write `tests/weights/formats/cases_<module>.py` with a list `CASES`. For each case the one test in `test_formats.py`
detects the format, converts to timm's layout, builds our network from what format, configuration and hints tell, loads
it strictly, compares both networks in float64, and goes back. Provide:

- `build(folder)`: make a tiny random reference model (the real library's where there is one, else a restatement of the
  published architecture in a few lines), every value random (`randomize`), save it into the folder the way its users
  save it, and return it with what is to be read: a path, or a state dict.
- `forward(reference, images)`: its logits or tokens; `compare` says which, and with which of ours.
- `hints`: `ViTConfig` fields that neither weights nor configuration tell, as a user would give them.
- `tolerance`: the largest absolute difference in float64. Say in a comment why where it is above 1e-10.
- `detected`: whether the file tells its format; where not, several fit, and `format` has to be named.
- `back`: "bitwise" where the way back must give the file again, "functional" where it gives a file of the same
  function, "refused" where it must raise `NotRepresentable`, "one-way" where the format is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn


class Saved(NamedTuple):
    """A reference model and what was saved of it."""

    reference: nn.Module
    source: str | Path | Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file of one format; see the module's docstring."""

    name: str
    format: str
    build: Callable[[Path], Saved]
    forward: Callable[[Any, Tensor], Tensor]
    compare: Literal["logits", "tokens", "pooled"] = "logits"
    hints: dict[str, Any] = field(default_factory=dict)
    img_size: tuple[int, int] = (32, 32)
    tolerance: float = 1e-10
    detected: bool = True
    back: Literal["bitwise", "functional", "refused", "one-way"] = "bitwise"


def randomize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Make every value random, norms, biases and tokens too, so that nothing can be swapped unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours_on(model: Any, images: Tensor, compare: str) -> Tensor:
    """Return what our network gives for the comparison."""
    if compare == "logits":
        return model(images)
    features = model.forward_features(images)
    return features if compare == "tokens" else model.forward_head(features, pre_logits=True)
