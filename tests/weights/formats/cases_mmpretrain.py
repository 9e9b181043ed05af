"""mmpretrain's ViT and DeiT, restated from its backbones and heads: poolings, LayerScale, gates, distillation."""

from __future__ import annotations

import torch
from einops import rearrange
from formats_helpers import Case, Saved, randomize
from restated_helpers import Named
from torch import nn


class Restated(Named):
    """`ImageClassifier` with a `VisionTransformer` or `DistilledVisionTransformer` and its usual head."""

    def __init__(
        self, *, out="cls", pre_norm=False, scale=False, gated=False, distilled=False, eps=1e-6, bias=True, head=True
    ):
        dim, prefix, hidden = 24, 2 if distilled else 1, 40
        parts = {"backbone.cls_token": (1, 1, dim), "backbone.pos_embed": (1, 16 + prefix, dim)}
        parts["backbone.patch_embed.projection"] = nn.Conv2d(3, dim, 8, 8, bias=not pre_norm)
        for i in range(2):
            block = f"backbone.layers.{i}"
            parts |= {f"{block}.{norm}": nn.LayerNorm(dim, eps=eps) for norm in ("ln1", "ln2")}
            parts |= {
                f"{block}.attn.qkv": nn.Linear(dim, 3 * dim, bias=bias),
                f"{block}.attn.proj": nn.Linear(dim, dim),
            }
            layers = ("w12", "w3") if gated else ("layers.0.0", "layers.1")
            parts[f"{block}.ffn.{layers[0]}"] = nn.Linear(dim, 2 * hidden if gated else hidden)
            parts[f"{block}.ffn.{layers[1]}"] = nn.Linear(hidden, dim)
            parts |= {f"{block}.{name}.weight": (dim,) for name in ("attn.gamma1", "ffn.gamma2") if scale}
        parts |= {"backbone.pre_norm": nn.LayerNorm(dim, eps=eps)} if pre_norm else {}
        parts |= {"backbone.dist_token": (1, 1, dim)} if distilled else {}
        parts["backbone.ln2" if out == "avg" else "backbone.ln1"] = nn.LayerNorm(dim, eps=eps)
        if head:
            parts["head.fc" if out == "avg" else "head.layers.head"] = nn.Linear(dim, 5)
        parts |= {"head.layers.head_dist": nn.Linear(dim, 5)} if distilled else {}
        super().__init__(parts)
        self.out, self.pre, self.scale, self.gated, self.distilled = out, pre_norm, scale, gated, distilled

    def forward(self, images):
        body = self.backbone
        x = rearrange(body.patch_embed.projection(images), "b d h w -> b (h w) d")
        tokens = [body.cls_token, body.dist_token] if self.distilled else [body.cls_token]
        x = torch.cat([token.expand(len(x), -1, -1) for token in tokens] + [x], dim=1) + body.pos_embed
        x = body.pre_norm(x) if self.pre else x
        for i in range(2):
            x = self.block(body.at(f"layers.{i}"), x)
        if self.out == "avg":
            return self.at("head.fc")(body.ln2(x[:, 1:].mean(dim=1)))
        x = body.ln1(x)
        if "head" not in self._modules:
            return x
        logits = self.at("head.layers.head")(x[:, 0])
        return (logits + self.at("head.layers.head_dist")(x[:, 1])) / 2 if self.distilled else logits

    def block(self, block, x):
        q, k, v = rearrange(block.attn.qkv(block.ln1(x)), "b n (three h d) -> three b h n d", three=3, h=3)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        added = block.attn.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))
        x = x + (added * block.attn.gamma1.weight if self.scale else added)
        if self.gated:
            gate, value = block.ffn.w12(block.ln2(x)).chunk(2, dim=-1)
            added = block.ffn.w3(nn.functional.silu(gate) * value)
        else:
            added = block.at("ffn.layers.1")(nn.functional.gelu(block.at("ffn.layers.0.0")(block.ln2(x))))
        return x + (added * block.ffn.gamma2.weight if self.scale else added)


def case(what, compare="logits", hints=None, **options):
    """Return a case, saved as its runner saves: the state dict beside what training needs."""

    def build(folder):
        model = randomize(Restated(**options))
        torch.save({"meta": {"epoch": 3}, "state_dict": model.state_dict()}, folder / "epoch_3.pth")
        return Saved(model, folder / "epoch_3.pth")

    act = {} if options.get("gated") else {"act_layer": "gelu"}
    return Case(
        name=f"mmpretrain {what}",
        format="mmpretrain",
        build=build,
        forward=lambda model, images: model(images),
        compare=compare,
        hints={"num_heads": 3, "norm_eps": options.get("eps", 1e-6), **act, **(hints or {})},
    )


CASES = [
    case("class token"),
    case("mean", out="avg"),
    case("CLIP's", pre_norm=True, eps=1e-5),
    case("DINOv2's", compare="tokens", scale=True, head=False),
    case("DINOv2's giant", compare="tokens", scale=True, gated=True, head=False),
    case("distilled", distilled=True),
    case("no bias on queries", bias=False),
]
