"""Formats of networks with rotary and relative positions: whole folders, chains, registered names, and what is refused.

That each file equals its library and comes back is held by the cases (`cases_hf_dinov3.py` and its neighbours).
"""

from __future__ import annotations

import json

import pytest
import timm
import torch
import transformers
from formats_dinov3_helpers import saved as released
from formats_helpers import randomize
from formats_hf_helpers import SIZES, assert_known, saved
from safetensors.torch import save_file

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.models import (
    RelPosViTConfig,
    RopeViTConfig,
    ViTConfig,
    build_model,
    create_model,
    list_models,
    variant_config,
)
from vit_finetune.models.infer_kin import family_of
from vit_finetune.weights import (
    convert_checkpoint,
    convert_state_dict,
    detect_format,
    from_pretrained,
    inspect_checkpoint,
    load_pretrained,
    read_source,
)
from vit_finetune.weights.conversion import converted_from
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.lazy import lazily
from vit_finetune.weights.reading import plan_to_timm

TINY = {"img_size": (32, 32), "patch_size": (8, 8), "embed_dim": 32, "depth": 2, "num_heads": 4}
SMALL = {**TINY, "img_size": 32, "patch_size": 8}
DINOV3 = {
    **{name: values[0] for name, values in FORMATS["hf_dinov3"].holds.items() if len(values) == 1},
    "num_classes": 0,
    "num_reg_tokens": 2,
    "norm_eps": 1e-5,
    "rope_temperature": 50.0,
    "mlp_ratio": 1.5,
}
BEIT = {"num_classes": 5, "norm_eps": 1e-12, "init_values": 0.1}

NETWORKS = [
    ("hf_dinov3", RopeViTConfig, "DINOv3ViTModel", DINOV3 | {"init_values": 1e-5}),
    ("hf_dinov3", RopeViTConfig, "DINOv3ViTModel", DINOV3 | {"qkv_bias": False, "num_reg_tokens": 0}),
    ("hf_dinov3", RopeViTConfig, "DINOv3ViTModel", DINOV3 | {"attn_type": "rope", "global_pool": "token"}),
    ("hf_dinov3", RopeViTConfig, "DINOv3ViTModel", DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 8}),
    ("hf_beit", RelPosViTConfig, "BeitForImageClassification", BEIT),
    ("hf_beit", RelPosViTConfig, "BeitForImageClassification", BEIT | {"global_pool": "token", "init_values": None}),
    ("hf_beit", RelPosViTConfig, "BeitModel", BEIT | {"num_classes": 0}),
    ("hf_beit", RelPosViTConfig, "BeitModel", BEIT | {"num_classes": 0, "use_fc_norm": False}),
]


def network(family, **options):
    """Return a random tiny network of ours."""
    return randomize(build_model(family.from_mapping(TINY | options)))


@pytest.mark.parametrize(("target", "family", "architecture", "options"), NETWORKS)
def test_folder__opens_in_transformers(tmp_path, target, family, architecture, options):
    """The class that the folder names takes every tensor and computes what ours does; we read the same network back."""
    ours = network(family, **options)
    save_file(ours.state_dict(), tmp_path / "ours.safetensors")
    report = convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "new", to=target, config=ours.config)
    assert (report.source_format, report.verification.by) == ("timm", ("vit_finetune", "transformers"))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    model, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "new", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not any(info.values()), info
    assert_known(config, model.config)
    again = convert_checkpoint(tmp_path / "new", tmp_path / "again", to="timm", verify=False).config
    told = {name: ours.config.acting(name) for name in ours.config.to_mapping()}
    for name in told.keys() - {"init_values", "global_pool", "dynamic_img_size", "weight_init"}:
        assert type(ours.config).from_mapping(again).acting(name) == told[name], name


