"""BEiT: timm's numbers for every name, bias tables at other sizes, and a citizen of torch."""

from __future__ import annotations

import json
from pathlib import Path

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
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models import (
    RelPosViT,
    RelPosViTConfig,
    attention_maps,
    count_parameters,
    create_model,
    list_models,
    replace_head,
    resize_bias_table,
    summarize,
    variant_config,
)
from vit_finetune.models.attending import attend
from vit_finetune.models.rel_pos_vit import distance_index, table_rows

NAMES = registered("beit")
GOLDEN = json.loads((Path(__file__).parent / "golden_counts.json").read_text())
TABLE = "blocks.{}.attn.relative_position_bias_table"


def test_names__cover_what_timm_registers(capsys):
    """Every BEiT that the installed timm registers can be built; the count is printed."""
    known = {name for name in list_models() if isinstance(variant_config(name), RelPosViTConfig)}
    with capsys.disabled():
        print(f"\nBEiTs of timm {timm.__version__} that can be built: {len(known & set(NAMES))} of {len(NAMES)}")
    assert known == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward__equals_timm(name):
    """Tokens and logits of a picture that isn't square agree to 1e-10 in float64 and 1e-5 in float32."""
    check_parity(name)


@pytest.mark.parametrize("name", NAMES)
def test_variant__full_size_layout_equals_timm(name):
    """At full size, names, shapes, dtypes and the number of parameters are timm's and the golden table's."""
    ours, theirs = full_size(name)
    assert layout(ours) == layout(theirs)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count == GOLDEN[name] == count_parameters(ours.config)
    assert (ours.config.img_size, ours.config.global_pool) == (theirs.patch_embed.img_size, theirs.global_pool)
    assert not list(ours.buffers())


@pytest.mark.parametrize("name", NAMES)
def test_depths__cover_every_parameter_and_group_as_timm(name):
    """Every parameter has a depth, and timm's layer-decay helper forms the groups that it forms for its own network."""
    check_depths_and_groups(name)


@pytest.mark.parametrize(
    "fields", [{"global_pool": "token"}, {"global_pool": ""}, {"use_fc_norm": False}, {"qkv_bias": False}]
)
@torch.no_grad()
def test_options__equal_timm(fields):
    """Other poolings, the norm before pooling, and projections without bias are timm's too."""
    ours, theirs = tiny_pair("beit_base_patch16_224", **fields)
    x = images(ours.config)
    close(ours(x), theirs(x))


@torch.no_grad()
def test_forward__headless_and_one_channel_equal_timm():
    """`num_classes=0` gives timm's features, and `in_chans` other than 3 works."""
    ours, theirs = tiny_pair("beitv2_base_patch16_224", num_classes=0, in_chans=1)
    x = images(ours.config)
    close(ours(x), theirs(x))


@torch.no_grad()
def test_get_intermediate_layers__equals_timm():
    """The outputs of chosen blocks are timm's, as tokens and as pictures, with prefix tokens and norm."""
    check_intermediate_layers("beit_base_patch16_224")


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 2)])
def test_distance_index__written_out(grid):
    """Each pair of patches reads the row of its distance, the class token rows of its own."""
    gh, gw = grid
    index, last = distance_index(grid), table_rows(grid) - 1
    assert index.shape == (gh * gw + 1, gh * gw + 1)
    assert index[0, 0] == last
    assert (index[0, 1:] == last - 2).all() and (index[1:, 0] == last - 1).all()
    for query in range(gh * gw):
        for key in range(gh * gw):
            down, right = query // gw - key // gw, query % gw - key % gw
            assert index[query + 1, key + 1] == (down + gh - 1) * (2 * gw - 1) + right + gw - 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((14, 14), (24, 24)),
        ((24, 24), (14, 14)),
        ((14, 14), (16, 10)),
        ((3, 5), (5, 3)),
        ((7, 7), (7, 9)),
        ((2, 2), (3, 3)),
    ],
)
def test_resize_bias_table__equals_timm(old, new):
    """At another size, square or not, larger or smaller, a table is timm's, which computes in float32: 1e-5."""
    table = torch.randn(table_rows(old), 4, generator=torch.Generator().manual_seed(0))
    want = resize_rel_pos_bias_table(table, new, (table_rows(new), 4), old_window_size=old)
    close(resize_bias_table(table, old=old, new=new), want, 1e-5)
    assert resize_bias_table(table.half(), old=old, new=new).dtype == torch.float16
    assert resize_bias_table(table, old=old, new=old) is table


def test_resize_bias_table__refuses_another_grid():
    """A table that isn't the grid's is refused with both sizes."""
    with pytest.raises(RequestError, match=r"4x4 patches has 52 rows.*\[28, 2\]"):
        resize_bias_table(torch.zeros(28, 2), old=(4, 4), new=(5, 5))


