"""Loading is strict, every tensor is accounted for, and what may differ is what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from run_helpers import ROOT
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from weights_helpers import NAME, NAMES, TINY, model_args, same, save_folder, save_tiny, tiny

from vit_finetune.common.errors import RequestError
from vit_finetune.models import create_model, replace_head
from vit_finetune.weights import embedded_metadata, from_pretrained, load_pretrained, own_memory

HEAD = ("head.weight", "head.bias")


def without(state, *names):
    """Return a state dict without some names."""
    return {key: value for key, value in state.items() if key not in names}


def accounted(report, file_names, model_names):
    """Say whether report, file and model agree on every name, each once."""
    loaded, new, dropped = set(report.loaded), set(report.newly_initialized), set(report.dropped)
    return (
        loaded | new == set(model_names)
        and not loaded & new
        and loaded | dropped == set(file_names)
        and not loaded & dropped
        and set(report.resampled) <= loaded
    )


# Strictness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["drop", "keep", "match"])
@pytest.mark.parametrize("num_classes", [5, 7])
def test_load_pretrained__missing_block_fails(head, num_classes):
    """A file without its second block is an error whatever the head; the model stays as it was."""
    state = {key: value for key, value in tiny().state_dict().items() if not key.startswith("blocks.1.")}
    model, before = tiny(seed=1, num_classes=num_classes), tiny(seed=1, num_classes=num_classes)
    with pytest.raises(RequestError, match=r"12 only in the model: blocks\.1\.attn\.proj\.bias"):
        load_pretrained(model, state, head=head)
    assert same(model, before)


@pytest.mark.parametrize("head", ["drop", "keep", "match"])
def test_load_pretrained__extra_tensor_fails_with_a_new_head_too(head):
    """One tensor too many is an error, also where the head is new."""
    state = {**tiny().state_dict(), "blocks.2.norm1.weight": torch.ones(32)}
    with pytest.raises(RequestError, match=r"1 only in the file: blocks\.2\.norm1\.weight"):
        load_pretrained(tiny(num_classes=9), state, head=head)


@pytest.mark.parametrize("head", ["drop", "keep", "match"])
def test_load_pretrained__wrong_shape_fails_with_a_new_head_too(head):
    """A backbone tensor of another shape is an error that shows both shapes."""
    state = {**tiny().state_dict(), "blocks.0.mlp.fc1.bias": torch.ones(64)}
    with pytest.raises(RequestError, match=r"blocks\.0\.mlp\.fc1\.bias is \[64\] in the file and \[128\] in the model"):
        load_pretrained(tiny(num_classes=9), state, head=head)


def test_load_pretrained__renamed_tensor_names_both_sides_and_the_closest():
    """A misspelt name is listed on both sides, each with the other as closest."""
    state = tiny().state_dict()
    state["blocks.0.norm1.wieght"] = state.pop("blocks.0.norm1.weight")
    with pytest.raises(RequestError) as caught:
        load_pretrained(tiny(), state)
    message = str(caught.value)
    assert "1 only in the file: blocks.0.norm1.wieght (closest: blocks.0.norm1.weight)" in message
    assert "1 only in the model: blocks.0.norm1.weight (closest: blocks.0.norm1.wieght)" in message
    assert message.startswith("a mapping of tensors: the weights don't fit the model: ")
    assert "\n" not in message


def test_load_pretrained__other_variants_do_not_fit():
    """Register tokens, a missing class token or another depth are never papered over."""
    for other in ("vit_base_patch16_reg4_gap_256", "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224"):
        with pytest.raises(RequestError):
            load_pretrained(tiny(), tiny(other).state_dict())
    with pytest.raises(RequestError, match="only in the file: blocks.2."):
        load_pretrained(tiny(), tiny(depth=3).state_dict())


def test_load_pretrained__unknown_choices():
    """A misspelt option says what is allowed."""
    with pytest.raises(RequestError, match="head='dorp' is none of drop, keep, match; did you mean 'drop'"):
        load_pretrained(tiny(), {}, head="dorp")
    with pytest.raises(RequestError, match="pos_embed='cubic' is none of bicubic, bilinear"):
        from_pretrained({}, pos_embed="cubic")


# The report -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["drop", "keep", "match"])
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_base_patch16_siglip_224",
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_reg4_gap_256",
        "vit_base_patch16_xp_224",
    ],
)
def test_report__accounts_for_everything(name, head):
    """Loaded, dropped and new together are the file and the model, each name once, for every kind of network."""
    source, model = tiny(name), tiny(name, seed=1)
    report = load_pretrained(model, source.state_dict(), head=head)
    assert accounted(report, source.state_dict(), model.state_dict())
    if head == "drop":
        assert all(reason == "head='drop' was asked for" for reason in report.dropped.values())
        assert all(key.startswith("head") for key in report.newly_initialized)
    else:
        assert same(model, source)


def test_report__three_lines_and_json(tmp_path):
    """The report is three lines for people and plain JSON for the run folder."""
    save_folder(tmp_path / "m")
    _, report = from_pretrained(tmp_path / "m", num_classes=3, img_size=32)
    first, second, third = report.lines()
    assert first.endswith(f"{len(report.loaded)} tensors loaded (1 resampled), 2 dropped, 2 new")
    assert "pos_embed grid 4x4 -> 2x2, bicubic" in second
    assert "dropped head.bias, head.weight: head='drop' was asked for" in second
    assert "new head.weight, head.bias" in second
    assert "preprocessing from" in third
    mapping = json.loads(json.dumps(report.to_mapping()))
    assert mapping["resampled"] == {"pos_embed": "grid 4x4 -> 2x2, bicubic"}
    assert mapping["class_names"] == list(NAMES)
    assert mapping["preprocess"]["input_size"] == [3, 32, 32]


# The head -------------------------------------------------------------------------------------------------------------


def test_load_pretrained__head_drop_leaves_the_models_head_alone():
    """By default the model's own head stays, value by value."""
    model = tiny(seed=1, num_classes=7)
    head = model.head.weight.clone()
    report = load_pretrained(model, tiny().state_dict())
    assert torch.equal(model.head.weight, head)
    assert report.newly_initialized == HEAD


