"""What can't be converted between our network and the walk-throughs', each with the reason and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.models import VisionTransformer, ViTConfig
from vit_finetune.weights import convert_state_dict, detect_format, from_pretrained
from vit_finetune.weights.conversion import from_timm, to_timm
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.formats.sincos import sincos_table

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}
UNBIASED = {"qkv_bias": False, "norm_eps": 1e-5}
NORMED = {**UNBIASED, "patch_norm_in": True, "embed_norm": True}
OVER_ALL = {"global_pool": "avg", "fc_norm": True, "pool_include_prefix": True, "norm_eps": 1e-5}


def weights(**fields):
    """Return random weights of a small network and its config."""
    config = ViTConfig.from_mapping({**SMALL, **fields})
    return VisionTransformer(config).state_dict(), config


class BlockNotebook(nn.Module):
    """The lecture notebook's network by its names; its forward pass doesn't matter here."""

    def __init__(self, dim=24):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 17, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 8, 8)})
        for name in ("block1", "block2", "block3"):
            linear = {f"proj_{part}": nn.Linear(dim, dim, bias=False) for part in "qkv"}
            attention = nn.ModuleDict({**linear, "proj": nn.Linear(dim, dim, bias=False)})
            mlp = nn.ModuleDict({"linear1": nn.Linear(dim, dim), "linear2": nn.Linear(dim, dim)})
            parts = {"norm1": nn.LayerNorm(dim), "attn": attention, "norm2": nn.LayerNorm(dim), "mlp": mlp}
            self.add_module(name, nn.ModuleDict(parts))
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(dim), "linear": nn.Linear(dim, 5)})


def test_block_notebook__is_known_and_refused_with_its_bugs():
    """The notebook ViT with block1 to block3 is recognised, and the error says what it computes and what to do."""
    tensors = BlockNotebook().state_dict()
    assert detect_format(tensors) == "block_notebook"
    with pytest.raises(NotRepresentable) as caught:
        convert_state_dict(tensors, to="timm")
    message = str(caught.value)
    for bug in (
        "proj_q is applied three times",
        "between the heads of one token",
        "second residual",
        "pos_embed is never",
    ):
        assert bug in message
    assert "train a ViT of the same size instead" in message


def test_block_notebook__is_not_written():
    """Nor is anything written in its layout."""
    with pytest.raises(NotRepresentable, match="attention between tokens"):
        from_timm(*written_as("block_notebook"))


def written_as(layout, **fields):
    """Return the arguments that write a small network in a format."""
    tensors, config = weights(**fields)
    return tensors, FORMATS[layout], config


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        ("vit_pytorch_a", {"norm_eps": 1e-5}, r"qkv_bias=True \(it holds False\)"),
        ("vit_pytorch_a", NORMED, "patch_norm_in=True"),
        ("vit_pytorch_a", {**UNBIASED, "num_classes": 0}, "no head"),
        ("vit_pytorch_a", {**UNBIASED, "global_pool": "avg"}, "a mean that leaves the class token out"),
        ("vit_pytorch_a", {**UNBIASED, **OVER_ALL, "fc_norm": False}, "a norm before the mean"),
        ("vit_pytorch_b", UNBIASED, r"patch_norm_in=False \(it holds True\)"),
        ("vit_pytorch_c", {**NORMED, **OVER_ALL}, r"fc_norm=True \(it holds False\)"),
        ("vit_pytorch_c", {**NORMED, "norm_eps": 1e-6}, "norm_eps=1e-06"),
        ("vit_pytorch_d", {**NORMED, "global_pool": "avg", "fc_norm": False}, "a class token beside the mean"),
        ("vit_pytorch_a", {**UNBIASED, "num_heads": 1}, "leaves the output projection out"),
        ("simple_vit", NORMED, "class_token=True"),
        ("simple_vit", {**NORMED, "class_token": False, "global_pool": "avg", "fc_norm": False}, "fixed sin-cos table"),
        ("zuppichini", {}, "global_pool='token'"),
        ("zuppichini", {**OVER_ALL, "img_size": (32, 16)}, "it holds squares"),
        ("zuppichini", {**OVER_ALL, "num_classes": 0}, "no head"),
        ("aitech", {**OVER_ALL, "num_classes": 0}, "no head"),
        ("aitech", {**OVER_ALL, "act_layer": "gelu_tanh"}, "act_layer='gelu_tanh'"),
        ("jeonsworld", {"num_classes": 0}, "no head"),
        ("jeonsworld", {"norm_eps": 1e-5}, r"norm_eps=1e-05 \(it holds 1e-06\)"),
        ("mmpretrain", {"global_pool": "avg", "fc_norm": False}, "a norm before the mean"),
        ("mmpretrain", {"fc_norm": True}, "behind the class token's pooling"),
        ("mmpretrain", {"reg_tokens": 2}, "reg_tokens=2"),
        ("timm", {"attn_head_dim": 5}, "attn_head_dim=5 .timm's plain ViT divides its width"),
        ("timm", NORMED, "patch_norm_in=True .no plain ViT of timm's .* from_pretrained and finetune read"),
        ("hf_vit", {"attn_head_dim": 5}, "attn_head_dim=5"),
        ("torchvision", NORMED, "patch_norm_in=True"),
    ],
)
def test_writing__what_the_format_cannot_say(layout, fields, message):
    """A network that a format has no words for is refused, with the option or the tensor named."""
    with pytest.raises(NotRepresentable, match=message):
        from_timm(*written_as(layout, **fields))


def test_one_head__the_identity_is_left_out():
    """One head as wide as the network is written without its projection where that is the identity, and comes back."""
    tensors, layout, config = written_as("vit_pytorch_a", **UNBIASED, num_heads=1)
    tensors |= {"blocks.0.attn.proj.weight": torch.eye(24), "blocks.0.attn.proj.bias": torch.zeros(24)}
    written = from_timm(tensors, layout, config)
    assert not [name for name in written if "to_out" in name]
    again = to_timm(written, layout, {"global_pool": "token", "patch_size": 8})
    assert again.fields["num_heads"] == 1
    assert again.tensors.keys() == tensors.keys()
    assert all(torch.equal(again.tensors[name], value) for name, value in tensors.items())


def a_state(**more):
    """Return vit-pytorch weights of 0.x."""
    tensors, layout, config = written_as("vit_pytorch_a", **UNBIASED)
    return from_timm(tensors, layout, config) | more


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"num_heads": 3, "patch_size": 8}, r"give global_pool='token' \(its pool='cls'\) or 'avg'"),
        ({"num_heads": 3, "global_pool": "token"}, "give patch_size or in_chans"),
        ({"num_heads": 3, "global_pool": "token", "patch_size": 7}, "7x7 pixels don't divide the 192 values"),
        ({"num_heads": 3, "global_pool": "token", "in_chans": 1}, "no square patch of 1 channels"),
    ],
)
def test_reading__what_weights_do_not_tell_is_asked_for(known, message):
    """Pooling and patch size leave no trace in vit-pytorch's weights; they are asked for, never guessed."""
    with pytest.raises(RequestError, match=message):
        to_timm(a_state(), FORMATS["vit_pytorch_a"], known)


