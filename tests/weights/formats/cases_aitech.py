"""The notebook ViT of Boostcamp AI Tech, restated; it returns its attentions beside the logits."""

from __future__ import annotations

import torch
from einops import rearrange
from formats_helpers import Case, Saved, randomize
from restated_helpers import Named
from torch import nn


class Restated(Named):
    """The notebook's network without its dropout: pooling over all tokens, then the one norm behind the blocks."""

    def __init__(self, *, dim=24, depth=2, heads=3, classes=5):
        parts = {
            "img_emb.linear": nn.Linear(192, dim),
            "img_emb.cls_token": (1, 1, dim),
            "img_emb.positions": (17, dim),
        }
        for i in range(depth):
            block = f"encoders.{i}"
            parts |= {f"{block}.{norm}": nn.LayerNorm(dim) for norm in ("norm_1", "norm_2")}
            parts |= {f"{block}.mha.{name}": nn.Linear(dim, dim) for name in ("value", "key", "query", "linear")}
            parts |= {f"{block}.mlp.linear_1": nn.Linear(dim, 40), f"{block}.mlp.linear_2": nn.Linear(40, dim)}
        super().__init__({**parts, "normalization": nn.LayerNorm(dim), "classification_head": nn.Linear(dim, classes)})
        self.depth, self.heads = depth, heads

    def forward(self, images):
        start, maps = self.img_emb, []
        x = start.linear(rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8))
        x = torch.cat([start.cls_token.expand(len(x), -1, -1), x], dim=1) + start.positions
        for i in range(self.depth):
            block = self.at(f"encoders.{i}")
            normed = block.norm_1(x)
            parts = (getattr(block.mha, name)(normed) for name in ("query", "key", "value"))
            q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
            maps.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1))
            x = x + block.mha.linear(rearrange(maps[-1] @ v, "b h n d -> b n (h d)"))
            x = x + block.mlp.linear_2(nn.functional.gelu(block.mlp.linear_1(block.norm_2(x))))
        return self.classification_head(self.normalization(x.mean(dim=1))), maps


def build(folder):
    """Make and save a network."""
    model = randomize(Restated())
    torch.save(model.state_dict(), folder / "model.pt")
    return Saved(model, folder / "model.pt")


CASES = [
    Case(
        name="aitech",
        format="aitech",
        build=build,
        forward=lambda model, images: model(images)[0],
        hints={"num_heads": 3, "patch_size": 8},
    )
]
