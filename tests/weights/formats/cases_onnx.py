"""ONNX graphs of torch's TorchScript exporter: each library's weights come back out of them, to the last bit.

Linear weights have no name there and are transposed; DINOv2's positions are in two pieces; `twins` gives two norms the
same values, of which the exporter stores one.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from formats_helpers import Case, Saved, randomize

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


class Named(torch.nn.Module):
    """What is exported, which gives one tensor."""

    def __init__(self, model, *, tokens=False):
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, images):
        out = self.model(images)
        return out.last_hidden_state if self.tokens else getattr(out, "logits", out)


def exported(make, *, tokens=False, twins=False):
    """Return a function that makes a model and exports it."""

    def build(folder):
        pytest.importorskip("onnx")
        model = randomize(make())
        if twins:
            norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
            norms[1].load_state_dict(norms[0].state_dict())
        file = folder / "model.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter is deprecated; its files stay
            torch.onnx.export(Named(model, tokens=tokens), (torch.randn(1, 3, 32, 32),), str(file), dynamo=False)
        return Saved(Named(model, tokens=tokens), file)

    return build


def hf(name, config, **options):
    """Return a function that makes a model of transformers."""

    def make():
        import transformers

        return getattr(transformers, name)(
            getattr(transformers, config)(**SIZES, attn_implementation="sdpa", **options)
        )

    return make


def timm_vit():
    """Return a network of timm's."""
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)


def torchvision_vit():
    """Return a network of torchvision's."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5)


def case(layout, make, *, compare="logits", tokens=False, twins=False, **hints):
    """Return a case; a graph has no configuration, so all that weights don't tell is hinted."""
    return Case(
        name=f"{layout}, onnx",
        format=layout,
        build=exported(make, tokens=tokens, twins=twins),
        forward=lambda model, images: model(images),
        compare=compare,
        hints={"num_heads": 4, **hints},
        back="one-way",
    )


KNOWN = {"norm_eps": 1e-6, "act_layer": "gelu"}
CASES = [
    case("hf_vit", hf("ViTForImageClassification", "ViTConfig", num_labels=5), norm_eps=1e-12, act_layer="gelu"),
    case("hf_dinov2", hf("Dinov2Model", "Dinov2Config"), compare="tokens", tokens=True, twins=True, **KNOWN),
    case("timm", timm_vit, global_pool="token", **KNOWN),
    case("torchvision", torchvision_vit),
]