@pytest.mark.parametrize(
    ("class_name", "config_name", "options", "architecture"),
    [
        ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}, "vit_small_patch16_dinov3_qkvb"),
        ("DINOv3ViTModel", "DINOv3ViTConfig",
         {"num_register_tokens": 4, "query_bias": False, "value_bias": False, "use_gated_mlp": True,
          "hidden_act": "silu"}, "vit_small_plus_patch16_dinov3"),
        ("BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True, "layer_norm_eps": 1e-6,
         "num_labels": 5}, "beit_base_patch16_224"),
    ],
)  # fmt: skip
def test_to_timm__is_opened_by_timm(tmp_path, class_name, config_name, options, architecture):
    """transformers' folder becomes timm's: timm itself builds the network by a name of its family and agrees."""
    reference, source = saved(class_name, config_name, **SIZES | options)(tmp_path / "hf")
    report = convert_checkpoint(source, tmp_path / "new", to="timm")
    assert report.verification.by == ("vit_finetune", "timm")
    assert report.verification.max_abs_difference < 1e-4
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert FORMATS["timm"].families.index(type(variant_config(config["architecture"]))) > 0
    ours = create_model(architecture, **SMALL | {"mlp_ratio": 1.5, "num_classes": options.get("num_labels", 0)})
    load_pretrained(ours, source, head="keep" if "num_labels" in options else "drop")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference(images)
        expected = expected.logits if "num_labels" in options else expected.last_hidden_state
        for model in (ours.eval(), theirs):
            found = model(images) if "num_labels" in options else model.forward_features(images)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_from_pretrained__takes_a_folder_of_transformers(tmp_path):
    """A new head on DINOv3 as transformers saved it: no name is needed, and another picture size is no trouble."""
    reference, source = saved("DINOv3ViTModel", "DINOv3ViTConfig", **SIZES, num_register_tokens=2)(tmp_path)
    model, report = from_pretrained(source, num_classes=3, img_size=48)
    assert report.newly_initialized == ("head.weight", "head.bias")
    assert model.config.global_pool == "avg"
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval().forward_features(images), reference(images).last_hidden_state, atol=2e-5, rtol=1e-5
        )
    found = inspect_checkpoint(source)
    assert (found.format, found.num_tokens) == ("hf_dinov3", 3 + 16)
    assert found.closest[0].endswith("dinov3_qkvb")


def test_chain__transformers_to_facebook_and_back_is_bitwise(tmp_path):
    """DINOv3 through facebook's names and back keeps every bit; mask and periods are as facebook writes them."""
    _, source = saved("DINOv3ViTModel", "DINOv3ViTConfig", **SIZES, num_register_tokens=2)(tmp_path / "hf")
    convert_checkpoint(source, tmp_path / "facebook", to="facebook_dinov3")
    theirs = read_source(tmp_path / "facebook" / "model.pth").tensors
    assert theirs["blocks.1.attn.qkv.bias_mask"].tolist() == [1.0] * 32 + [0.0] * 32 + [1.0] * 32
    torch.testing.assert_close(theirs["rope_embed.periods"], torch.tensor([1.0, 10.0]))
    hints = {"num_heads": 4, "img_size": 32}
    convert_checkpoint(tmp_path / "facebook" / "model.pth", tmp_path / "back", to="hf_dinov3", config=hints)
    before, after = read_source(source).tensors, read_source(tmp_path / "back").tensors
    # The mask token of pre-training has no place in between.
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"embeddings.mask_token"}


@pytest.mark.parametrize("options", [{}, {"gated": True}])
def test_facebook__is_read_as_timm_reads_it(tmp_path, options):
    """timm's own reader of these files is the judge: the same names, and bitwise the same values."""
    from timm.models.eva import checkpoint_filter_fn

    _, path = released(**options)(tmp_path)
    state = torch.load(path, weights_only=True)
    name = "vit_small_plus_patch16_dinov3_qkvb" if options else "vit_small_patch16_dinov3_qkvb"
    sizes = {"num_classes": 0, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5 if options else 2}
    theirs = checkpoint_filter_fn(dict(state), timm.create_model(name, img_size=32, patch_size=8, **sizes))
    ours = converted_from(read_source(path)).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_zero_biases__are_left_out_where_the_model_has_none(tmp_path):
    """A release whose biases are zero loads into timm's name without them, and says so; others are refused."""
    _, path = released(registers=4)(tmp_path)
    state = torch.load(path, weights_only=True)
    model = create_model("vit_small_patch16_dinov3", **SMALL | {"num_heads": 2, "num_classes": 0, "mlp_ratio": 2})
    with pytest.raises(RequestError, match=r"only in the file: blocks\.0\.attn\.q_bias"):
        load_pretrained(model, state)
    report = load_pretrained(model, {key: value * 0 if "qkv.bias" in key else value for key, value in state.items()})
    assert report.dropped["blocks.1.attn.v_bias"] == "zero everywhere; the model has no such bias"


