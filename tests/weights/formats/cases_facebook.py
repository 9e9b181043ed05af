"""Releases of facebook research as restatements: none of them is a package, and each is a plain ViT but for names."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from formats_helpers import Case, Saved, randomize
from torch import nn
from vit_reference import Layers, ReferenceViT

HEADS = {"num_heads": 4}
PLAIN = {**HEADS, "norm_eps": 1e-6, "act_layer": "gelu"}


def tokens(model, images):
    """Run the backbone up to the last norm."""
    return model.tokens(images)


def logits(model, images):
    """Run the classifier."""
    return model(images)


def saved(make, wrap=lambda state: state, part=""):
    """Return a function that makes a model, wraps its state dict as its authors did, and saves it."""

    def build(folder):
        model = randomize(make())
        torch.save(wrap({name: value.clone() for name, value in model.state_dict().items()}), folder / "checkpoint.pth")
        return Saved(model, f"{folder / 'checkpoint.pth'}{part}")

    return build


def dino_training(state):
    """Wrap a backbone as DINO's `main_dino.py` saves its training: two networks, optimizer, arguments."""
    head = {
        **{f"head.mlp.{k}.{kind}": torch.randn(6) for k in (0, 2, 4) for kind in ("weight", "bias")},
        "head.last_layer.weight_g": torch.ones(7, 1),
        "head.last_layer.weight_v": torch.randn(7, 6),
    }
    teacher = {f"backbone.{name}": value for name, value in state.items()} | head
    student = {f"module.{name}": torch.zeros_like(value) for name, value in teacher.items()}
    return {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(arch="vit_small")}


class DeiT(ReferenceViT):
    """DeiT with a distillation token and a head for it; both heads are averaged when it predicts."""

    def __init__(self):
        super().__init__(classes=5, table=2)
        self.dist_token = nn.Parameter(torch.empty(1, 1, 32))
        self.head_dist = nn.Linear(32, 5)

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token)]
        x = torch.cat([*prefix, x], 1) + self.pos_embed
        for block in self.blocks:
            x = x + self.attention(block, block.norm1(x))
            x = x + self.mlp(block, block.norm2(x))
        x = self.norm(x)
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


class DeiT3(ReferenceViT):
    """DeiT-III: LayerScale under its own name, no position for the class token."""

    def __init__(self):
        super().__init__(classes=5, table=0)

    def block(self, width, hidden):
        block = super().block(width, hidden)
        block.gamma_1, block.gamma_2 = (nn.Parameter(torch.empty(width)) for _ in range(2))
        return block

    def scales(self, block):
        return block.gamma_1, block.gamma_2


class MAE(ReferenceViT):
    """MAE as pre-trained: an encoder, and a decoder that is no part of it."""

    def __init__(self):
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, 16))
        self.decoder_embed = nn.Linear(32, 16)
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, 17, 16))
        self.decoder_blocks = nn.ModuleList([self.block(16, 24)])
        self.decoder_norm = nn.LayerNorm(16)
        self.decoder_pred = nn.Linear(16, 8 * 8 * 3)


class MAEFinetuned(ReferenceViT):
    """MAE as fine-tuned: the mean of the patches, then a norm of its own."""

    def __init__(self):
        super().__init__(classes=5)
        self.fc_norm, self.norm = nn.LayerNorm(32, eps=1e-6), nn.Identity()

    def forward(self, images):
        return self.head(self.fc_norm(self.tokens(images)[:, 1:].mean(1)))


