"""The tables: every name consumed once, whatever is left over listed, one fingerprint each, and invertible."""

from __future__ import annotations

import pytest
import torch
from weights_helpers import small_dinov2, tiny

from vit_finetune.common.errors import RequestError
from vit_finetune.models import ViTConfig, list_models, variant_config
from vit_finetune.weights import detect_format, load_pretrained
from vit_finetune.weights.conversion import to_timm
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.rules import Format, Rule, two_sides


def test_detect_format__every_timm_network_is_timm():
    """All registered plain networks carry timm's fingerprint and no other."""
    for name in (name for name in list_models() if isinstance(variant_config(name), ViTConfig)):
        heads = 2 if "dinov2" not in name else 4
        model = tiny(name, depth=1, num_heads=heads, img_size=64)
        assert detect_format(model.state_dict()) == "timm", name


@pytest.mark.parametrize(
    "names",
    [
        ["conv1.weight", "fc.bias"],
        [],
        ["patch_embed.proj.weight", "blocks.0.attn.relative_position_index"],
        ["patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"],
        ["embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layernorm_before.weight"],
        ["dinov2_with_registers.embeddings.patch_embeddings.projection.weight",
         "dinov2_with_registers.encoder.layer.0.layer_scale1.lambda1",
         "dinov2_with_registers.embeddings.register_tokens"],
    ],
)  # fmt: skip
def test_detect_format__others_are_not_taken_for_known_ones(names):
    """Layouts that share some names but mean something else are refused, naming what is known."""
    with pytest.raises(RequestError, match=r"in no known ViT layout \(known: timm, hf_vit, "):
        detect_format({name: torch.zeros(1) for name in names})


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("with_head", [False, True])
def test_hf_dinov2__equals_transformers(tmp_path, swiglu, with_head):
    """A folder that transformers wrote gives transformers' tokens in our network."""
    theirs = small_dinov2(swiglu=swiglu, with_head=with_head)
    theirs.save_pretrained(tmp_path)
    name = "vit_giant_patch14_dinov2" if swiglu else "vit_small_patch14_dinov2"
    ratio = {"mlp_ratio": 88 * 2 / 32} if swiglu else {}  # transformers rounds the gated width up to 88
    ours = tiny(name, seed=1, img_size=56, **ratio)
    report = load_pretrained(ours, tmp_path)
    images = torch.randn(2, 3, 56, 56)
    backbone = theirs.dinov2 if with_head else theirs
    with torch.no_grad():
        expected = backbone(images).last_hidden_state
        torch.testing.assert_close(ours.forward_features(images), expected, atol=2e-6, rtol=1e-5)
    prefix = "dinov2." if with_head else ""
    heads = ("classifier.weight", "classifier.bias") if with_head else ()
    assert set(report.dropped) == {f"{prefix}embeddings.mask_token", *heads}
    assert detect_format(theirs.state_dict() if not swiglu else read(tmp_path)) == "hf_dinov2"


def read(folder):
    """Return the names that transformers wrote, which are not the names it uses in memory."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_to_timm__left_over_and_incomplete_are_listed():
    """A name without a rule and a group without a member are listed together."""
    tensors = {
        "encoder.layer.0.attention.attention.query.weight": torch.zeros(4, 4),
        "encoder.layer.0.attention.attention.key.weight": torch.zeros(4, 4),
        "encoder.layer.0.attention.surprise": torch.zeros(4),
    }
    with pytest.raises(RequestError) as caught:
        to_timm(tensors, FORMATS["hf_dinov2"])
    message = str(caught.value)
    assert "1 without a rule: encoder.layer.0.attention.surprise" in message
    assert "1 incomplete: blocks.0.attn.qkv.weight (found only encoder.layer.0.attention.attention.query" in message


def test_to_timm__parts_of_different_shapes():
    """Queries, keys and values of different widths can't become one matrix."""
    tensors = {
        f"encoder.layer.0.attention.attention.{part}.bias": torch.zeros(size)
        for part, size in (("query", 4), ("key", 4), ("value", 6))
    }
    with pytest.raises(RequestError, match=r"blocks\.0\.attn\.qkv\.bias have different shapes"):
        to_timm(tensors, FORMATS["hf_dinov2"])


def test_to_timm__two_names_for_one_place():
    """A file that names one tensor in two ways is refused rather than one of them taken in silence."""
    layout = Format(name="x", rules=(Rule("a", "z"), Rule("b", "z")), present=("a",))
    with pytest.raises(RequestError, match="two tensors for z: a, b"):
        to_timm({"a": torch.zeros(1), "b": torch.ones(1)}, layout)


def test_two_sides__long_lists_are_counted():
    """Hundreds of names stay one readable line."""
    text = two_sides([f"a{i}" for i in range(100)], [], "only in the file", "only in the model")
    assert text.startswith("100 only in the file: a0, a1,")
    assert text.endswith("and 92 more")