def test_load_pretrained__head_keep_takes_the_files_size():
    """`keep` gives the model the file's head, at the file's number of classes."""
    source, model = tiny(num_classes=5), tiny(seed=1, num_classes=7)
    load_pretrained(model, source.state_dict(), head="keep")
    assert same(model, source)
    assert model.num_classes == model.config.num_classes == 5
    with pytest.raises(RequestError, match="no head to keep"):
        load_pretrained(model, without(source.state_dict(), *HEAD), head="keep")


def test_load_pretrained__a_refused_head_changes_nothing():
    """Two different heads of another size can't be kept by a model with one, which stays as it was."""
    name = "deit_tiny_distilled_patch16_224"
    state = tiny(name, num_classes=5).state_dict()
    model, before = (replace_head(tiny(name, seed=1), 7) for _ in range(2))
    with pytest.raises(RequestError, match="the model has no head_dist"):
        load_pretrained(model, state, head="keep")
    assert same(model, before) and model.num_classes == 7


def test_load_pretrained__head_match():
    """`match` takes a head of the same shape and drops another with the reason."""
    source = tiny(num_classes=5)
    equal, other = tiny(seed=1, num_classes=5), tiny(seed=1, num_classes=7)
    assert load_pretrained(equal, source.state_dict(), head="match").dropped == {}
    assert same(equal, source)
    report = load_pretrained(other, source.state_dict(), head="match")
    assert report.dropped == dict.fromkeys(HEAD, "its shapes don't agree with the model's head")
    assert report.newly_initialized == HEAD
    report = load_pretrained(tiny(seed=1, num_classes=0), source.state_dict(), head="match")
    assert report.dropped == dict.fromkeys(HEAD, "the model has no head")


