"""A running average of the weights beside the weights that train (EMA, Polyak averaging)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vit_finetune.training.sharding import load_whole


class WeightAverage:
    """The exponential moving average of a network's parameters, as torch's `AveragedModel` keeps it.

    After the first update it equals the weights; each later one moves it by (1 - decay) of the way to them.

    Args:
        model: the bare network, not yet wrapped by Accelerate, which would leave its own forward in the copy, nor
            sharded: the copy is sharded for itself.
        decay: what is kept at an update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        # torch's stubs leave the factory untyped
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    @property
    def model(self) -> Any:
        """The network with the averaged weights."""
        return self._averaged.module

    @property
    def num_updates(self) -> int:
        """How often it was updated."""
        return int(self._averaged.n_averaged)

    def to(self, device: torch.device) -> None:
        """Move it to a device."""
        self._averaged.to(device)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of the bare network in, after an optimizer step."""
        self._averaged.update_parameters(model)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averaged network's state dict, sharded as it is."""
        return dict(self.model.state_dict())

    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Put back what `tensors` and `num_updates` gave."""
        load_whole(self.model, tensors)
        self._averaged.n_averaged.fill_(num_updates)
