"""torchvision's ViT, as `torch.save(model.state_dict())` writes it, in both spellings of the MLP."""

from __future__ import annotations

import torch
from formats_helpers import Case, Saved, randomize


def saved(*, released=False):
    """Return a function that makes a ViT of torchvision and saves it; the released files have older MLP names."""

    def build(folder):
        from torchvision.models import VisionTransformer

        model = randomize(
            VisionTransformer(
                image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
            )
        )
        state = model.state_dict()
        if released:
            renames = (("mlp.0", "mlp.linear_1"), ("mlp.3", "mlp.linear_2"))
            state = {
                next((name.replace(new, old) for new, old in renames if new in name), name): value
                for name, value in state.items()
            }
            model.load_state_dict({**state}, strict=True)  # the library takes them too
        torch.save(state, folder / "vit.pth")
        return Saved(model, folder / "vit.pth")

    return build


def logits(model, images):
    """Run the classifier."""
    return model(images)


CASES = [
    Case(name="torchvision", format="torchvision", build=saved(), forward=logits, hints={"num_heads": 4}),
    Case(
        name="torchvision, released names",
        format="torchvision",
        build=saved(released=True),
        forward=logits,
        hints={"num_heads": 4},
    ),
]
