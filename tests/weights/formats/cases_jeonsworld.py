"""jeonsworld/ViT-pytorch, restated from its `models/modeling.py`."""

from __future__ import annotations

import torch
from einops import rearrange
from formats_helpers import Case, Saved, randomize
from restated_helpers import Named
from torch import nn


class Restated(Named):
    """Its network: the paper's, under its own names."""

    def __init__(self, *, dim=24, depth=2, heads=3, classes=5):
        start = "transformer.embeddings"
        parts = {
            f"{start}.position_embeddings": (1, 17, dim),
            f"{start}.cls_token": (1, 1, dim),
            f"{start}.patch_embeddings": nn.Conv2d(3, dim, 8, 8),
        }
        for i in range(depth):
            block = f"transformer.encoder.layer.{i}"
            parts |= {f"{block}.{norm}": nn.LayerNorm(dim, eps=1e-6) for norm in ("attention_norm", "ffn_norm")}
            parts |= {f"{block}.ffn.fc1": nn.Linear(dim, 40), f"{block}.ffn.fc2": nn.Linear(40, dim)}
            parts |= {f"{block}.attn.{name}": nn.Linear(dim, dim) for name in ("query", "key", "value", "out")}
        parts |= {"transformer.encoder.encoder_norm": nn.LayerNorm(dim, eps=1e-6), "head": nn.Linear(dim, classes)}
        super().__init__(parts)
        self.depth, self.heads = depth, heads

    def forward(self, images):
        start, encoder = self.transformer.embeddings, self.transformer.encoder
        x = rearrange(start.patch_embeddings(images), "b d h w -> b (h w) d")
        x = torch.cat([start.cls_token.expand(len(x), -1, -1), x], dim=1) + start.position_embeddings
        for i in range(self.depth):
            block = encoder.at(f"layer.{i}")
            normed = block.attention_norm(x)
            parts = (getattr(block.attn, name)(normed) for name in ("query", "key", "value"))
            q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
            x = x + block.attn.out(rearrange(weights @ v, "b h n d -> b n (h d)"))
            x = x + block.ffn.fc2(nn.functional.gelu(block.ffn.fc1(block.ffn_norm(x))))
        return self.head(encoder.encoder_norm(x)[:, 0])


def build(folder):
    """Make and save a network, as its training script names the file."""
    model = randomize(Restated())
    torch.save(model.state_dict(), folder / "run_checkpoint.bin")
    return Saved(model, folder / "run_checkpoint.bin")


CASES = [
    Case(
        name="jeonsworld",
        format="jeonsworld",
        build=build,
        forward=lambda model, images: model(images),
        hints={"num_heads": 3},
    )
]