def test_load_pretrained__pre_logits():
    """The pre-training MLP is dropped with its head, and can't be kept."""
    state = {
        **tiny().state_dict(),
        "pre_logits.fc.weight": torch.zeros(32, 32),
        "pre_logits.fc.bias": torch.zeros(32),
    }
    report = load_pretrained(tiny(), state)
    assert set(report.dropped) == {"pre_logits.fc.weight", "pre_logits.fc.bias", *HEAD}
    assert set(load_pretrained(tiny(), state, head="match").dropped) == set(report.dropped)
    with pytest.raises(RequestError, match="the model has no pre_logits"):
        load_pretrained(tiny(), state, head="keep")


def test_load_pretrained__two_equal_heads_are_one():
    """A distilled folder that holds one head twice loads into the model with one head; two different ones don't."""
    name = "deit_tiny_distilled_patch16_224"
    one = replace_head(tiny(name), 5, init=0.5).eval()
    state = {
        **one.state_dict(),
        **{key.replace("head", "head_dist"): value for key, value in one.head.state_dict(prefix="head.").items()},
    }
    model = replace_head(tiny(name, seed=1), 5)
    report = load_pretrained(model, state, head="keep")
    assert same(model, one)
    assert set(report.dropped) == {"head_dist.weight", "head_dist.bias"}
    assert accounted(report, state, model.state_dict())
    two, _ = from_pretrained({**state}, name=name, **small())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(two.eval()(images), one(images))
    state["head_dist.bias"] = state["head_dist.bias"] + 1
    with pytest.raises(RequestError, match="the model has no head_dist"):
        load_pretrained(model, state, head="keep")


# Named differences ----------------------------------------------------------------------------------------------------


def test_load_pretrained__global_pool_starts_the_norm_new():
    """A token-pooled file in an average-pooled model: `norm` is dropped, `fc_norm` starts at one and zero."""
    source, model = tiny(), tiny(seed=1, global_pool="avg")
    report = load_pretrained(model, source.state_dict(), head="keep")
    assert set(report.dropped) == {"norm.weight", "norm.bias"}
    assert set(report.newly_initialized) == {"fc_norm.weight", "fc_norm.bias"}
    assert "global_pool='avg'" in report.dropped["norm.weight"]
    assert accounted(report, source.state_dict(), model.state_dict())
    assert model.fc_norm.weight.eq(1).all() and model.fc_norm.bias.eq(0).all()
    built, _ = from_pretrained(source.state_dict(), name=NAME, global_pool="avg", **small())
    assert same(built, model)
    with pytest.raises(RequestError, match="2 only in the model: fc_norm"):
        load_pretrained(model, without(source.state_dict(), "norm.weight", "norm.bias"))


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 128), (32, 96)])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"]
)
def test_load_pretrained__img_size_as_timm(name, size):
    """Positions for another image size equal timm's, prefix tokens kept, square or not."""
    source = tiny(name, patch_size=16)
    model = tiny(name, seed=1, img_size=size, patch_size=16)
    report = load_pretrained(model, source.state_dict())
    grid, prefix = [size[0] // 16, size[1] // 16], model.pos_embed.shape[1] - size[0] * size[1] // 256
    expected = resample_abs_pos_embed(source.pos_embed.detach(), grid, [4, 4], prefix)
    assert torch.equal(model.pos_embed, expected)
    assert report.resampled == ({} if size == (64, 64) else {"pos_embed": f"grid 4x4 -> {grid[0]}x{grid[1]}, bicubic"})


def test_load_pretrained__equal_count_on_another_grid_is_resampled(tmp_path):
    """36 positions of a 6x6 grid are not those of a 4x9 grid, in both directions."""
    square, wide = tiny(img_size=96), tiny(seed=1, img_size=(64, 144))
    table = square.pos_embed.detach()
    report = load_pretrained(wide, square.state_dict())
    assert report.resampled == {"pos_embed": "grid 6x6 -> 4x9, bicubic"}
    assert torch.equal(wide.pos_embed, resample_abs_pos_embed(table, [4, 9], [6, 6], 1))
    metadata = embedded_metadata(NAME, model_args(img_size=[64, 144]))
    save_file(wide.state_dict(), tmp_path / "wide.safetensors", metadata=metadata)
    back, report = from_pretrained(tmp_path / "wide.safetensors", img_size=96)
    assert report.resampled == {"pos_embed": "grid 4x9 -> 6x6, bicubic"}
    assert torch.equal(back.pos_embed, resample_abs_pos_embed(wide.pos_embed.detach(), [6, 6], [4, 9], 1))
    unchanged, report = from_pretrained(tmp_path / "wide.safetensors")
    assert report.resampled == {}
    assert torch.equal(unchanged.pos_embed, wide.pos_embed)


def test_load_pretrained__unknown_grid_is_asked_for():
    """A count that is no square is asked for; the model's own grid is taken where the count is equal, and said."""
    wide = tiny(img_size=(64, 128))
    with pytest.raises(RequestError, match=r"leaves 32 patches, which is no square; say .* grid=\(rows, columns\)"):
        load_pretrained(tiny(), wide.state_dict())
    model = tiny(seed=1)
    report = load_pretrained(model, wide.state_dict(), grid=(4, 8))
    assert report.resampled == {"pos_embed": "grid 4x8 -> 4x4, bicubic"}
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(wide.pos_embed.detach(), [4, 4], [4, 8], 1))
    report = load_pretrained(tiny(seed=1, img_size=(64, 128)), wide.state_dict())
    assert "took the file's position grid for the model's 4x8: the file doesn't say" in report.notes


