"""Google's `.npz` files: timm's own reader of them is the reference where it knows the flavour, flax in few lines else.

Files are written with `numpy.savez`, as vit_jax and big_vision do, from random arrays under their names.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from formats_helpers import Case, Saved
from torch import nn

WIDTH, HEADS, HIDDEN, DEPTH, PATCH, GRID, CLASSES = 32, 4, 48, 2, 8, 4, 5
EACH = WIDTH // HEADS
RELEASED, LINEN = (1, 2, 3), (0, 1, 0)  # numbers of attention, second norm and MLP


def arrays(*, numbers=LINEN, positions="pos_embedding", cls=True, head=True, pool=False, rows=None):
    """Return random arrays in the shapes and under the names of flax's ViT."""
    random = np.random.default_rng(0)
    found = {}

    def add(name, *shape):
        found[name] = 0.3 * random.standard_normal(shape, dtype=np.float32)

    def layer(name, *shape, bias):
        add(f"{name}/kernel", *shape)
        add(f"{name}/bias", *bias)

    def norm(name):
        add(f"{name}/scale", WIDTH)
        add(f"{name}/bias", WIDTH)

    def attention(name):
        for part in ("query", "key", "value"):
            layer(f"{name}/{part}", WIDTH, HEADS, EACH, bias=(HEADS, EACH))
        layer(f"{name}/out", HEADS, EACH, WIDTH, bias=(WIDTH,))

    def mlp(name):
        layer(f"{name}/Dense_0", WIDTH, HIDDEN, bias=(HIDDEN,))
        layer(f"{name}/Dense_1", HIDDEN, WIDTH, bias=(WIDTH,))

    if cls:
        add("cls", 1, 1, WIDTH)
    layer("embedding", PATCH, PATCH, 3, WIDTH, bias=(WIDTH,))
    add(positions, 1, rows or GRID * GRID + cls, WIDTH)
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        norm(f"{block}/LayerNorm_0")
        attention(f"{block}/MultiHeadDotProductAttention_{numbers[0]}")
        norm(f"{block}/LayerNorm_{numbers[1]}")
        mlp(f"{block}/MlpBlock_{numbers[2]}")
    norm("Transformer/encoder_norm")
    if pool:
        add("MAPHead_0/probe", 1, 1, WIDTH)
        attention("MAPHead_0/MultiHeadDotProductAttention_0")
        norm("MAPHead_0/LayerNorm_0")
        mlp("MAPHead_0/MlpBlock_0")
    if head:
        layer("head", WIDTH, CLASSES, bias=(CLASSES,))
    return found


