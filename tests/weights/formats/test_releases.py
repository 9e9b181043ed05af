"""Files of facebook research, CLIP and JAX: what is asked, refused and dropped, and what their readers take from us."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from formats_helpers import randomize

from vit_finetune import NotRepresentable, RequestError, convert_checkpoint, from_pretrained, load_pretrained
from vit_finetune.models import VisionTransformer, ViTConfig
from vit_finetune.weights import inspect_checkpoint, read_source
from vit_finetune.weights.conversion import converted_from, from_timm
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.metadata import embedded_metadata


def beside(name):
    """Return a module of cases from this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases_facebook, cases_jax = beside("cases_facebook"), beside("cases_jax")
SMALL = {"img_size": (32, 32), "patch_size": (8, 8), "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def network(**fields):
    """Return a small random network and its config."""
    config = ViTConfig.from_mapping({**SMALL, **fields})
    return randomize(VisionTransformer(config)), config


def written(layout, *, biased=False, **fields):
    """Write a random network in a format."""
    model, config = network(**fields)
    if not biased and config.num_classes:
        torch.nn.init.zeros_(model.head.bias)
    return from_timm(model.state_dict(), FORMATS[layout], config)


# facebook research


def test_two_networks__are_asked_about(tmp_path):
    """A file with teacher and student is no answer; each of them is, by name."""
    _, source = cases_facebook.saved(cases_facebook.ReferenceViT, cases_facebook.dino_training)(tmp_path)
    with pytest.raises(RequestError, match=r"'teacher' and 'student': say which one, as FILE:teacher"):
        read_source(source)
    teacher, student = read_source(f"{source}:teacher").tensors, read_source(f"{source}:student").tensors
    assert teacher.keys() == student.keys()
    assert teacher["backbone.cls_token"].any()
    assert not student["backbone.cls_token"].any()
    assert inspect_checkpoint(f"{source}:teacher").format == "facebook_dino"
    with pytest.raises(RequestError, match="has no part 'tutor'; its keys are args, epoch, student, teacher"):
        read_source(f"{source}:tutor")
    both = torch.load(source, weights_only=False)
    with pytest.raises(RequestError, match="of a mapping, pass that part"):
        read_source(both)
    assert read_source({"teacher": both["teacher"]}).notes[0].startswith("took 'teacher'")


def test_dino__projection_is_no_classifier(tmp_path):
    """The head of DINO's training is left out, and said to be one."""
    _, source = cases_facebook.saved(cases_facebook.ReferenceViT, cases_facebook.dino_training, ":teacher")(tmp_path)
    converted = converted_from(read_source(source))
    assert "head.weight" not in converted.tensors
    assert converted.dropped["head.last_layer.weight_v"] == converted.dropped["head.mlp.0.weight"]
    assert "projection head" in converted.dropped["head.mlp.0.weight"]


@pytest.mark.parametrize(
    ("layout", "wrapper", "fields"),
    [
        ("facebook_mae", "model", {"num_classes": 0}),
        ("facebook_dino", "teacher", {"num_classes": 0}),
        ("facebook_deit3", "model", {"no_embed_class": True, "init_values": 0.1}),
        ("facebook_dinov2", "", {"num_classes": 0, "init_values": 0.1}),
    ],
)
def test_facebook__files_are_wrapped_as_their_code_reads_them(tmp_path, layout, wrapper, fields):
    """Written files have the key that the repository's own loading code looks under, and read back the same."""
    from safetensors.torch import save_file

    model, config = network(**fields)
    metadata = embedded_metadata("vit_base_patch16_224", config.to_mapping() | {"num_classes": config.num_classes})
    save_file(model.state_dict(), tmp_path / "in.safetensors", metadata=metadata)
    convert_checkpoint(tmp_path / "in.safetensors", tmp_path / "out", to=layout, config=config)
    content = torch.load(tmp_path / "out" / FORMATS[layout].file, weights_only=True)
    state = content[wrapper] if wrapper else content
    place = "backbone." if layout == "facebook_dino" else ""
    assert torch.equal(state[f"{place}pos_embed"], model.pos_embed)


# CLIP


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("visual.attn_pool.query", "CoCa pools by attention"),
        ("visual.transformer.resblocks.0.ln_attn.weight", "own attention block"),
    ],
)
def test_open_clip__towers_that_no_vit_is(name, reason):
    """CoCa's pooler and open_clip's own block are refused by the tensor that shows them."""
    tensors = written("open_clip", pre_norm=True) | {name: torch.zeros(1)}
    with pytest.raises(NotRepresentable, match=f"{name}.*{reason}"):
        converted_from(read_source(tensors))


