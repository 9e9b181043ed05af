"""What a network consists of: its layer table and its number of parameters.

Nothing is computed: shapes come from a forward pass on the meta device, which has shapes and no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vit_finetune.models.backbone import Backbone
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import build_model


@dataclass(frozen=True)
class SummaryRow:
    """One line of the layer table.

    Attributes:
        module: its name in the state dict.
        kind: its class.
        output_shape: of the tensor that it gives for one image; of the parameter itself for a learned token.
        parameters: how many numbers it holds.
    """

    module: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int


def count_parameters(config: NetworkConfig) -> int:
    """Return how many parameters a network has, in a few milliseconds where all its blocks are alike.

    Args:
        config: the network.
    """
    if not config.blocks_alike:
        return _size_at(config, config.depth)
    first = _size_at(config, 1)
    return first + (config.depth - 1) * (_size_at(config, 2) - first)


def _size_at(config: NetworkConfig, depth: int) -> int:
    """Return how many parameters a network would have at another depth."""
    with torch.device("meta"):
        return _size(build_model(config.updated({"depth": depth})))


def summarize(model: Backbone, img_size: tuple[int, int] | None = None) -> list[SummaryRow]:
    """Return the layer table of a model, in the order of the forward pass; the parameters add up to the model's.

    Args:
        model: the network; its weights are not read.
        img_size: (height, width) of the image in pixels; None for the model's own. Another one needs dynamic_img_size.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            del module, args
            shapes[name] = tuple(output.shape)

        return hook

    layers = {name: module for name, module in _layers(model) if _size(module)}
    handles = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    try:
        weights = {name: parameter.detach().to("meta") for name, parameter in model.named_parameters()}
        image = torch.empty(1, model.config.in_chans, *(img_size or model.config.img_size), device="meta")
        functional_call(model, weights, (image.to(model.patch_embed.proj.weight.dtype),))
    finally:
        for handle in handles:
            handle.remove()
    tokens = [
        SummaryRow(name, "Parameter", tuple(parameter.shape), parameter.numel())
        for name, parameter in model.named_parameters(recurse=False)
    ]
    rows = [SummaryRow(name, type(layers[name]).__name__, shape, _size(layers[name])) for name, shape in shapes.items()]
    return tokens + rows


def summary_lines(rows: list[SummaryRow]) -> list[str]:
    """Return the layer table as aligned lines: a heading, one line per row, the total.

    Args:
        rows: from `summarize`.
    """
    total = sum(row.parameters for row in rows)
    cells = [("module", "kind", "output shape", "parameters")]
    cells += [(row.module, row.kind, " x ".join(map(str, row.output_shape)), f"{row.parameters:,}") for row in rows]
    cells += [("total", "", "", f"{total:,}")]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return [
        f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:<{widths[2]}}  {line[3]:>{widths[3]}}"
        for line in cells
    ]


def _layers(model: Backbone) -> list[tuple[str, nn.Module]]:
    """Return the model's parts by name, the blocks one by one."""
    parts: list[tuple[str, nn.Module]] = []
    for name, module in model.named_children():
        if module is model.blocks:
            parts += [(f"blocks.{index}", block) for index, block in enumerate(model.blocks)]
        else:
            parts.append((name, module))
    return parts


def _size(module: nn.Module) -> int:
    """Return how many numbers a module's parameters hold."""
    return sum(parameter.numel() for parameter in module.parameters())