def test_load_pretrained__bilinear_positions():
    """The paper's resampling is there on request, and reported as such."""
    model = tiny(seed=1, img_size=96)
    report = load_pretrained(model, tiny().state_dict(), pos_embed="bilinear")
    assert report.resampled == {"pos_embed": "grid 4x4 -> 6x6, bilinear"}


@pytest.mark.parametrize("patch", [14, 32, (8, 16)])
def test_load_pretrained__patch_size_as_timm(patch):
    """Another patch size resizes the kernel as timm does, and the positions to the new grid."""
    source, model = tiny(img_size=224), tiny(seed=1, img_size=224, patch_size=patch)
    report = load_pretrained(model, source.state_dict())
    size = [patch, patch] if isinstance(patch, int) else list(patch)
    expected = resample_patch_embed(source.patch_embed.proj.weight.detach(), size)
    torch.testing.assert_close(model.patch_embed.proj.weight.detach(), expected)
    assert report.resampled["patch_embed.proj.weight"] == f"patch 16x16 -> {size[0]}x{size[1]}"
    assert report.resampled["pos_embed"].startswith("grid 14x14 -> ")


@pytest.mark.parametrize("in_chans", [1, 4])
def test_load_pretrained__in_chans_as_timm(in_chans):
    """One or four channels adapt the kernel as timm does; the preprocessing follows and says what is assumed."""
    source, model = tiny(), tiny(seed=1, in_chans=in_chans)
    report = load_pretrained(model, source.state_dict())
    expected = adapt_input_conv(in_chans, source.patch_embed.proj.weight.detach().clone())
    assert torch.equal(model.patch_embed.proj.weight, expected)
    assert report.resampled == {"patch_embed.proj.weight": f"3 -> {in_chans} channels"}
    assert len(report.preprocess.mean) == len(report.preprocess.std) == report.preprocess.input_size[0] == in_chans
    assert {"mean", "std"} <= set(report.preprocess.assumed)


# from_pretrained ------------------------------------------------------------------------------------------------------