@torch.no_grad()
def test_resize_bias_table__a_loaded_network_equals_timm():
    """Weights of one size, tables resized, give the logits of timm's network set to the other size."""
    _, theirs = tiny_pair("beit_base_patch16_224", img_size=48)
    weights = theirs.state_dict()
    for index in range(2):
        weights[TABLE.format(index)] = resize_bias_table(weights[TABLE.format(index)], old=(3, 3), new=(4, 6))
    ours = (
        create_model("beit_base_patch16_224", **tiny_fields("beit_base_patch16_224", img_size=(64, 96))).double().eval()
    )
    ours.load_state_dict(weights, strict=True)
    theirs.set_input_size((64, 96))
    x = images(ours.config)
    close(ours(x), theirs(x), 1e-6)  # tables are resized in float32


def test_init__distribution_equals_timm():
    """Each parameter starts with timm's mean and spread (exactly, where timm's is constant)."""
    check_init("beit_base_patch16_224")


def test_compile_and_export__equal_eager():
    """One graph for a training step with per-sample noise, and an exported network for any batch size."""
    check_compile_and_export("beit_base_patch16_224", drop_path_rate=0.5, patch_drop_rate=0.25)


def test_grad_checkpointing__same_gradients():
    """Recomputing blocks changes neither outputs nor gradients, with DropPath and element dropout on."""
    check_grad_checkpointing("beit_base_patch16_224", drop_path_rate=0.5, patch_drop_rate=0.25, pos_drop_rate=0.1)


@torch.no_grad()
def test_patch_dropout__biases_stay_with_their_patches():
    """Dropping patches leaves what attention sees of the others: a block gives what it gives of kept tokens alone."""
    model = tiny("beit_base_patch16_224", depth=1, patch_drop_rate=0.5).train()
    x, seeds = images(model.config, batch=3), torch.tensor([3, 4, 5])
    tokens, positions = model.start(x, sample_seeds=seeds)
    got = model.blocks[0](tokens, None, *positions[0])
    kept = model.patch_drop.choose(torch.empty(3, 13, 1), seeds)
    full, ((index,),) = model.eval().start(x)
    for sample in range(3):
        own = torch.cat([torch.zeros(1, dtype=torch.int64), kept[sample] + 1])
        cut = index[:, own][:, :, own]
        close(got[sample], model.blocks[0](full[sample : sample + 1, own], None, cut)[0])


def test_noise__a_sample_seed_decides_alone():
    """DropPath of a sample is the same in any batch and position; seeds of another batch are refused."""
    model = tiny("beit_base_patch16_224", drop_path_rate=0.5, depth=4).train()
    x, seeds = images(model.config, batch=4), torch.tensor([11, 12, 13, 14])
    together = model(x, sample_seeds=seeds)
    close(model(x[1:3], sample_seeds=seeds[1:3]), together[1:3])
    with pytest.raises(RequestError, match="one int64 per image, 4 of them"):
        model(x, sample_seeds=seeds[:2])


@torch.no_grad()
def test_attention_maps__reproduce_what_forward_attends(monkeypatch):
    """One map a block: softmaxes of the scores with the bias that the forward pass adds."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, bias: Tensor) -> Tensor:
        seen.append((q, k, bias))
        return attend(q, k, v, dropout=dropout, bias=bias)

    model = tiny("beit_base_patch16_224")
    x = images(model.config)
    monkeypatch.setattr("vit_finetune.models.rel_pos_vit.attend", spy)
    model(x)
    maps = attention_maps(model, x)
    for found, (q, k, bias) in zip(maps, seen[:2], strict=True):
        assert bias.std() > 0.1
        scores = torch.exp(q @ k.mT / q.shape[-1] ** 0.5 + bias)
        close(found, scores / scores.sum(-1, keepdim=True))


def test_meta__a_state_dict_makes_a_model():
    """Built on the meta device, a network works once a state dict is assigned: nothing is hidden in buffers."""
    reference = tiny("beit_base_patch16_224")
    with torch.device("meta"):
        model = create_model("beit_base_patch16_224", **tiny_fields("beit_base_patch16_224")).eval()
    model.load_state_dict(reference.state_dict(), strict=True, assign=True)
    x = images(model.config)
    assert torch.equal(model(x), reference(x))


def test_rooms__head_and_summary_work():
    """The head swap and the layer table know this family."""
    model = replace_head(tiny("beit_base_patch16_224"), 7)
    assert isinstance(model, RelPosViT)
    assert (model.config.num_classes, model(images(model.config)).shape) == (7, (2, 7))
    assert sum(row.parameters for row in summarize(model)) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 100, "num_heads": 3}, "100 is not divisible by num_heads=3"),
        ({"global_pool": "map"}, "is not one of 'avg', 'token'"),
        ({"img_size": 8}, "larger than img_size"),
        ({"dynamic_img_size": True}, "has no field 'dynamic_img_size'"),
    ],
)
def test_config__refuses(fields, message):
    """A value or a contradiction that no network can be built from is refused in words."""
    with pytest.raises(RequestError, match=message):
        RelPosViTConfig.from_mapping(fields)
