"""transformers' ViT, MSN and MAE: on disk, and as `torch.save(model.state_dict())` writes them."""

from __future__ import annotations

import torch
from formats_helpers import Case, Saved, randomize

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def saved(class_name, config_name, *, in_memory=False, **options):
    """Return a function that makes a model of transformers and saves it, on disk or by its names in memory."""

    def build(folder):
        import transformers

        config = getattr(transformers, config_name)(**SIZES, attn_implementation="sdpa", **options)
        model = randomize(getattr(transformers, class_name)(config))
        model.save_pretrained(folder)
        if in_memory:
            (folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return Saved(model, folder)

    return build


def logits(model, images):
    """Run a classifier."""
    return model(images).logits


def tokens(model, images):
    """Run a bare model."""
    return model(images).last_hidden_state


def mae_tokens(model, images):
    """Run MAE's encoder on all patches in their own order, as at ratio 0 it would shuffle them."""
    noise = torch.arange(16.0)[None].expand(len(images), -1)
    return model.vit(images, noise=noise).last_hidden_state


CASES = [
    Case(
        name="hf_vit classifier",
        format="hf_vit",
        build=saved("ViTForImageClassification", "ViTConfig", num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_vit classifier, in memory",
        format="hf_vit",
        build=saved("ViTForImageClassification", "ViTConfig", in_memory=True, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_vit backbone, no qkv bias, tanh",
        format="hf_vit",
        build=saved("ViTModel", "ViTConfig", qkv_bias=False, hidden_act="gelu_pytorch_tanh"),
        forward=tokens,
        compare="tokens",
    ),
    Case(
        name="hf_vit MSN",
        format="hf_vit",
        build=saved("ViTMSNForImageClassification", "ViTMSNConfig", num_labels=3),
        forward=logits,
    ),
    Case(
        name="hf_vit MAE with decoder",
        format="hf_vit",
        build=saved(
            "ViTMAEForPreTraining",
            "ViTMAEConfig",
            mask_ratio=0.0,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
        ),
        forward=mae_tokens,
        compare="tokens",
    ),
]
