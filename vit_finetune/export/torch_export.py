"""A network as `torch.export` keeps it: one `.pt2` file that plain PyTorch runs, the number of pictures left open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from vit_finetune.weights.metadata import METADATA_KEY

PT2_NAME = "model.pt2"
ABOUT = f"{METADATA_KEY}.json"  # the file inside that says classes and preprocessing


def write_torch_export(
    model: nn.Module, path: Path, *, input_size: tuple[int, int, int], metadata: Mapping[str, str]
) -> None:
    """Write a network as one `.pt2` file: pixels [B, C, H, W], prepared, in; logits [B, K] out.

    Args:
        model: on the CPU, in eval mode.
        path: the file to appear.
        input_size: (channels, height, width).
        metadata: as in the header of our safetensors; read it with `torch.export.load(path, extra_files=...)`.
    """
    example = torch.zeros(2, *input_size)
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={ABOUT: metadata[METADATA_KEY]})
