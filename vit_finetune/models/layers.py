"""The small parts of a ViT: patches, norms, activations, MLPs, attention pooling.

Each takes plain values and knows nothing of the others; `attention.py` and `blocks.py` put them together as a ViTConfig
says. Parameter names are timm's. Random decisions (DropPath, patch dropout) are in `noise.py`.

Sources: ViT (arXiv 2010.11929), GLU variants (2002.05202), Big Vision's MAP head (2106.04560); layout and numerics as
in timm 1.0.
Legend: B batch, C channels, H W image, p q patch, gh gw patch grid, N tokens, D width, M hidden width, nh hd heads and
head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.models.attending import attend
from vit_finetune.models.layer_scale import project
from vit_finetune.models.recompute import recomputed

ModuleFactory = Callable[..., nn.Module]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, ModuleFactory] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
}
NORMS: dict[str, ModuleFactory] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


def resample_grid(table: Tensor, *, old: tuple[int, int], new: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Resize a table of positions to another patch grid: bicubic, antialiased, in float32; prefix rows are kept.

    Args:
        table: [1, prefix + gh*gw, D].
        old: the (gh, gw) that the table was made for.
        new: the (gh, gw) wanted.
        num_prefix_tokens: rows in front that belong to no patch.

    Returns:
        [1, prefix + new gh * new gw, D]; `table` itself where the grid stays.

    Source: the numbers of timm's `resample_abs_pos_embed`.
    """
    if old == new:
        return table
    prefix, grid = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    grid = rearrange(grid.float(), "one (gh gw) d -> one d gh gw", gh=old[0])
    grid = functional.interpolate(grid, size=new, mode="bicubic", antialias=True)
    return torch.cat([prefix, rearrange(grid, "one d gh gw -> one (gh gw) d").to(table.dtype)], dim=1)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and makes each a token: one convolution whose stride is its kernel.

    Args:
        img_size: (height, width) in pixels that `forward` insists on.
        patch_size: (height, width) in pixels.
        in_chans: image channels.
        embed_dim: width D of a token.
        bias: whether the convolution has one.
        norm: makes the norm after it from a width; None for none.
        dynamic: accept every size that patches divide instead of `img_size`.
        norm_in: makes the norm before it, over the p*q*C values of a patch, from a width; None for none.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        bias: bool,
        norm: ModuleFactory | None,
        dynamic: bool,
        norm_in: ModuleFactory | None = None,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.in_chans, self.dynamic = img_size, patch_size, in_chans, dynamic
        self.norm_in = norm_in(patch_size[0] * patch_size[1] * in_chans) if norm_in is not None else None
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.norm = norm(embed_dim) if norm is not None else nn.Identity()

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Return the patch grid (gh, gw) of images.

        Args:
            x: images [B, C, H, W].

        Raises:
            RequestError: the model takes no images of this shape.
        """
        shape, size = tuple(x.shape), (x.shape[-2], x.shape[-1])
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise RequestError(f"images have shape {shape}; the model takes [batch, {self.in_chans}, height, width]")
        if not self.dynamic and size != self.img_size:
            raise RequestError(
                f"images are {size[0]} x {size[1]} pixels, the model takes {self.img_size[0]} x {self.img_size[1]}; "
                f"resize them, or build the model with img_size={size} or dynamic_img_size=True"
            )
        if self.dynamic and (size[0] % self.patch_size[0] or size[1] % self.patch_size[1]):
            raise RequestError(
                f"images are {size[0]} x {size[1]} pixels, which patches of {self.patch_size} do not divide; "
                "resize them"
            )
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    def _by_patch(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Return images [B, C, H, W] after a norm over the values of each patch, which lie in the order p q C."""
        (gh, gw), (p, q) = self.grid_of(x), self.patch_size
        patches = rearrange(x[:, :, : gh * p, : gw * q], "b c (gh p) (gw q) -> b gh gw (p q c)", p=p, q=q)
        normed: Tensor = norm(patches)
        return rearrange(normed, "b gh gw (p q c) -> b c (gh p) (gw q)", p=p, q=q)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, gh*gw, D], row by row, of images [B, C, H, W]."""
        x = x if self.norm_in is None else self._by_patch(self.norm_in, x)
        tokens: Tensor = self.norm(rearrange(self.proj(x), "b d gh gw -> b (gh gw) d"))
        return tokens


class Mlp(nn.Module):
    """Linear, activation, linear.

    Args:
        dim: width D in and out.
        hidden: hidden width M.
        act: makes the activation.
        bias: bias on every linear layer.
        norm: makes a norm before the last linear layer from a width; None for none.
        drop: dropout after the activation and at the end.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: ModuleFactory,
        bias: bool = True,
        norm: ModuleFactory | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        inner = self._build_input(dim, hidden, bias=bias)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.norm = norm(inner) if norm is not None else nn.Identity()
        self.fc2 = nn.Linear(inner, dim, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def _build_input(self, dim: int, hidden: int, *, bias: bool) -> int:
        """Make the input layers; return the width after the activation."""
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        return hidden

    def _activate(self, x: Tensor) -> Tensor:
        """Return the hidden activations [B, N, inner] of tokens [B, N, D]."""
        return recomputed(self.act, self.fc1(x))

    def forward(self, x: Tensor, *, gamma: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D] of tokens [B, N, D], times the factors `gamma` [D] of LayerScale if given."""
        hidden = recomputed(self.norm, self.drop1(self._activate(x)))
        out: Tensor = self.drop2(project(self.fc2, hidden, gamma))
        return out


class SwiGLU(Mlp):
    """An MLP whose hidden units are gated, act(gate) * value, by two input layers (AIMv2)."""

    def _build_input(self, dim: int, hidden: int, *, bias: bool) -> int:
        self.fc1_g = nn.Linear(dim, hidden, bias=bias)
        self.fc1_x = nn.Linear(dim, hidden, bias=bias)
        return hidden

    def _activate(self, x: Tensor) -> Tensor:
        return recomputed(torch.mul, recomputed(self.act, self.fc1_g(x)), self.fc1_x(x))

    def init_weights(self) -> None:
        """Start with an open gate: weights near zero, bias one."""
        nn.init.normal_(self.fc1_g.weight, std=1e-6)
        if self.fc1_g.bias is not None:
            nn.init.ones_(self.fc1_g.bias)


class SwiGLUPacked(Mlp):
    """`SwiGLU` with both input layers in one matrix, gate first; M counts both halves (DINOv2 giant)."""

    def _build_input(self, dim: int, hidden: int, *, bias: bool) -> int:
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        return hidden // 2

    def _activate(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return recomputed(torch.mul, recomputed(self.act, gate), value)

    def init_weights(self) -> None:
        """Start the second half with weights near zero and bias one, as timm does, though the gate is the first."""
        half = self.fc1.out_features // 2
        nn.init.normal_(self.fc1.weight[half:], std=1e-6)
        if self.fc1.bias is not None:
            nn.init.ones_(self.fc1.bias[half:])


MLPS: dict[str, type[Mlp]] = {"mlp": Mlp, "swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}


class AttentionPool(nn.Module):
    """Pools tokens into one by letting a learned query attend to them, then an MLP (the MAP head of SigLIP).

    Args:
        dim: width D.
        num_heads: attention heads nh.
        hidden: hidden width M of the MLP.
        norm: makes the norm before the MLP from a width.
        act: makes the MLP's activation.
    """

    def __init__(self, dim: int, *, num_heads: int, hidden: int, norm: ModuleFactory, act: ModuleFactory) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(dim)
        self.mlp = Mlp(dim, hidden, act=act)

    def init_weights(self) -> None:
        """Draw the query from a normal of std D^-0.5, cut at two of those."""
        std = self.latent.shape[-1] ** -0.5
        nn.init.trunc_normal_(self.latent, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector [B, D] per image of tokens [B, N, D]."""
        q = rearrange(self.q(self.latent).expand(x.shape[0], -1, -1), "b one (nh hd) -> b nh one hd", nh=self.num_heads)
        k, v = rearrange(self.kv(x), "b n (two nh hd) -> two b nh n hd", two=2, nh=self.num_heads)
        pooled = self.proj(rearrange(attend(q, k, v), "b nh one hd -> b (one nh hd)"))
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out
