"""Networks with rotary positions: timm's numbers for every name of its EVA family, and citizens of torch."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from models_helpers import images
from placed_helpers import (
    check_compile_and_export,
    check_depths_and_groups,
    check_grad_checkpointing,
    check_init,
    check_intermediate_layers,
    check_parity,
    close,
    full_size,
    layout,
    registered,
    tiny,
    tiny_fields,
    tiny_pair,
)
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import (
    RopeViT,
    RopeViTConfig,
    attention_maps,
    count_parameters,
    create_model,
    list_models,
    replace_head,
    summarize,
    variant_config,
)
from vit_finetune.models.attending import attend

NAMES = registered("eva")
GOLDEN = json.loads((Path(__file__).parent / "golden_counts.json").read_text())
# One name per kind of block, attention, MLP, norm, pooling, prefix and angles.
DIVERSE = (
    "eva_giant_patch14_clip_224",
    "eva02_small_patch14_224",
    "eva02_large_patch14_clip_336",
    "eva02_enormous_patch14_clip_224",
    "vit_mediumd_patch16_rope_reg1_gap_256",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_pe_lang_gigantic_patch14_448",
    "vit_small_plus_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
    "vit_base_patch16_sapiens2",
)
COMPILED = ("vit_small_patch16_rope_mixed_ape_224", "vit_base_patch16_sapiens2")  # seconds each
NOISY = {"drop_path_rate": 0.5, "patch_drop_rate": 0.25}


@pytest.fixture
def without_initialising():
    """Meta tensors hold no values, but visiting each takes most of the time of building a model."""
    patches = [
        mock.patch.object(kind, "reset_parameters", lambda self: None) for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d)
    ]
    patches.append(mock.patch("timm.models.eva.trunc_normal_", lambda tensor, std: tensor))
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


def test_names__cover_what_timm_registers(capsys):
    """Every name of timm's EVA family can be built; the count is printed."""
    known = {name for name in list_models() if isinstance(variant_config(name), RopeViTConfig)}
    with capsys.disabled():
        print(f"\nEVA family of timm {timm.__version__} that can be built: {len(known & set(NAMES))} of {len(NAMES)}")
    assert known == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward__equals_timm(name):
    """Tokens and logits of a picture that isn't square agree to 1e-10 in float64 and 1e-5 in float32."""
    check_parity(name)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward__other_sizes_equal_timm(name):
    """Built square and dynamic, a model gives timm's numbers at another, non-square size.

    Where patches are counted ("cat"), timm in float64 multiplies coordinates and frequencies in float64 and then rounds
    sine and cosine to float32, while its networks of fixed size, and ours always, do all of it in float32: 1e-7.
    """
    patch = variant_config(name).patch_size[0]
    ours, theirs = tiny_pair(name, img_size=3 * patch, dynamic_img_size=True, depth=1)
    counted = ours.config.use_rot_pos_emb and ours.config.rope_type == "cat"
    x = images(ours.config, size=(2 * patch, 5 * patch))
    close(ours(x), theirs(x), 1e-7 if counted else 1e-10)
    x = images(ours.config)
    close(ours(x), theirs(x), 1e-7 if counted else 1e-10)


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_forward__real_head_width_and_grid_equal_timm(name):
    """With the head width and the grid of the registered network, angles grow large and still agree."""
    config = variant_config(name)
    fields = {"embed_dim": config.embed_dim // config.num_heads * 2, "num_heads": 2, "depth": 1}
    if config.num_kv_heads is not None:
        fields["num_kv_heads"] = (1,)
    theirs = timm.create_model(name, **fields, num_classes=3).double().eval()
    ours = create_model(name, **fields, num_classes=3, weight_init="skip").double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(config, batch=1)
    close(ours.forward_features(x), theirs.forward_features(x))


@pytest.mark.parametrize("name", NAMES)
def test_variant__full_size_layout_equals_timm(name, without_initialising):
    """At full size, names, shapes, dtypes and the number of parameters are timm's and the golden table's."""
    ours, theirs = full_size(name)
    assert layout(ours) == layout(theirs)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count == GOLDEN[name] == count_parameters(ours.config)
    assert (ours.num_prefix_tokens, ours.config.dynamic_img_size) == (theirs.num_prefix_tokens, theirs.dynamic_img_size)
    assert (ours.config.img_size, ours.config.global_pool) == (theirs.patch_embed.img_size, theirs.global_pool)
    assert not list(ours.buffers())


@pytest.mark.parametrize("name", NAMES)
def test_depths__cover_every_parameter_and_group_as_timm(name):
    """Every parameter has a depth, and timm's layer-decay helper forms the groups that it forms for its own network."""
    check_depths_and_groups(name)


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_get_intermediate_layers__equals_timm(name):
    """The outputs of chosen blocks are timm's, as tokens and as pictures, with prefix tokens and norm."""
    check_intermediate_layers(name)


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_forward__headless_and_one_channel_equal_timm(name):
    """`num_classes=0` gives timm's features, and `in_chans` other than 3 works."""
    ours, theirs = tiny_pair(name, num_classes=0, in_chans=1)
    x = images(ours.config)
    close(ours(x), theirs(x))
    assert torch.equal(ours.forward_head(ours.forward_features(x), pre_logits=True), ours(x))


@pytest.mark.parametrize("name", DIVERSE)
def test_init__distribution_equals_timm(name):
    """Each parameter starts with timm's mean and spread (exactly, where timm's is constant)."""
    check_init(name)


@pytest.mark.parametrize("name", COMPILED)
def test_compile_and_export__equal_eager(name):
    """One graph for a training step with per-sample noise, and an exported network for any batch size."""
    check_compile_and_export(name, **NOISY)


@pytest.mark.parametrize("name", DIVERSE)
def test_grad_checkpointing__same_gradients(name):
    """Recomputing blocks changes neither outputs nor gradients, with DropPath, patch and element dropout on."""
    check_grad_checkpointing(name, **NOISY)


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_patch_dropout__places_stay_with_their_patches(name):
    """With DropPath off, dropping patches leaves what attention sees of the others: order and position don't mix.

    A network of one block, pooled over kept patches, equals one whose dropped patches are masked out by hand.
    """
    model = tiny(name, depth=1, patch_drop_rate=0.5, rope_rescale_coords=None).train()
    x, seeds = images(model.config, batch=3), torch.tensor([3, 4, 5])
    tokens, positions = model.start(x, sample_seeds=seeds)
    got = model.blocks[0](tokens, None, *positions[0])
    kept = model.patch_drop.choose(torch.empty(3, model.config.num_tokens, 1), seeds)
    full, full_positions = model.eval().start(x)
    for sample in range(3):
        prefix = model.num_prefix_tokens
        own = torch.cat([torch.arange(prefix), kept[sample] + prefix])
        cut = [turns[..., own, :] for turns in full_positions[0]]
        close(got[sample], model.blocks[0](full[sample : sample + 1, own], None, *cut)[0])


def test_noise__a_sample_seed_decides_alone():
    """DropPath, patch dropout and the scaling of coordinates of a sample are the same in any batch and position."""
    model = tiny("vit_base_patch16_sapiens2", **NOISY, global_pool="avg").train()
    assert model.config.rope_rescale_coords == 2.0
    x, seeds = images(model.config, batch=4), torch.tensor([11, 12, 13, 14])
    together = model(x, sample_seeds=seeds)
    order = torch.tensor([2, 0, 3, 1])
    close(model(x[order], sample_seeds=seeds[order]), together[order])
    close(model(x[1:2], sample_seeds=seeds[1:2]), together[1:2])
    assert not torch.allclose(model(x, sample_seeds=seeds + 100), together)


def test_rescale__factors_are_log_uniform_and_off_in_evaluation():
    """Coordinates are scaled by 1/2 to 2, evenly in the logarithm; in evaluation not at all."""
    model = tiny("vit_base_patch16_sapiens2")
    factors = model.rope._scales(torch.device("cpu"), torch.arange(20000)).log2()
    assert factors.min() > -1.0001 and factors.max() < 1.0001
    assert abs(factors.mean()) < 0.02 and abs(factors.std() - 3**-0.5) < 0.02
    x = images(model.config)
    assert torch.equal(model(x, sample_seeds=torch.tensor([1, 2])), model(x, sample_seeds=torch.tensor([8, 9])))
    torch.manual_seed(0)
    first = model.train()(x)
    assert not torch.equal(model(x), first)  # without seeds, torch's generator decides


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_attention_maps__reproduce_what_forward_attends(name, monkeypatch):
    """One map a block, explicit softmaxes of the turned queries and keys that the forward pass attends with."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
        seen.append((q, k))
        return attend(q, k, v, dropout=dropout)

    model = tiny(name)
    x = images(model.config)
    monkeypatch.setattr("vit_finetune.models.rope_vit.attend", spy)
    model(x)
    maps = attention_maps(model, x)
    assert len(maps) == 2
    for found, (q, k) in zip(maps, seen[:2], strict=True):
        assert found.shape == (2, model.config.num_heads, model.config.num_tokens, model.config.num_tokens)
        scores = torch.exp(q @ k.mT / q.shape[-1] ** 0.5)
        close(found, scores / scores.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", DIVERSE)
def test_meta__a_state_dict_makes_a_model(name):
    """Built on the meta device, or skipping values, a network works once a state dict is loaded: nothing is hidden."""
    reference = tiny(name)
    with torch.device("meta"):
        model = create_model(name, **tiny_fields(name)).eval()
    model.load_state_dict(reference.state_dict(), strict=True, assign=True)
    x = images(model.config)
    assert torch.equal(model(x), reference(x))


@torch.no_grad()
def test_half_precision__angles_stay_exact():
    """In bfloat16, positions are still turned by float32 angles: far patches don't merge."""
    model = tiny("vit_small_patch16_dinov3").bfloat16()
    turns = model.rope((4, 64), model.cls_token)
    assert turns.dtype == torch.float32
    close(turns.double(), model.double().rope((4, 64), model.cls_token), 1e-5)


def test_rooms__head_and_summary_work():
    """The head swap and the layer table know this family."""
    model = replace_head(tiny("vit_small_patch16_dinov3"), 7)
    assert isinstance(model, RopeViT)
    assert (model.config.num_classes, model(images(model.config)).shape) == (7, (2, 7))
    for name in DIVERSE:
        network = tiny(name)
        rows = summarize(network)
        assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 100, "num_heads": 3}, "100 is not divisible by num_heads=3"),
        ({"embed_dim": 60, "num_heads": 10, "use_rot_pos_emb": True}, "divisible by 4, got 6"),
        ({"global_pool": "token", "class_token": False}, "needs class_token=True"),
        ({"rope_type": "dino"}, "did you mean 'dinov3'"),
        ({"rope_temperature": 0.0}, "rope_temperature=0.0 is not above 0"),
        ({"rope_rescale_coords": 0.5}, "is below 1"),
        ({"ref_feat_shape": (16,)}, r"not \(rows, columns\)"),
        ({"ref_feat_shape": (16, 16), "rope_type": "dinov3"}, "rope_type='cat' only"),
        ({"use_rot_pos_emb": True, "rope_type": "mixed", "rope_rotate_half": True}, "rope_rotate_half=False"),
        ({"swiglu_align_to": 8}, "needs swiglu_mlp=True"),
        ({"swiglu_align_to": -8, "swiglu_mlp": True}, "is below 0"),
        ({"attn_only_layer_scale": True}, "needs init_values"),
        ({"use_post_norm": True, "init_values": 1e-5}, "goes without init_values"),
        ({"num_kv_heads": [6] * 11}, "for each of 12 blocks"),
        ({"num_kv_heads": [5] * 12}, "one divisor of num_heads=12"),
        ({"num_kv_heads": [6] * 12}, "needs attn_type='rope', qkv_fused=False"),
        ({"img_size": 8}, "larger than img_size"),
        ({"num_reg_token": 4}, "did you mean 'num_reg_tokens'"),
    ],
)
def test_config__refuses(fields, message):
    """A value or a contradiction that no network can be built from is refused in words."""
    with pytest.raises(RequestError, match=message):
        RopeViTConfig.from_mapping(fields)