def test_reading__lost_projections_are_not_taken_for_one_head():
    """A file of three heads without output projections is damaged, not a network of one head."""
    tensors = {name: value for name, value in a_state().items() if "to_out" not in name}
    with pytest.raises(RequestError, match="only where one head is as wide as the network; they are missing"):
        to_timm(tensors, FORMATS["vit_pytorch_a"], {"num_heads": 3, "global_pool": "token", "patch_size": 8})


def test_reading__simple_vit_asks_for_the_picture_size():
    """SimpleViT's table is made for a size that no tensor tells."""
    names = {"to_patch_embedding.2.weight": torch.zeros(24, 192)}
    with pytest.raises(RequestError, match="give img_size"):
        to_timm(names, FORMATS["simple_vit"], {"num_heads": 3, "patch_size": 8})


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        ("jeonsworld", "transformer.embeddings.hybrid_model.root.conv.weight", "a ResNet before the patches"),
        ("mmpretrain", "head.layers.pre_logits.weight", "a tanh layer before the head"),
        ("zuppichini", "0.projection.1.weight", "a linear layer on flat patches, of an earlier cell"),
    ],
)
def test_reading__parts_that_no_network_here_has(layout, name, message):
    """Layers without a counterpart are refused by name, with the way out."""
    prefixed = {"backbone.cls_token": torch.zeros(1, 1, 4)} if layout == "mmpretrain" else {}
    with pytest.raises(NotRepresentable, match=message):
        to_timm({**prefixed, name: torch.zeros(4, 4)}, FORMATS[layout], {"num_heads": 1})


def test_mmpretrain__two_last_norms():
    """Norms before and after pooling are more than a network here has."""
    tensors = {f"backbone.{norm}.weight": torch.ones(4) for norm in ("ln1", "ln2")}
    with pytest.raises(NotRepresentable, match="normalises before and after pooling"):
        to_timm(tensors, FORMATS["mmpretrain"])


def test_zuppichini__three_revisions_share_their_names():
    """Separate queries, keys and values fit three formats, of which one has to be named."""
    names = ("0.cls_token", "0.positions", "1.0.0.fn.1.queries.weight")
    with pytest.raises(RequestError, match="say which one it is") as caught:
        detect_format({name: torch.zeros(1) for name in names})
    assert all(f"zuppichini_separate{end}" in str(caught.value) for end in ("", "_scaled_after", "_scaled_by_width"))


def test_from_pretrained__makes_simple_vits_table_for_the_picture_size(tmp_path):
    """A file without positions is loaded for the size that is asked for, with the table of that size."""
    config = ViTConfig.from_mapping({**SMALL, **NORMED, "class_token": False, "global_pool": "avg", "fc_norm": False})
    model = VisionTransformer(config)
    model.pos_embed.data = sincos_table((4, 4), 24)
    model.blocks[0].attn.proj.bias.data.zero_()
    torch.save(from_timm(model.state_dict(), FORMATS["simple_vit"], config), tmp_path / "simple.pt")
    larger, _ = from_pretrained(tmp_path / "simple.pt", num_heads=3, patch_size=8, img_size=(48, 32))
    assert torch.equal(larger.pos_embed, sincos_table((6, 4), 24))
    assert torch.equal(larger.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