def test_beit__another_picture_size_resizes_the_tables_as_loading_does(tmp_path):
    """A conversion with a new size writes the tables that `load_pretrained` makes, which are timm's."""
    _, source = saved("BeitModel", "BeitConfig", **SIZES, use_relative_position_bias=True)(tmp_path / "hf")
    report = convert_checkpoint(source, tmp_path / "new", to="hf_beit", img_size=48)
    assert "position biases 4x4 -> 6x6, geometric" in report.notes
    assert report.verification.by == ("vit_finetune", "transformers")
    model, _ = from_pretrained(source, img_size=48)
    found = convert_state_dict(read_source(tmp_path / "new").tensors, to="timm")
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_beit__tables_of_indices_are_dropped(tmp_path):
    """Files of transformers 4 hold the place of each distance too: a formula, dropped with that reason."""
    _, source = saved("BeitModel", "BeitConfig", **SIZES, use_relative_position_bias=True)(tmp_path)
    name = "encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
    state = {**read_source(source).tensors, name: torch.zeros(17, 17, dtype=torch.int64)}
    converted = converted_from(read_source(state))
    assert converted.dropped == {name: "the place of each distance in the table, which is a formula"}


def test_beit__shared_table_is_told(tmp_path):
    """Masked pre-training's one table becomes one for each block, and the report says so."""
    options = {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 7}
    _, source = saved("BeitForMaskedImageModeling", "BeitConfig", **SIZES | options)(tmp_path / "hf")
    report = convert_checkpoint(source, tmp_path / "new", to="timm", verify=False)
    assert "the position biases that all blocks share were given to each of them" in report.notes
    assert set(report.set_aside) == {"beit.embeddings.mask_token", "lm_head.weight", "lm_head.bias"}


@pytest.mark.parametrize("name", [name for name in list_models() if type(variant_config(name)) is not ViTConfig])
def test_detect__registered_names_are_timm_s(name):
    """Every network under timm's names is told as timm's; of two only that are others' too, the names are said."""
    one_block = {"depth": 1, "num_classes": 0, **({"num_kv_heads": None} if "sapiens" in name else {})}
    config = variant_config(name).updated(one_block)
    with torch.device("meta"):
        names = build_model(config).state_dict()
    assert detect_format(names) == ("facebook_deit3" if name.endswith("rope_ape_224") else "timm")
    assert family_of(names) is type(config) or not {"gamma_1", "q_bias"} & {key.rpartition(".")[2] for key in names}


def whole(name):
    """Return a whole state dict of a format, and what a user says about it."""
    family, options = {"hf_beit": (RelPosViTConfig, BEIT)}.get(name, (RopeViTConfig, DINOV3 | {"init_values": 0.1}))
    model = network(family, **options)
    return convert_state_dict(model.state_dict(), to=name, config=model.config), model.config


@pytest.mark.parametrize("name", ["hf_dinov3", "hf_beit", "facebook_dinov3"])
@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen", "NaN"])
def test_mutated__is_one_error_that_names_the_tensor(name, kind):
    """Each tensor that is gone, unknown, misshapen or NaN is one clear error; none converts to something else."""
    state, config = whole(name)
    plan = plan_to_timm(lazily(state), FORMATS[name], config.to_mapping())
    # What the network can do without, and what is set aside for the way back.
    optional = ("classifier.bias", "classifier.weight", "rope_embed.periods", "mask_token")
    skipped = optional if kind == "missing" else optional[-1:]
    for key in (key for key in state if not key.endswith(skipped)):
        broken = dict(state)
        if kind == "missing":
            del broken[key]
        elif kind == "extra":
            broken = {**state, f"{key}_too": state[key]}
        else:
            broken[key] = torch.full_like(state[key], torch.nan) if kind == "NaN" else torch.cat([state[key]] * 2)
        with pytest.raises(RequestError) as caught:
            convert_state_dict(broken, to="timm", source=name, config=config)
        ours = {target for target, lazy in plan.tensors.items() if key in lazy.sources}
        words = {f"{key}_too"} if kind == "extra" else {key.removeprefix("beit."), *ours}
        words |= {word.rpartition(".")[0] for word in words if kind in {"missing", "misshapen"} and "." in word}
        assert any(word in str(caught.value) for word in words), (key, str(caught.value))


