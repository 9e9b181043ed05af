"""Models of transformers for the cases of its formats: made tiny and random, saved as the library's users save them."""

from __future__ import annotations

import torch
from formats_helpers import Saved, randomize

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
TEXT_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def saved(class_name, config_name, *, in_memory=False, dtype=torch.float32, **options):
    """Return a function that makes a model of transformers and saves it.

    Args:
        class_name: of the model.
        config_name: of its configuration.
        in_memory: save `model.state_dict()`, whose names differ from those of `save_pretrained` since version 5.
        dtype: of the weights.
        **options: of the configuration.
    """

    def build(folder):
        import transformers

        config = getattr(transformers, config_name)(attn_implementation="sdpa", **options)
        model = randomize(getattr(transformers, class_name)(config)).to(dtype)
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
    """Run a bare model whose last tokens are normed."""
    return model(images).last_hidden_state


def pooled(model, images):
    """Run a vision tower up to its pooled output."""
    return model(images).pooler_output


def assert_known(ours, theirs):
    """None of our words is unknown to the library's configuration, and it holds each one's value."""
    known = type(theirs)().to_dict()
    for name, value in ours.items():
        if name == "vision_config":
            assert_known(value, theirs.vision_config)
        elif name not in {"architectures", "dtype", "id2label", "label2id"}:
            assert name in known, name
            assert theirs.to_dict()[name] == value, name
