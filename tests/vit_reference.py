"""A plain ViT in a few lines, as papers state it: the reference for releases that have no package to install.

Names are timm's, which are facebook's; every choice that releases differ in is an argument. Nothing of `vit_finetune`
is used, so that agreement means something.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn


class Layers(nn.Module):
    """A namespace of parameters and layers."""

    def __init__(self, **members):
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)


class ReferenceViT(nn.Module):
    """Class token, pre-norm blocks, erf GELU, epsilon 1e-6."""

    def __init__(self, *, width=32, depth=2, heads=4, hidden=48, size=32, patch=8, classes=0, table=1, registers=0):
        super().__init__()
        self.heads, self.table, count = heads, table, (size // patch) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, table + count, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.empty(1, registers, width))
        self.patch_embed = Layers(proj=nn.Conv2d(3, width, patch, patch))
        self.blocks = nn.ModuleList(self.block(width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def block(self, width, hidden):
        """Return the layers of one block."""
        return Layers(
            norm1=nn.LayerNorm(width, eps=1e-6),
            attn=Layers(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width)),
            norm2=nn.LayerNorm(width, eps=1e-6),
            mlp=Layers(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width)),
        )

    def attention(self, block, x):
        """Attend, with the softmax written out."""
        q, k, v = block.attn.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3)
        return block.attn.proj((weights @ v).transpose(1, 2).flatten(2))

    def mlp(self, block, x):
        """Run the two layers of a plain MLP."""
        return block.mlp.fc2(F.gelu(block.mlp.fc1(x)))

    def in_order(self):
        """Return the blocks."""
        return self.blocks

    def scales(self, block):
        """Return what the two branches are multiplied by."""
        return 1, 1

    def tokens(self, images):
        """Return all tokens after the last norm."""
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        token = self.cls_token.expand(len(x), -1, -1)
        if self.table:  # positions for the class token too
            x = torch.cat([token, x], 1)
        x = x + self.pos_embed
        if not self.table:
            x = torch.cat([token, x], 1)
        if hasattr(self, "register_tokens"):
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.in_order():
            first, second = self.scales(block)
            x = x + first * self.attention(block, block.norm1(x))
            x = x + second * self.mlp(block, block.norm2(x))
        return self.norm(x)

    def forward(self, images):
        """Return logits of the class token."""
        return self.head(self.tokens(images)[:, 0])