def test_open_clip__coca_is_refused_by_its_configuration():
    """A configuration with a pooler says so before a tensor is looked at."""
    with pytest.raises(NotRepresentable, match="CoCa"):
        FORMATS["open_clip"].config_from({"model_cfg": {"vision_cfg": {"attentional_pool": True}}})


@pytest.mark.parametrize("part", ["mlp.fc1.weight", "pool.q.weight"])
def test_open_clip_timm__other_projections_are_refused(part):
    """A projection of several layers, or a pooling of open_clip's own, has no counterpart."""
    tensors = written("open_clip_timm") | {f"visual.head.{part}": torch.zeros(1)}
    with pytest.raises(NotRepresentable, match=rf"visual\.head\.{part}: .*train a new head"):
        converted_from(read_source(tensors))


@pytest.mark.parametrize(
    ("layout", "fields", "reason"),
    [
        ("open_clip", {"pre_norm": True, "num_classes": 0}, "no head"),
        ("open_clip", {"pre_norm": True, "biased": True}, "head.bias, which is not 0 everywhere"),
        ("open_clip", {"biased": False}, "patch_embed.proj.bias, which is not 0 everywhere"),
        ("open_clip", {"pre_norm": True, "reg_tokens": 2}, "reg_tokens=2"),
        ("openai_clip", {"pre_norm": True, "act_layer": "quick_gelu", "norm_eps": 1e-5}, "heads are 64 wide"),
        ("openai_clip", {"pre_norm": True, "norm_eps": 1e-5, "num_heads": 1, "embed_dim": 64}, "act_layer='gelu'"),
    ],
)
def test_clip__what_its_towers_cannot_say(layout, fields, reason):
    """A head's bias, a missing head or another kind of heads is refused in writing, named."""
    with pytest.raises(NotRepresentable, match=reason):
        written(layout, **fields)


def test_open_clip__folder_says_what_weights_do_not(tmp_path):
    """Heads, activation and pooling come from `open_clip_config.json`, and go into it."""
    for fields in (
        {"pre_norm": True, "act_layer": "quick_gelu", "norm_eps": 1e-5},
        {"pre_norm": True, "norm_eps": 1e-5, "init_values": 0.1, "mlp_ratio": 3.0, "num_heads": 2},
        {"pre_norm": True, "norm_eps": 1e-6, "global_pool": "avg", "act_layer": "gelu_tanh"},
        {"pre_norm": True, "norm_eps": 1e-5, "global_pool": "avg", "fc_norm": False},
    ):
        config = ViTConfig.from_mapping({**SMALL, **fields})
        values = FORMATS["open_clip"].config_to(config)
        told = FORMATS["open_clip"].config_from(values)
        assert told == {name: getattr(config, name) for name in told} | {"fc_norm": config.norm_after_pool}


def test_open_clip__opens_the_result(tmp_path):
    """open_clip's own tower, built from the written configuration, takes the written weights and computes the same."""
    import open_clip
    from safetensors.torch import load_file, save_file

    model, config = network(pre_norm=True, norm_eps=1e-5, act_layer="quick_gelu", init_values=0.1)
    torch.nn.init.zeros_(model.head.bias)
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    report = convert_checkpoint(tmp_path / "in.safetensors", tmp_path / "out", to="open_clip", config=config)
    assert report.verification.by == ("vit_finetune", "open_clip")
    values = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    text = {"context_length": 7, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1}
    theirs = open_clip.CLIP(**values, text_cfg=text).eval()
    state = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("visual.")]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(images), model(images), atol=1e-5, rtol=1e-5)


# JAX


def npz(folder, **more):
    """Save arrays of a released vit_jax file with others beside them."""
    found = cases_jax.arrays(numbers=cases_jax.RELEASED, positions=cases_jax.TABLE)
    np.savez(folder / "model.npz", **found, **more)
    return folder / "model.npz"


