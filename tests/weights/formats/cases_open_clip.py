"""CLIP's image tower in open_clip's names: the library itself, and a restatement for OpenAI's own files."""

from __future__ import annotations

import json
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from formats_helpers import Case, Saved, randomize
from torch import nn

HINTS = {"num_heads": 2, "act_layer": "gelu", "global_pool": "token"}


class Block(nn.Module):
    """A block as `ResidualAttentionBlock`, with torch's own attention."""

    def __init__(self, width, heads, act, *, scaled):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)})
        self.act = act
        self.scaled = scaled
        if scaled:
            self.ls_1, self.ls_2 = (nn.ParameterDict({"gamma": torch.empty(width)}) for _ in range(2))

    def forward(self, x):
        first, second = (self.ls_1["gamma"], self.ls_2["gamma"]) if self.scaled else (1, 1)
        normed = self.ln_1(x)
        x = x + first * self.attn(normed, normed, normed, need_weights=False)[0]
        return x + second * self.mlp["c_proj"](self.act(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    """The image tower; epsilon is torch's 1e-5."""

    def __init__(self, *, width=32, heads=2, size=32, patch=8, out=6, act=F.gelu, scaled=False, pre=True, pool="tok"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width) if pre else nn.Identity()
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(Block(width, heads, act, scaled=scaled) for _ in range(2))}
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, out))
        self.pool = pool

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        x = self.ln_post(x[:, 0] if self.pool == "tok" else x[:, 1:].mean(1))
        return x @ self.proj


class Whole(nn.Module):
    """The tower beside what belongs to text; OpenAI's files carry three sizes, too."""

    def __init__(self, visual, *, sizes=False):
        super().__init__()
        self.visual = visual
        self.positional_embedding = nn.Parameter(torch.empty(7, 8))
        self.text_projection = nn.Parameter(torch.empty(8, 6))
        self.logit_scale = nn.Parameter(torch.empty([]))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([Block(8, 2, F.gelu, scaled=False)])})
        self.token_embedding = nn.Embedding(11, 8)
        self.ln_final = nn.LayerNorm(8)
        for name, value in {"input_resolution": 32, "context_length": 7, "vocab_size": 11}.items() if sizes else ():
            self.register_buffer(name, torch.tensor(value))


def quick_gelu(x):
    """Return OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def saved(make, select=lambda model: model.state_dict()):
    """Return a function that makes a model and saves a state dict of it."""

    def build(folder):
        model = randomize(make())
        torch.save(select(model), folder / "model.pt")
        return Saved(model, folder / "model.pt")

    return build


def scripted(folder):
    """Save a TorchScript archive in half precision, as OpenAI did."""
    model = randomize(Whole(Tower(width=64, heads=1, act=quick_gelu), sizes=True)).half()
    torch.jit.save(torch.jit.script(script_module(model)), folder / "ViT-tiny.pt")
    return Saved(model, folder / "ViT-tiny.pt")


def script_module(module):
    """Return a module of the same tree and tensors whose forward pass TorchScript can compile."""
    copy = Shell()
    for name, value in module.named_parameters(recurse=False):
        copy.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
    for name, value in module.named_buffers(recurse=False):
        copy.register_buffer(name, value)
    for name, child in module.named_children():
        copy.add_module(name, script_module(child))
    return copy


class Shell(nn.Module):
    """A module that does nothing; its tree is what counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def pooled(model, images):
    """Run the tower, which whole models hold as `visual`."""
    return getattr(model, "visual", model)(images)


def from_library(vision, *, with_config=False, prefix=True, quick=False):
    """Return a function that makes a CLIP of open_clip and saves it as its hub folders hold it, or a bare file."""

    def build(folder):
        import open_clip

        text = {"context_length": 7, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1}
        config = {"embed_dim": 6, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}
        model = randomize(open_clip.CLIP(**config))
        state = model.state_dict() if prefix else model.visual.state_dict()
        if not with_config:
            torch.save(
                {"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "epoch_1.pt"
            )
            return Saved(model.visual, folder / "epoch_1.pt")
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
        return Saved(model.visual, folder)

    return build


def trunk_inside(folder, *, projected=True):
    """Save a network of timm's as open_clip holds it, between a text tower and a projection."""
    import timm

    visual = nn.Module()
    visual.trunk = timm.create_model("test_vit3", num_classes=0, img_size=32)
    visual.head = nn.ModuleDict({"proj": nn.Linear(visual.trunk.num_features, 6, bias=False)} if projected else {})
    whole = randomize(Whole(visual))
    torch.save(whole.state_dict(), folder / "model.pt")
    return Saved(whole, folder / "model.pt")


def trunk_forward(model, images):
    """Run trunk and projection."""
    features = model.visual.trunk(images)
    return model.visual.head["proj"](features) if "proj" in model.visual.head else features


SMALL = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 3.0}
TRUNK_HINTS = {"num_heads": 3, "norm_eps": 1e-6, "act_layer": "gelu", "pool_include_prefix": True, "img_size": (32, 32)}
open_clip_case = partial(Case, format="open_clip", forward=pooled)

CASES = [
    open_clip_case(name="open_clip whole", build=saved(lambda: Whole(Tower())), hints=HINTS),
    open_clip_case(name="open_clip tower", build=saved(Tower), hints=HINTS),
    open_clip_case(name="open_clip LayerScale", build=saved(lambda: Whole(Tower(scaled=True))), hints=HINTS),
    open_clip_case(
        name="open_clip no_ln_pre, mean, then norm",
        build=saved(lambda: Whole(Tower(pre=False, pool="avg"))),
        hints={**HINTS, "global_pool": "avg"},
    ),
    Case(
        name="open_clip_timm, projected",
        format="open_clip_timm",
        build=trunk_inside,
        forward=trunk_forward,
        hints=TRUNK_HINTS,
    ),
    Case(
        name="open_clip_timm, not projected",
        format="open_clip_timm",
        build=partial(trunk_inside, projected=False),
        forward=trunk_forward,
        compare="pooled",
        hints=TRUNK_HINTS,
    ),
    Case(
        name="openai_clip state dict",
        format="openai_clip",
        build=saved(lambda: Whole(Tower(width=64, heads=1, act=quick_gelu), sizes=True)),
        forward=pooled,
    ),
    Case(name="openai_clip TorchScript, fp16", format="openai_clip", build=scripted, forward=pooled),
]
CASES += [
    open_clip_case(name="open_clip library folder", build=from_library(SMALL, with_config=True)),
    open_clip_case(
        name="open_clip library folder, quick_gelu, LayerScale",
        build=from_library({**SMALL, "ls_init_value": 0.1}, with_config=True, quick=True),
    ),
    open_clip_case(
        name="open_clip library folder, CLIPA",
        build=from_library(
            {**SMALL, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, with_config=True
        ),
    ),
    open_clip_case(
        name="open_clip library folder, norm, then mean",
        build=from_library({**SMALL, "pool_type": "avg"}, with_config=True),
    ),
    open_clip_case(name="open_clip library training file", build=from_library(SMALL), hints=HINTS),
    open_clip_case(name="open_clip library tower", build=from_library(SMALL, prefix=False), hints=HINTS),
    Case(
        name="open_clip library folder, timm inside",
        format="open_clip_timm",
        forward=pooled,
        build=from_library({"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}, with_config=True),
        img_size=(160, 160),
    ),
]
