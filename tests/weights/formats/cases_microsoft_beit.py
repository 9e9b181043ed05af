"""BEiT as Microsoft released it: timm's network is the same one, with the indices as buffers of the file."""

from __future__ import annotations

import torch
from formats_helpers import Case, Saved, randomize


def saved(*, shared=False, **options):
    """Return a function that makes a BEiT and saves it as the release is: under "model", with tables of indices."""

    def build(folder):
        from timm.models.beit import Beit, checkpoint_filter_fn

        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "init_values": 0.1}
        kind = {"use_abs_pos_emb": False, f"use_{'shared_' if shared else ''}rel_pos_bias": True}
        model = randomize(Beit(**sizes, **kind, **options))
        state = dict(model.state_dict())
        for name in [name for name in state if name.endswith("_table")]:
            module = model.get_submodule(name.rpartition(".")[0])
            state[name.replace("_bias_table", "_index")] = module.relative_position_index
        if shared:
            state |= {
                "mask_token": torch.rand(1, 1, 32),
                "lm_head.weight": torch.rand(7, 32),
                "lm_head.bias": torch.rand(7),
            }
        torch.save({"model": state}, folder / "beit.pth")
        reference = Beit(**sizes, **kind, **options)
        theirs = checkpoint_filter_fn({"model": state}, reference)  # timm's reader keeps what pre-training adds
        reference.load_state_dict({key: value for key, value in theirs.items() if key in model.state_dict()})
        return Saved(reference.eval(), folder / "beit.pth")

    return build


def case(name, *, tokens=False, back="bitwise", **options):
    """Return a case of this family."""
    return Case(
        name=f"microsoft_beit {name}",
        format="microsoft_beit",
        build=saved(**options),
        forward=(lambda model, images: model.forward_features(images))
        if tokens
        else (lambda model, images: model(images)),
        compare="tokens" if tokens else "logits",
        back=back,
    )


CASES = [
    case("fine-tuned", num_classes=5),
    case("fine-tuned on the class token", num_classes=5, global_pool="token"),
    case("masked pre-training", tokens=True, back="functional", shared=True, num_classes=0, use_fc_norm=False),
]
