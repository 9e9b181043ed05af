"""vit-pytorch's SimpleViT in both of its layouts: restated from the wheels 1.2.0 and 1.26.11, positions as formulas."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from formats_helpers import Case, Saved, randomize
from restated_helpers import Named
from torch import nn


def positions(rows, columns, dim):
    """Return the table entry by entry: sin x, cos x, sin y, cos y, a quarter of the width each."""
    quarter = dim // 4
    table = torch.empty(rows, columns, dim, dtype=torch.float64)
    for y in range(rows):
        for x in range(columns):
            for k in range(quarter):
                omega = 10000 ** -(k / (quarter - 1))
                values = (math.sin(x * omega), math.cos(x * omega), math.sin(y * omega), math.cos(y * omega))
                table[y, x, k::quarter] = torch.tensor(values, dtype=torch.float64)
    return table.reshape(rows * columns, dim)


class Restated(Named):
    """SimpleViT: normed patches, fixed positions, no class token, the mean of all tokens."""

    def __init__(self, *, first, dim=24, depth=2, heads=3, dim_head=8, classes=5):
        parts = {
            "to_patch_embedding.1": nn.LayerNorm(192),
            "to_patch_embedding.2": nn.Linear(192, dim),
            "to_patch_embedding.3": nn.LayerNorm(dim),
        }
        for i in range(depth):
            layer = f"transformer.layers.{i}"
            parts |= {
                f"{layer}.0.norm": nn.LayerNorm(dim),
                f"{layer}.0.to_qkv": nn.Linear(dim, 3 * heads * dim_head, bias=False),
                f"{layer}.0.to_out": nn.Linear(heads * dim_head, dim, bias=False),
                f"{layer}.1.net.0": nn.LayerNorm(dim),
                f"{layer}.1.net.1": nn.Linear(dim, 40),
                f"{layer}.1.net.3": nn.Linear(40, dim),
            }
        norm, head = ("linear_head.0", "linear_head.1") if first else ("transformer.norm", "linear_head")
        super().__init__({**parts, norm: nn.LayerNorm(dim), head: nn.Linear(dim, classes)})
        self.first, self.depth, self.heads, self.ends = first, depth, heads, (norm, head)

    def forward(self, images):
        patches = rearrange(images, "b c (h p) (w q) -> b h w (p q c)", p=8, q=8)
        x = self.at("to_patch_embedding.3")(self.at("to_patch_embedding.2")(self.at("to_patch_embedding.1")(patches)))
        table = positions(*x.shape[1:]).float().to(x.dtype)  # float32 in the package, whatever the weights are
        x = x.flatten(1, 2) + table
        for i in range(self.depth):
            name = f"transformer.layers.{i}"
            q, k, v = self.at(f"{name}.0.to_qkv")(self.at(f"{name}.0.norm")(x)).chunk(3, dim=-1)
            q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (q, k, v))
            mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
            x = x + self.at(f"{name}.0.to_out")(rearrange(mixed, "b h n d -> b n (h d)"))
            hidden = self.at(f"{name}.1.net.1")(self.at(f"{name}.1.net.0")(x))
            x = x + self.at(f"{name}.1.net.3")(nn.functional.gelu(hidden))
        norm, head = self.ends
        return self.at(head)(self.at(norm)(x.mean(dim=1)) if self.first else self.at(norm)(x).mean(dim=1))


def saved(**options):
    """Return a function that makes and saves a network."""

    def build(folder):
        model = randomize(Restated(**options))
        torch.save(model.state_dict(), folder / "model.pt")
        return Saved(model, folder / "model.pt")

    return build


def logits(model, images):
    """Run the classifier."""
    return model(images)


HINTS = {"num_heads": 3, "patch_size": 8}
# The restatement computes the table in float64 and rounds once; the package, as ours, works in float32 throughout.
CASES = [
    Case(
        name=f"{name}{what}",
        format=name,
        build=saved(first=first, **options),
        forward=logits,
        hints=HINTS | {"img_size": size},
        img_size=size,
        tolerance=1e-7,
    )
    for name, first in (("simple_vit", False), ("simple_vit_first", True))
    for what, size, options in (("", (32, 32), {}), (", oblong, wide heads", (24, 40), {"dim_head": 12}))
]