def test_jax__positions_that_are_a_formula_are_asked_about(tmp_path):
    """Without positions the size is asked for, and what was made of it is said; a lost table isn't made up unasked."""
    cases_jax.sincos2d()(tmp_path)
    path = tmp_path / "model.npz"
    with pytest.raises(RequestError, match="holds no positions .*give img_size, to make the table; else .* damaged"):
        convert_checkpoint(path, tmp_path / "no", to="timm")
    report = convert_checkpoint(path, tmp_path / "timm", to="timm", config={"img_size": 32})
    assert any("posemb='sincos2d' was put in" in note for note in report.notes)


def test_jax__layer_before_the_head_goes_only_with_the_head(tmp_path):
    """The tanh layer of ImageNet-21k files is refused with the head, and dropped with it, with the reason."""
    path = npz(tmp_path, **{"pre_logits/kernel": np.ones((32, 32), "f4"), "pre_logits/bias": np.ones(32, "f4")})
    with pytest.raises(NotRepresentable, match=r"pre_logits/kernel: a tanh layer before the head.*drop it"):
        convert_checkpoint(path, tmp_path / "kept", to="timm")
    report = convert_checkpoint(path, tmp_path / "dropped", to="timm", head="drop")
    assert {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"} == report.dropped.keys()
    assert report.config["num_classes"] == 0


def test_jax__loading_without_the_head_needs_no_layer_before_it(tmp_path):
    """Fine-tuning from such a file starts with a new head; keeping its own is refused."""
    path = npz(tmp_path, **{"pre_logits/kernel": np.ones((32, 32), "f4"), "pre_logits/bias": np.ones(32, "f4")})
    model, report = from_pretrained(path, num_classes=3)
    assert model.num_classes == 3
    assert {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"} == report.dropped.keys()
    assert load_pretrained(model, path).dropped.keys() == report.dropped.keys()
    for load in (from_pretrained, lambda source: load_pretrained(model, source, head="keep")):
        with pytest.raises(NotRepresentable, match="a tanh layer before the head"):
            load(path)


def test_jax__hybrids_are_refused(tmp_path):
    """Convolutions before the transformer are named."""
    path = npz(tmp_path, **{"conv_root/kernel": np.ones((7, 7, 3, 64), "f4")})
    with pytest.raises(NotRepresentable, match="conv_root/kernel: a hybrid"):
        converted_from(read_source(path))


def test_jax__optimizer_is_dropped(tmp_path):
    """What a training file holds beside the network is left out, each with the reason."""
    _, source = cases_jax.saved(
        numbers=cases_jax.RELEASED, positions=cases_jax.TABLE, prefix="opt/target/", beside=cases_jax.STATE
    )(tmp_path)
    assert converted_from(read_source(source)).dropped == {"opt/state/step": "the optimizer's state"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "flax's gelu is the tanh form; say act_layer='gelu_tanh'"),
        ({"act_layer": "gelu_tanh", "reg_tokens": 1}, "reg_tokens=1"),
        ({"act_layer": "gelu_tanh", "global_pool": "avg"}, "fc_norm=True|class_token=True"),
        ({"act_layer": "gelu_tanh", "norm_eps": 1e-5}, "norm_eps=1e-05"),
    ],
)
def test_jax__what_flax_cannot_say(fields, reason):
    """Networks that flax's ViT does not compute are refused, each with what is in the way."""
    with pytest.raises(NotRepresentable, match=reason):
        written("jax", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"no_embed_class": True},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"class_token": False, "global_pool": "map", "num_classes": 0},
        {"qkv_bias": False},
        {"init_values": 0.1},
    ],
)
@torch.no_grad()
def test_jax__timms_reader_takes_the_result(tmp_path, fields):
    """A network of ours, written as `.npz`, is what timm's own reader of JAX files gives: equal logits."""
    import timm
    from safetensors.torch import save_file

    model, config = network(act_layer="gelu_tanh", **fields)
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    convert_checkpoint(tmp_path / "in.safetensors", tmp_path / "out", to="jax", config=config)
    without = {"qkv_bias", "init_values"}  # zeros and folded scales stand for them in the file
    options = {name: value for name, value in {**SMALL, **fields}.items() if name not in without}
    theirs = timm.models.VisionTransformer(**options, act_layer="gelu_tanh").eval()
    theirs.load_pretrained(str(tmp_path / "out" / "model.npz"))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=1e-5)
