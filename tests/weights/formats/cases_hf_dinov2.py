"""transformers' DINOv2: plain and gated, on disk and in memory."""

from __future__ import annotations

import torch
from formats_helpers import Case, Saved, randomize


def saved(class_name, *, in_memory=False, of_the_token=False, **options):
    """Return a function that makes a DINOv2 of transformers and saves it; its head may read the class token alone."""

    def build(folder):
        import transformers

        config = transformers.Dinov2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            attn_implementation="sdpa",
            **options,
        )
        model = randomize(getattr(transformers, class_name)(config))
        if of_the_token:
            torch.nn.init.zeros_(model.classifier.weight[:, 32:])
        model.save_pretrained(folder)
        if in_memory:
            (folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return Saved(model, folder)

    return build


def tokens(model, images):
    """Run the backbone, which a classifier holds under its own name."""
    return getattr(model, "dinov2", model)(images).last_hidden_state


def logits(model, images):
    """Run a classifier."""
    return model(images).logits


CASES = [
    Case(name="hf_dinov2", format="hf_dinov2", build=saved("Dinov2Model"), forward=tokens, compare="tokens"),
    Case(
        name="hf_dinov2 classifier set aside",
        format="hf_dinov2",
        build=saved("Dinov2ForImageClassification", num_labels=3),
        forward=tokens,
        compare="tokens",
    ),
    Case(
        name="hf_dinov2 classifier of the class token",
        format="hf_dinov2",
        build=saved("Dinov2ForImageClassification", num_labels=3, of_the_token=True),
        forward=logits,
    ),
    Case(
        name="hf_dinov2 gated",
        format="hf_dinov2",
        build=saved("Dinov2Model", use_swiglu_ffn=True),
        forward=tokens,
        compare="tokens",
    ),
    Case(
        name="hf_dinov2 gated, in memory",
        format="hf_dinov2",
        build=saved("Dinov2Model", in_memory=True, use_swiglu_ffn=True),
        forward=tokens,
        compare="tokens",
    ),
]
