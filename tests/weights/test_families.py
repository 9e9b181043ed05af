"""Loading for the families beyond the plain ViT: rotary and relative positions, by name and from folders."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from weights_helpers import same

from vit_finetune import (
    PreprocessSpec,
    create_model,
    export_model_folder,
    from_pretrained,
    inspect_checkpoint,
    load_pretrained,
)

NAMES = (
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "eva02_base_patch16_clip_224",
    "vit_base_patch16_rope_mixed_224",
    "vit_pe_core_tiny_patch16_384",
    "beit_base_patch16_224",
)


def small(name, *, seed, **overrides):
    """Return a small network of a family with random weights."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 64, "num_classes": 3}
    return create_model(name, **{**sizes, **overrides})


@pytest.mark.parametrize("name", NAMES)
def test_load_pretrained__takes_a_familys_own_names(name, tmp_path):
    """Weights under timm's names load bitwise, though other layouts share some of those names."""
    source, target = small(name, seed=0), small(name, seed=1)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    report = load_pretrained(target, tmp_path / "a.safetensors", head="keep")
    assert same(source, target)
    assert not report.dropped


@pytest.mark.parametrize("name", NAMES)
def test_from_pretrained__builds_a_family_from_its_folder(name, tmp_path):
    """A model folder tells the family; inspection says timm and names it."""
    source = small(name, seed=0)
    spec = PreprocessSpec().with_size(64, 64)
    export_model_folder(source, tmp_path / "m", preprocess=spec, class_names=["a", "b", "c"], architecture=name)
    model, report = from_pretrained(tmp_path / "m")
    assert type(model) is type(source)
    assert same(model, source)
    assert report.class_names == ("a", "b", "c")
    found = inspect_checkpoint(tmp_path / "m")
    assert (found.format, found.architecture) == ("timm", name)


def test_load_pretrained__resizes_bias_tables_as_timm_does():
    """BEiT at another picture size: each block's table is resized, as timm resizes it on loading."""
    import timm
    from timm.models.beit import checkpoint_filter_fn

    source = small("beit_base_patch16_224", seed=0, img_size=64)
    target = small("beit_base_patch16_224", seed=1, img_size=96)
    report = load_pretrained(target, source.state_dict())
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 96, "num_classes": 3}
    theirs = checkpoint_filter_fn(dict(source.state_dict()), timm.create_model("beit_base_patch16_224", **sizes))
    name = "blocks.1.attn.relative_position_bias_table"
    torch.testing.assert_close(target.state_dict()[name], theirs[name], atol=1e-6, rtol=1e-5)
    assert report.resampled[name] == "grid 4x4 -> 6x6, geometric"