def scanned(found):
    """Stack the blocks' arrays, as big_vision's `scan` option does."""
    first = "Transformer/encoderblock_0/"
    rest = {name: value for name, value in found.items() if "encoderblock_" not in name}
    return rest | {
        name.replace("encoderblock_0", "encoderblock"): np.stack(
            [found[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(DEPTH)]
        )
        for name in found
        if name.startswith(first)
    }


class Flax(nn.Module):
    """The network that flax makes of the arrays; einsums say which axis is which."""

    def __init__(self, found, *, numbers=LINEN):
        super().__init__()
        self.numbers = numbers
        self.names = {name: name.replace("/", "__") for name in found}
        for name, value in found.items():
            self.register_buffer(self.names[name], torch.from_numpy(value).float())

    def __getitem__(self, name):
        return getattr(self, self.names[name])

    def dense(self, name, x):
        return x @ self[f"{name}/kernel"] + self[f"{name}/bias"]

    def norm(self, name, x):
        return F.layer_norm(x, (WIDTH,), self[f"{name}/scale"], self[f"{name}/bias"], eps=1e-6)

    def attention(self, name, x, y):
        def project(part, z):
            return torch.einsum("btd,dhk->bthk", z, self[f"{name}/{part}/kernel"]) + self[f"{name}/{part}/bias"]

        q, k, v = project("query", x), project("key", y), project("value", y)
        weights = torch.einsum("bqhk,bthk->bhqt", q / EACH**0.5, k).softmax(-1)
        mixed = torch.einsum("bhqt,bthk->bqhk", weights, v)
        return torch.einsum("bqhk,hkd->bqd", mixed, self[f"{name}/out/kernel"]) + self[f"{name}/out/bias"]

    def mlp(self, name, x):
        return self.dense(f"{name}/Dense_1", F.gelu(self.dense(f"{name}/Dense_0", x), approximate="tanh"))

    def forward(self, images):
        x = torch.einsum(
            "bcyhxw,hwcd->byxd",
            images.unflatten(3, (GRID, PATCH)).unflatten(2, (GRID, PATCH)),
            self["embedding/kernel"],
        )
        x = x.flatten(1, 2) + self["embedding/bias"]
        table = self[next(name for name in self.names if name.endswith("pos_embedding"))]
        has_cls = "cls" in self.names
        if has_cls and table.shape[1] == GRID * GRID:
            x = torch.cat([self["cls"].expand(len(x), -1, -1), x + table], 1)
        elif has_cls:
            x = torch.cat([self["cls"].expand(len(x), -1, -1), x], 1) + table
        else:
            x = x + table
        for i in range(DEPTH):
            block = f"Transformer/encoderblock_{i}"
            attention, second_norm, mlp = self.numbers
            y = self.norm(f"{block}/LayerNorm_0", x)
            x = x + self.attention(f"{block}/MultiHeadDotProductAttention_{attention}", y, y)
            x = x + self.mlp(f"{block}/MlpBlock_{mlp}", self.norm(f"{block}/LayerNorm_{second_norm}", x))
        x = self.norm("Transformer/encoder_norm", x)
        if "MAPHead_0/probe" in self.names:
            probe = self["MAPHead_0/probe"].expand(len(x), -1, -1)
            x = self.attention("MAPHead_0/MultiHeadDotProductAttention_0", probe, x)
            x = (x + self.mlp("MAPHead_0/MlpBlock_0", self.norm("MAPHead_0/LayerNorm_0", x)))[:, 0]
        else:
            x = x[:, 0] if has_cls else x.mean(1)
        return self.dense("head", x) if "head/kernel" in self.names else x


def saved(*, prefix="", change=lambda found: found, beside=None, **options):
    """Return a function that saves arrays and gives flax's network of them."""

    def build(folder):
        found = arrays(**options)
        np.savez(
            folder / "model.npz", **{prefix + name: value for name, value in change(found).items()}, **beside or {}
        )
        return Saved(Flax(found, numbers=options.get("numbers", LINEN)), folder / "model.npz")

    return build


def by_timm(*, prefix="", change=lambda found: found, network=None, **options):
    """Return a function that saves arrays and gives the network that timm's own reader fills with them."""

    def build(folder):
        import timm

        found = change(arrays(**options))
        path = folder / "model.npz"
        np.savez(path, **{prefix + name: value for name, value in found.items()})
        has_cls = options.get("cls", True)
        model = timm.models.VisionTransformer(
            img_size=GRID * PATCH,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            mlp_ratio=HIDDEN / WIDTH,
            num_classes=CLASSES if options.get("head", True) else 0,
            class_token=has_cls,
            global_pool="map" if options.get("pool") else "token" if has_cls else "avg",
            fc_norm=False,
            no_embed_class=has_cls and options.get("rows") == GRID * GRID,
            act_layer="gelu_tanh",
        )
        model.load_pretrained(str(path))
        return Saved(model.eval(), path)

    return build


def sincos2d(*, cls=False):
    """Return a function that saves big_vision's arrays without positions, whose network has them from the formula."""

    def build(folder):
        found = arrays(cls=cls)
        np.savez(folder / "model.npz", **{f"params/{k}": value for k, value in found.items() if k != "pos_embedding"})
        table = np.empty((GRID, GRID, WIDTH))
        for y, x, k in np.ndindex(GRID, GRID, WIDTH // 4):
            omega = 10_000.0 ** -(k / (WIDTH // 4 - 1))
            table[y, x, k :: WIDTH // 4] = np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)
        return Saved(Flax(found | {"pos_embedding": table.reshape(1, -1, WIDTH)}), folder / "model.npz")

    return build


def as_bfloat16(found):
    """Round to what bfloat16 holds, so that both sides compute with the same values."""
    return {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in found.items()}


def bfloat16(folder):
    """Save arrays as JAX saves bfloat16: two bytes without a type."""
    found = as_bfloat16(arrays())
    halves = {name: (value.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, value in found.items()}
    np.savez(folder / "model.npz", **{f"params/{name}": value for name, value in halves.items()})
    return Saved(Flax(found), folder / "model.npz")


def run(model, images):
    """Run either reference."""
    return model(images)


TABLE = "Transformer/posembed_input/pos_embedding"
SIGLIP = {"cls": False, "head": False, "pool": True}
TEXT = {"params/t": np.ones(1, np.float32), "params/txt/Embed_0/embedding": np.ones((3, 4), np.float32)}
STATE = {"opt/state/step": np.ones(1, np.int32)}
jax = partial(Case, format="jax", forward=run)

CASES = [
    jax(name="jax vit_jax released", build=saved(numbers=RELEASED, positions=TABLE)),
    jax(name="jax vit_jax released, by timm", build=by_timm(numbers=RELEASED, positions=TABLE)),
    jax(
        name="jax vit_jax with optimizer",
        build=saved(numbers=RELEASED, positions=TABLE, prefix="opt/target/", beside=STATE),
    ),
    jax(name="jax vit_jax linen", build=saved(positions=TABLE)),
    jax(name="jax vit_jax mean", build=saved(positions=TABLE, cls=False)),
    jax(name="jax big_vision", build=saved(prefix="params/")),
    jax(name="jax big_vision, by timm", build=by_timm(prefix="params/")),
    jax(name="jax big_vision, own class position", build=saved(prefix="params/", rows=GRID * GRID)),
    jax(name="jax big_vision, own class position, by timm", build=by_timm(prefix="params/", rows=GRID * GRID)),
    jax(name="jax big_vision mean", build=saved(prefix="params/", cls=False)),
    jax(name="jax big_vision mean, by timm", build=by_timm(cls=False)),
    jax(name="jax big_vision scan", build=saved(prefix="params/", change=scanned)),
    jax(name="jax big_vision scan, by timm", build=by_timm(change=scanned)),
    jax(name="jax SigLIP", build=saved(prefix="params/img/", beside=TEXT, **SIGLIP), compare="pooled"),
    jax(name="jax SigLIP, by timm", build=by_timm(prefix="params/img/", **SIGLIP), compare="pooled"),
    jax(name="jax pooling by attention, with head", build=saved(prefix="params/", cls=False, pool=True)),
    jax(name="jax bfloat16", build=bfloat16),
    # The table is made in float32, from float32 frequencies; written, it is a learned one.
    *(
        jax(
            name=f"jax big_vision sincos2d{', class token' if cls else ''}",
            build=sincos2d(cls=cls),
            hints={"img_size": (32, 32)},
            tolerance=1e-5,
            back="functional",
        )
        for cls in (False, True)
    ),
]
