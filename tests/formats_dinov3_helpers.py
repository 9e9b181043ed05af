"""DINOv3 as facebook research released it, restated from its source: masked key biases, registers, rotary positions."""

from __future__ import annotations

import math

import torch
from formats_helpers import Saved, randomize
from torch import nn
from torch.nn import functional

WIDTH, HEADS, PATCH = 32, 2, 8


class MaskedBias(nn.Linear):
    """The projection to queries, keys and values whose bias a mask multiplies."""

    def __init__(self, masked):
        super().__init__(WIDTH, 3 * WIDTH)
        if masked:
            mask = torch.ones(3, WIDTH)
            mask[1] = 0
            self.register_buffer("bias_mask", mask.flatten())

    def forward(self, x):
        """Return queries, keys and values."""
        return functional.linear(x, self.weight, self.bias * getattr(self, "bias_mask", 1.0))


class Attention(nn.Module):
    """Attention that turns queries and keys of patches, and leaves those of prefix tokens."""

    def __init__(self, masked):
        super().__init__()
        self.qkv, self.proj = MaskedBias(masked), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, sin, cos):
        """Return tokens of tokens."""
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, HEADS, WIDTH // HEADS)
        q, k, v = (part.transpose(1, 2) for part in torch.unbind(qkv, 2))
        prefix = count - sin.shape[0]

        def turned(y):
            first, second = y[:, :, prefix:].chunk(2, dim=-1)
            rotated = torch.cat([-second, first], dim=-1)
            return torch.cat([y[:, :, :prefix], y[:, :, prefix:] * cos + rotated * sin], dim=2)

        out = functional.scaled_dot_product_attention(turned(q), turned(k), v)
        return self.proj(out.transpose(1, 2).reshape(batch, count, WIDTH))


class Mlp(nn.Module):
    """The plain MLP, or SwiGLU with three layers."""

    def __init__(self, gated):
        super().__init__()
        self.gated = gated
        if gated:
            self.w1, self.w2, self.w3 = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)
        else:
            self.fc1, self.fc2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x):
        """Return tokens of tokens."""
        if self.gated:
            return self.w3(functional.silu(self.w1(x)) * self.w2(x))
        return self.fc2(functional.gelu(self.fc1(x)))


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        """Return scaled tokens."""
        return x * self.gamma


class Block(nn.Module):
    """The pre-norm block."""

    def __init__(self, *, gated, masked):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH, eps=1e-5), Attention(masked), Scale()
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(WIDTH, eps=1e-5), Mlp(gated), Scale()

    def forward(self, x, sin, cos):
        """Return tokens of tokens."""
        x = x + self.ls1(self.attn(self.norm1(x), sin, cos))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Rope(nn.Module):
    """The table of angles, from places between -1 and 1 along each axis."""

    def __init__(self):
        super().__init__()
        quarter = WIDTH // HEADS // 4
        self.register_buffer("periods", 100.0 ** (2 * torch.arange(quarter).float() / (2 * quarter)))

    def forward(self, height, width):
        """Return sines and cosines [patches, head width]."""
        rows = (torch.arange(height).double() + 0.5) / height
        columns = (torch.arange(width).double() + 0.5) / width
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1) * 2 - 1
        angles = (2 * math.pi * places[:, :, None] / self.periods[None, None]).flatten(1, 2).tile(2)
        return angles.sin(), angles.cos()


class DinoV3(nn.Module):
    """`DinoVisionTransformer` of facebookresearch/dinov3, without what training adds."""

    def __init__(self, *, gated=False, masked=True, registers=2):
        super().__init__()
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, WIDTH))
        self.storage_tokens = nn.Parameter(torch.zeros(1, registers, WIDTH)) if registers else None
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.rope_embed = Rope()
        self.blocks = nn.ModuleList(Block(gated=gated, masked=masked) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-5)

    def forward(self, images):
        """Return normed tokens."""
        maps = self.patch_embed["proj"](images)
        sin, cos = self.rope_embed(*maps.shape[2:])
        prefix = [self.cls_token] if self.storage_tokens is None else [self.cls_token, self.storage_tokens]
        x = torch.cat([*(token.expand(len(images), -1, -1) for token in prefix), maps.flatten(2).mT], dim=1)
        for block in self.blocks:
            x = block(x, sin, cos)
        return self.norm(x)


def saved(**options):
    """Return a function that makes a network and saves it as the releases are: a state dict, without a wrapper."""

    def build(folder):
        model = randomize(DinoV3(**options))
        if options.get("masked", True):
            with torch.no_grad():  # what the mask turns off never left its start
                for block in model.blocks:
                    block.attn.qkv.bias[WIDTH : 2 * WIDTH] = 0
        torch.save(model.state_dict(), folder / "model.pth")
        return Saved(model, folder / "model.pth")

    return build