def small():
    """Return the overrides that make any architecture tiny, without the head."""
    return {key: value for key, value in TINY.items() if key != "num_classes"}


def test_from_pretrained__builds_what_the_source_says(tmp_path):
    """The same network comes back from its file: weights, architecture, head, names, logits."""
    model = save_tiny(tmp_path / "a.safetensors")
    back, report = from_pretrained(tmp_path / "a.safetensors")
    assert same(back, model)
    assert back.name == report.architecture == NAME
    assert report.class_names == NAMES
    assert accounted(report, model.state_dict(), back.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(back.eval()(images), model(images))


def test_from_pretrained__new_head_and_overrides(tmp_path):
    """One call: another head, another image size, drop path; the head is zero, the rest is the file's."""
    model = save_tiny(tmp_path / "a.safetensors")
    built, report = from_pretrained(tmp_path / "a.safetensors", num_classes=3, img_size=96, drop_path_rate=0.1)
    assert built.head.weight.shape == (3, 32) and not built.head.weight.any()
    assert (built.config.img_size, built.config.drop_path_rate, built.config.num_classes) == ((96, 96), 0.1, 3)
    assert torch.equal(built.norm.weight, model.norm.weight)
    assert report.newly_initialized == HEAD and set(report.dropped) == set(HEAD)
    assert report.preprocess.input_size == (3, 96, 96)
    spread, _ = from_pretrained(tmp_path / "a.safetensors", num_classes=3, head_init="trunc_normal")
    assert 0.005 < spread.head.weight.std() < 0.04
    bare, report = from_pretrained(tmp_path / "a.safetensors", num_classes=0)
    assert bare.num_classes == 0 and report.newly_initialized == ()


def test_from_pretrained__asks_for_the_name(tmp_path):
    """Weights alone don't tell their heads: the error asks by name, and a name, or the fields, answer."""
    model = tiny()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"a\.safetensors: the architecture is not stated: give name=.*num_heads"):
        from_pretrained(tmp_path / "a.safetensors")
    named, _ = from_pretrained(tmp_path / "a.safetensors", name=NAME, **small())
    told, _ = from_pretrained(
        tmp_path / "a.safetensors", num_heads=2, norm_eps=1e-6, act_layer="gelu", global_pool="token"
    )
    assert same(named, model) and same(told, model)
    assert told.config == model.config
    with pytest.raises(RequestError, match="did you mean"):
        from_pretrained(tmp_path / "a.safetensors", name="vit_tiny_patch16_242")
    with pytest.raises(RequestError, match="drop_path_rat"):
        from_pretrained(tmp_path / "a.safetensors", name=NAME, drop_path_rat=0.1)


def test_from_pretrained__nothing_of_the_callers_is_shared():
    """A dict of tensors stays the caller's: changing the model doesn't change it."""
    state = tiny().state_dict()
    before = {key: value.clone() for key, value in state.items()}
    model, _ = from_pretrained(state, name=NAME, **small())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_from_pretrained__every_parameter_can_train(tmp_path):
    """After `own_memory` the same parameter objects hold the same values outside of the file, each on its own."""
    save_tiny(tmp_path / "a.safetensors")
    model, _ = from_pretrained(tmp_path / "a.safetensors", num_classes=2)
    model.pos_embed.requires_grad_(requires_grad=False)
    before = {key: (id(p), p.data_ptr(), p.detach().clone()) for key, p in model.named_parameters()}
    own_memory(model)
    for key, parameter in model.named_parameters():
        identity, address, value = before[key]
        assert id(parameter) == identity and torch.equal(parameter, value)
        assert (parameter.data_ptr() == address) == (key == "pos_embed")
    loss = model(torch.randn(2, 3, 64, 64)).logsumexp(-1).sum()
    loss.backward()
    assert model.head.weight.grad is not None


