"""What restatements of published networks share: modules whose parts have the published names."""

from __future__ import annotations

import torch
from torch import nn


class Named(nn.Module):
    """A module whose parts and parameters are given by name; dots make nested names."""

    def __init__(self, parts):
        super().__init__()
        for name, part in parts.items():
            first, _, rest = name.partition(".")
            if not rest:
                setattr(self, name, nn.Parameter(torch.empty(part)) if isinstance(part, tuple) else part)
            else:
                nested = {
                    key.removeprefix(f"{first}."): value for key, value in parts.items() if key.startswith(f"{first}.")
                }
                if first not in self._modules:
                    self.add_module(first, Named(nested))

    def at(self, name):
        """Return the part of a nested name."""
        return self.get_submodule(name)
