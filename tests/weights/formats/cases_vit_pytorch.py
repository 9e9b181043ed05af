"""vit-pytorch's ViT in its four generations of names: restated below, and the newest by the package itself.

The restatement is written from the package's wheels 0.20.0, 1.2.0, 1.6.5 and 1.26.11: the same names, computed with
explicit matrices.
"""

from __future__ import annotations

import torch
from einops import rearrange
from formats_helpers import Case, Saved, randomize
from restated_helpers import Named
from torch import nn


class Restated(Named):
    """ViT of one generation: norm places and names differ, the transformer is the paper's but for unbiased queries."""

    def __init__(
        self, generation, *, size=(32, 32), patch=(8, 8), dim=24, depth=2, heads=3, dim_head=8, pool="cls", classes=5
    ):
        height, width = patch
        flat, tokens = height * width * 3, (size[0] // height) * (size[1] // width)
        prefix = 0 if generation == "d" and pool == "mean" else 1
        self_norm, self_linear = (
            ("", "to_patch_embedding.1") if generation == "a" else ("to_patch_embedding.1", "to_patch_embedding.2")
        )
        one = (1,) if generation != "d" else ()
        parts = {
            "cls_token": (*one, prefix, dim),
            "pos_embedding": (*one, tokens + prefix, dim),
            self_linear: nn.Linear(flat, dim),
        }
        if self_norm:
            parts |= {self_norm: nn.LayerNorm(flat), "to_patch_embedding.3": nn.LayerNorm(dim)}
        old = generation in "ab"
        inner, mlp = heads * dim_head, 40
        for i in range(depth):
            attention, hidden = f"transformer.layers.{i}.0", f"transformer.layers.{i}.1"
            deep = ".fn" if old else ""
            parts |= {
                f"{attention}.norm": nn.LayerNorm(dim),
                f"{attention}{deep}.to_qkv": nn.Linear(dim, 3 * inner, bias=False),
            }
            if not (heads == 1 and dim_head == dim):
                parts[f"{attention}{deep}.to_out.0"] = nn.Linear(inner, dim)
            first, last = (0, 3) if old else (1, 4)
            parts[f"{hidden}.norm" if old else f"{hidden}.net.0"] = nn.LayerNorm(dim)
            parts |= {
                f"{hidden}{deep}.net.{first}": nn.Linear(dim, mlp),
                f"{hidden}{deep}.net.{last}": nn.Linear(mlp, dim),
            }
        norm, head = ("mlp_head.0", "mlp_head.1") if old else ("transformer.norm", "mlp_head")
        super().__init__({**parts, norm: nn.LayerNorm(dim), head: nn.Linear(dim, classes)})
        self.old, self.patch, self.depth, self.heads, self.pool = old, patch, depth, heads, pool
        self.places = (self_norm, self_linear, norm, head)

    def forward(self, images):
        before, linear, norm, head = self.places
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch[0], q=self.patch[1])
        if before:
            x = self.at("to_patch_embedding.3")(self.at(linear)(self.at(before)(patches)))
        else:
            x = self.at(linear)(patches)
        token = self.cls_token.reshape(1, -1, x.shape[-1]).expand(len(x), -1, -1)
        x = torch.cat([token, x], dim=1) + self.pos_embedding.reshape(1, -1, x.shape[-1])
        for i in range(self.depth):
            x = x + self.attention(f"transformer.layers.{i}.0", x)
            x = x + self.hidden(f"transformer.layers.{i}.1", x)
        if not self.old:
            x = self.at(norm)(x)
        x = x.mean(dim=1) if self.pool == "mean" else x[:, 0]
        return self.at(head)(self.at(norm)(x) if self.old else x)

    def attention(self, name, x):
        deep = f"{name}.fn" if self.old else name
        q, k, v = self.at(f"{deep}.to_qkv")(self.at(f"{name}.norm")(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (q, k, v))
        mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        mixed = rearrange(mixed, "b h n d -> b n (h d)")
        return self.at(f"{deep}.to_out.0")(mixed) if "to_out" in self.at(deep)._modules else mixed

    def hidden(self, name, x):
        if self.old:
            norm, first, last = f"{name}.norm", f"{name}.fn.net.0", f"{name}.fn.net.3"
        else:
            norm, first, last = f"{name}.net.0", f"{name}.net.1", f"{name}.net.4"
        return self.at(last)(nn.functional.gelu(self.at(first)(self.at(norm)(x))))


def restated(generation, **options):
    """Return a function that makes and saves a network of a generation."""

    def build(folder):
        model = randomize(Restated(generation, **options))
        torch.save(model.state_dict(), folder / "model.pt")
        return Saved(model, folder / "model.pt")

    return build


def installed(folder):
    """Make a network of the package itself; its generation is the newest one's."""
    import vit_pytorch

    model = randomize(
        vit_pytorch.ViT(image_size=32, patch_size=8, num_classes=5, dim=24, depth=2, heads=3, dim_head=8, mlp_dim=40)
    )
    torch.save(model.state_dict(), folder / "model.pt")
    return Saved(model, folder / "model.pt")


def logits(model, images):
    """Run the classifier."""
    return model(images)


def case(generation, what, hints, **options):
    """Return a case of one generation."""
    return Case(
        name=f"vit_pytorch_{generation} {what}",
        format=f"vit_pytorch_{generation}",
        build=restated(generation, **options),
        forward=logits,
        hints=hints,
        img_size=options.get("size", (32, 32)),
    )


CASES = [
    Case(
        name="vit_pytorch_d, the package",
        format="vit_pytorch_d",
        build=installed,
        forward=logits,
        hints={"num_heads": 3, "patch_size": 8},
    )
]
for letter in "abcd":
    known = {"num_heads": 3, "patch_size": 8}
    pools = (
        {"cls": {}, "mean": {}} if letter == "d" else {"cls": {"global_pool": "token"}, "mean": {"global_pool": "avg"}}
    )
    CASES += [case(letter, pool, known | hint, pool=pool) for pool, hint in pools.items()]
    cls = known | pools["cls"]
    CASES += [
        case(letter, "heads of their own width", cls, dim_head=5),
        case(letter, "3 heads of 4 in width 10", cls, dim=10, dim_head=4),
        case(letter, "one head, unprojected", {"in_chans": 3} | pools["cls"], heads=1, dim_head=24),
        case(letter, "oblong", {**cls, "patch_size": (8, 4), "img_size": (32, 16)}, size=(32, 16), patch=(8, 4)),
    ]