class DINOv2(ReferenceViT):
    """DINOv2: LayerScale, a mask token, and maybe registers, a gated MLP and blocks in chunks."""

    def __init__(self, *, registers=0, gated=False, chunks=0):
        self.gated = gated
        super().__init__(depth=4, registers=registers)
        self.mask_token = nn.Parameter(torch.empty(1, 32))
        if chunks:  # each chunk begins with what stands in for the blocks before it
            blocks, size = list(self.blocks), len(self.blocks) // chunks
            starts = range(0, len(blocks), size)
            self.blocks = nn.ModuleList(
                nn.ModuleList([nn.Identity()] * start + blocks[start : start + size]) for start in starts
            )

    def block(self, width, hidden):
        block = super().block(width, hidden)
        block.ls1, block.ls2 = (Layers(gamma=nn.Parameter(torch.empty(width))) for _ in range(2))
        if self.gated:
            hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
            block.mlp = Layers(w12=nn.Linear(width, 2 * hidden), w3=nn.Linear(hidden, width))
        return block

    def scales(self, block):
        return block.ls1.gamma, block.ls2.gamma

    def mlp(self, block, x):
        if not self.gated:
            return super().mlp(block, x)
        gate, value = block.mlp.w12(x).chunk(2, 2)
        return block.mlp.w3(F.silu(gate) * value)

    def in_order(self):
        if not isinstance(self.blocks[0], nn.ModuleList):
            return self.blocks
        return [block for chunk in self.blocks for block in chunk if not isinstance(block, nn.Identity)]


DINOV2 = {"format": "facebook_dinov2", "forward": tokens, "compare": "tokens", "hints": HEADS}
# The class position is added to the token in float32, which moves tokens by 1e-8.
WITH_REGISTERS = {**DINOV2, "format": "facebook_dinov2_registers", "tolerance": 1e-6, "back": "functional"}

CASES = [
    Case(
        name="facebook DINO backbone",
        format="timm",
        build=saved(ReferenceViT),
        forward=tokens,
        compare="tokens",
        hints={**PLAIN, "global_pool": "token"},
    ),
    Case(
        name="facebook DINO training, teacher",
        format="facebook_dino",
        build=saved(ReferenceViT, dino_training, ":teacher"),
        forward=tokens,
        compare="tokens",
        hints=HEADS,
    ),
    Case(
        name="facebook DeiT",
        format="timm",
        build=saved(lambda: ReferenceViT(classes=5), lambda state: {"model": state}),
        forward=logits,
        hints={**PLAIN, "global_pool": "token"},
    ),
    Case(
        name="facebook DeiT distilled",
        format="timm",
        build=saved(DeiT, lambda state: {"model": state}),
        forward=logits,
        hints=PLAIN,
    ),
    Case(
        name="facebook DeiT-III",
        format="facebook_deit3",
        build=saved(DeiT3, lambda state: {"model": state}),
        forward=logits,
        hints=HEADS,
    ),
    Case(
        name="facebook MAE with decoder",
        format="facebook_mae",
        build=saved(MAE, lambda state: {"model": state}),
        forward=tokens,
        compare="tokens",
        hints=HEADS,
    ),
    Case(
        name="facebook MAE fine-tuned",
        format="timm",
        build=saved(MAEFinetuned, lambda state: {"model": state}),
        forward=logits,
        hints=PLAIN,
    ),
    Case(name="facebook DINOv2", build=saved(DINOv2), **DINOV2),
    Case(name="facebook DINOv2 gated", build=saved(lambda: DINOv2(gated=True)), **DINOV2),
    Case(name="facebook DINOv2 in chunks", build=saved(lambda: DINOv2(chunks=2)), **DINOV2),
    Case(
        name="facebook DINOv2 gated, in chunks, without mask token",
        build=saved(
            lambda: DINOv2(chunks=2, gated=True),
            lambda state: {name: value for name, value in state.items() if name != "mask_token"},
        ),
        **DINOV2,
        back="functional",  # what is written has the mask token that the library asks for
    ),
    Case(name="facebook DINOv2 registers", build=saved(lambda: DINOv2(registers=3)), **WITH_REGISTERS),
    Case(
        name="facebook DINOv2 registers, gated, in chunks",
        build=saved(lambda: DINOv2(registers=3, gated=True, chunks=2)),
        **WITH_REGISTERS,
    ),
]