@pytest.mark.parametrize(
    ("target", "family", "options", "reason"),
    [
        ("hf_dinov3", RopeViTConfig, DINOV3 | {"num_classes": 3}, "leave the head out"),
        ("hf_dinov3", RopeViTConfig, DINOV3 | {"swiglu_mlp": True}, "two side by side"),
        ("hf_dinov3", RopeViTConfig, {"num_classes": 0}, "use_rot_pos_emb=False"),
        ("facebook_dinov3", RopeViTConfig, DINOV3 | {"qk_norm": True}, "qk_norm=True"),
        ("hf_vit", RopeViTConfig, DINOV3, "it is a ViT with rotary positions, and hf_vit is for a plain ViT"),
        ("hf_beit", RelPosViTConfig, BEIT | {"use_fc_norm": False}, "it norms the mean"),
        ("hf_beit", RelPosViTConfig, BEIT | {"global_pool": "token", "use_fc_norm": True}, "it norms every token"),
        ("hf_beit", RelPosViTConfig, BEIT | {"img_size": (32, 48)}, "it holds squares"),
    ],
)  # fmt: skip
def test_writing__says_what_has_no_words(target, family, options, reason):
    """A network that a format can't say is refused before anything is written, naming the option."""
    model = network(family, **options)
    with pytest.raises(NotRepresentable, match=reason):
        convert_state_dict(model.state_dict(), to=target, config=model.config)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("baai_eva02", ("patch_embed.proj.weight", "cls_token", "rope.freqs_cos", "blocks.0.mlp.w1.weight")),
        ("baai_eva02", ("patch_embed.proj.weight", "blocks.0.attn.q_proj.weight", "blocks.0.mlp.ffn_ln.weight")),
        ("sapiens2", ("patch_embed.projection.weight", "storage_tokens", "blocks.0.attn.wq.weight")),
    ],
)
def test_reading__releases_are_refused_by_name(name, names):
    """Releases that are not read are recognised, and refused with the weights to take instead."""
    tensors = {key: torch.zeros(1) for key in names}
    assert detect_format(tensors) == name
    with pytest.raises(NotRepresentable, match=r"as it was released, .* such as timm:"):
        convert_state_dict(tensors, to="timm")


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_ape_224", "vit_pe_core_tiny_patch16_384"])
def test_named__network_is_its_own_family_whatever_its_names_look_like(name):
    """Names that another family has too are read as the network that is named, and not as that one's function."""
    model = create_model(name, **SMALL | {"num_classes": 0})
    kept = convert_state_dict(model.state_dict(), to="timm", config=model.config)
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
    for target in ("hf_vit", "hf_clip", "facebook_deit3"):
        with pytest.raises(NotRepresentable, match="it is a ViT with rotary positions"):
            convert_state_dict(model.state_dict(), to=target, config=model.config)


def test_reading__says_what_is_asked(tmp_path):
    """Another temperature than the file's periods, an unknown word, a name of another family: each one clear error."""
    _, path = released()(tmp_path)
    with pytest.raises(NotRepresentable, match=r"periods is not what rope_temperature=30\.0 gives"):
        convert_checkpoint(path, tmp_path / "new", to="timm", config={"rope_temperature": 30.0})
    with pytest.raises(RequestError, match="another field of RopeViTConfig"):
        convert_checkpoint(path, tmp_path / "new", to="timm", config={"reg_tokens": 2})
    with pytest.raises(RequestError, match=r"is a plain ViT, but facebook_dinov3 is for a ViT with rotary positions"):
        convert_checkpoint(path, tmp_path / "new", to="timm", config="vit_base_patch16_224")
    bare = create_model("vit_small_patch16_dinov3", **SMALL).state_dict()
    with pytest.raises(RequestError, match="weights do not tell num_heads, norm_eps, img_size, .* or name the arch"):
        convert_state_dict(bare, to="hf_dinov3")
