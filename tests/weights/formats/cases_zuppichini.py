"""The notebook ViT of F. S. Zuppichini, restated revision by revision: four ways to pack and to scale attention."""

from __future__ import annotations

import torch
from einops import rearrange
from formats_helpers import Case, Saved, randomize
from restated_helpers import Named
from torch import nn


class Restated(Named):
    """The notebook's network; `scaling` is what a revision does with the scores before and after the softmax."""

    def __init__(self, *, packed, scaling, dim=24, depth=2, heads=3, classes=5):
        parts = {"0.cls_token": (1, 1, dim), "0.projection.0": nn.Conv2d(3, dim, 8, 8), "0.positions": (17, dim)}
        for i in range(depth):
            attention, hidden = f"1.{i}.0.fn", f"1.{i}.1.fn"
            layers = {"qkv": 3 * dim} if packed else dict.fromkeys(("keys", "queries", "values"), dim)
            parts[f"{attention}.0"] = nn.LayerNorm(dim)
            parts |= {f"{attention}.1.{name}": nn.Linear(dim, rows) for name, rows in layers.items()}
            parts |= {
                f"{attention}.1.projection": nn.Linear(dim, dim),
                f"{hidden}.0": nn.LayerNorm(dim),
                f"{hidden}.1.0": nn.Linear(dim, 4 * dim),
                f"{hidden}.1.3": nn.Linear(4 * dim, dim),
            }
        super().__init__({**parts, "2.1": nn.LayerNorm(dim), "2.2": nn.Linear(dim, classes)})
        self.packed, self.scaling, self.depth, self.heads = packed, scaling, depth, heads

    def forward(self, images):
        x = rearrange(self.at("0.projection.0")(images), "b e h w -> b (h w) e")
        start = self.at("0")
        x = torch.cat([start.cls_token.expand(len(x), -1, -1), x], dim=1) + start.positions
        for i in range(self.depth):
            x = x + self.attention(self.at(f"1.{i}.0.fn.1"), self.at(f"1.{i}.0.fn.0")(x))
            hidden = self.at(f"1.{i}.1.fn.1.0")(self.at(f"1.{i}.1.fn.0")(x))
            x = x + self.at(f"1.{i}.1.fn.1.3")(nn.functional.gelu(hidden))
        return self.at("2.2")(self.at("2.1")(x.mean(dim=1)))

    def attention(self, layers, x):
        if self.packed:
            q, k, v = rearrange(layers.qkv(x), "b n (h d qkv) -> qkv b h n d", h=self.heads, qkv=3)
        else:
            parts = (layers.queries(x), layers.keys(x), layers.values(x))
            q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        before, after = {
            "before": (q.shape[-1] ** -0.5, 1),
            "after": (1, q.shape[-1] ** -0.5),
            "by width": (1, x.shape[-1] ** -0.5),
        }[self.scaling]
        weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * before).softmax(dim=-1) * after
        return layers.projection(rearrange(weights @ v, "b h n d -> b n (h d)"))


def saved(**options):
    """Return a function that makes and saves a network."""

    def build(folder):
        model = randomize(Restated(**options))
        torch.save(model.state_dict(), folder / "vit.pt")
        return Saved(model, folder / "vit.pt")

    return build


def logits(model, images):
    """Run the classifier."""
    return model(images)


def case(name, what="", *, folded, detected=True, **options):
    """Return a case; what is folded into the weights is rounded to float32 once, and again on the way back."""
    return Case(
        name=name + what,
        format=name,
        build=saved(**options),
        forward=logits,
        hints={"num_heads": options.get("heads", 3)},
        tolerance=1e-7 if folded else 1e-10,
        back="functional" if folded else "bitwise",
        detected=detected,
    )


POWERS = {"dim": 16, "heads": 4}  # widths whose roots are powers of two, so that folding rounds nothing
CASES = [
    case("zuppichini", packed=True, scaling="by width", folded=True),
    case("zuppichini_separate", packed=False, scaling="before", folded=False, detected=False),
    case("zuppichini_separate_scaled_after", packed=False, scaling="after", folded=True, detected=False),
    case("zuppichini_separate_scaled_by_width", packed=False, scaling="by width", folded=True, detected=False),
    case("zuppichini", ", roots of two", packed=True, scaling="by width", folded=False, **POWERS),
]