def test_load_pretrained__keeps_device_and_dtype():
    """The model's own type stays; the file's is cast and the report says so."""
    model = tiny(seed=1).double()
    report = load_pretrained(model, tiny().state_dict(), head="keep")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert any("from float32 to float64" in note for note in report.notes)


def test_from_pretrained__timm_fine_tuned_file(tmp_path):
    """A file that timm fine-tuned with other classes and size loads, and gives timm's logits."""
    options = {"img_size": (64, 96), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 11}
    theirs = timm.create_model(NAME, **options).eval()
    torch.save({"state_dict": theirs.state_dict(), "arch": NAME}, tmp_path / "model_best.pth.tar.pth")
    fields = {key: options[key] for key in ("img_size", "embed_dim", "depth", "num_heads")}
    ours, report = from_pretrained(tmp_path / "model_best.pth.tar.pth", name=NAME, grid=(4, 6), **fields)
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert report.newly_initialized == ()
    resized, report = from_pretrained(
        tmp_path / "model_best.pth.tar.pth", name=NAME, grid=(4, 6), num_classes=3, **{**fields, "img_size": 96}
    )
    expected = resample_abs_pos_embed(theirs.pos_embed.detach(), [6, 6], [4, 6], 1)
    assert torch.equal(resized.pos_embed, expected)
    assert resized.num_classes == 3


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_base_patch16_reg4_gap_256"]
)
def test_from_pretrained__backbones_without_head(name):
    """A file without a head gives a model without one; features equal the source's."""
    source = tiny(name, num_classes=0)
    model, report = from_pretrained(source.state_dict(), name=name, **small())
    assert same(model, source)
    assert model.num_classes == 0 and report.newly_initialized == ()


def test_from_pretrained__class_names_that_disagree_are_set_aside(tmp_path):
    """Four names beside five rows are left out, and the report says so."""
    metadata = embedded_metadata(NAME, model_args(), class_names=NAMES[:4])
    save_file(tiny().state_dict(), tmp_path / "a.safetensors", metadata=metadata)
    _, report = from_pretrained(tmp_path / "a.safetensors")
    assert report.class_names is None
    assert "left 4 class names aside: the file has a head of 5 rows" in report.notes


def test_from_pretrained__tensors_stored_once_become_two_parameters(tmp_path):
    """Heads that share memory in a pickle train apart."""
    state = tiny("deit_tiny_distilled_patch16_224").state_dict()
    state |= {"head_dist.weight": state["head.weight"], "head_dist.bias": state["head.bias"]}
    torch.save(state, tmp_path / "a.pth")
    model, _ = from_pretrained(tmp_path / "a.pth", name="deit_tiny_distilled_patch16_224", **small())
    assert torch.equal(model.head.weight, model.head_dist.weight)
    assert model.head.weight.data_ptr() != model.head_dist.weight.data_ptr()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_from_pretrained__costs_little_more_than_reading(tmp_path):
    """A model takes next to no private memory until it trains: its tensors stay views of the file."""
    model = create_model("vit_base_patch16_224", weight_init="skip", num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    metadata = embedded_metadata("vit_base_patch16_224", {})
    save_file(model.state_dict(), tmp_path / "base.safetensors", metadata=metadata)
    del model

    def private_megabytes():
        text = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("RssAnon"))

    before = private_megabytes()
    built, _ = from_pretrained(tmp_path / "base.safetensors", num_classes=10)
    assert private_megabytes() - before < 60  # the file holds 327 MB
    assert built.num_classes == 10


def test_from_pretrained__asks_torch_for_no_compiler(tmp_path: Path) -> None:
    """Values that are replaced anyway are not drawn: on the meta device torch does that by importing its compiler."""
    weights = tmp_path / "model.safetensors"
    save_file(create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), weights)
    program = (
        "import sys; from vit_finetune import from_pretrained\n"
        f"from_pretrained({str(weights)!r}, name='vit_tiny_patch16_224', num_classes=2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
