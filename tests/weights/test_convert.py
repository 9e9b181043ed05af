"""State dicts between layouts: what is asked for, refused and rewritten; no mutilated file passes for a whole one."""

from __future__ import annotations

import pytest
import torch
from formats_helpers import randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_helpers import tiny

from vit_finetune import NotRepresentable, RequestError, VisionTransformer, ViTConfig, convert_state_dict, create_model
from vit_finetune.weights.conversion import from_timm, to_timm
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.lazy import Plan, lazily
from vit_finetune.weights.network import network_of

SIZES = {"img_size": (32, 32), "patch_size": (8, 8), "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def network(**fields):
    """Return a small network of ours with random values, and its config."""
    config = ViTConfig(**{**SIZES, **fields})
    return randomize(VisionTransformer(config)), config


def hf_state():
    """Return a small hf_vit state dict and the network it is of."""
    model, config = network()
    return convert_state_dict(model.state_dict(), to="hf_vit", config=config), config


def test_convert_state_dict__there_and_back_is_bitwise():
    """timm to transformers to torchvision to timm is the file that it was."""
    model, config = network()
    state = model.state_dict()
    for name in ("hf_vit", "torchvision", "timm"):
        state = convert_state_dict(state, to=name, config=config)
    assert list(state) == list(model.state_dict()) or state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_convert_state_dict__has_memory_of_its_own():
    """Writing into the result changes nothing that the caller gave, renamed tensors and layers of a stack included."""
    state, config = hf_state()
    before = {name: value.clone() for name, value in state.items()}
    for value in convert_state_dict(state, to="torchvision", config=config).values():
        value.zero_()
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_convert_state_dict__says_what_it_needs():
    """What leaves no trace in weights is asked for by name, and only where it matters."""
    state, _ = hf_state()
    assert "blocks.1.attn.qkv.weight" in convert_state_dict(state, to="timm")
    with pytest.raises(RequestError, match="do not tell num_heads, norm_eps, act_layer"):
        convert_state_dict(state, to="torchvision")
    with pytest.raises(RequestError, match="do not tell num_heads; give it"):
        convert_state_dict(state, to="torchvision", config={"eps": 1e-6, "act": "gelu"})


@pytest.mark.parametrize(
    "config",
    [
        {"num_heads": 2, "eps": 1e-6, "act": "gelu"},
        {"num_heads": 2, "norm_eps": 1e-6, "act_layer": "gelu", "pool": "token", "img_size": 32, "patch_size": 8},
        {"model_type": "vit", "num_attention_heads": 2, "layer_norm_eps": 1e-6, "hidden_act": "gelu"},
        ViTConfig(**SIZES),
        {"architecture": "vit_tiny_patch16_224", "model_args": {k: v for k, v in SIZES.items() if k != "num_classes"}},
    ],
    ids=["hints", "more hints", "transformers", "ViTConfig", "timm"],
)
def test_convert_state_dict__takes_what_people_have(config):
    """Hints, a library's own configuration and a `ViTConfig` say the same."""
    state, known = hf_state()
    result = convert_state_dict(state, to="torchvision", config=config)
    wanted = convert_state_dict(state, to="torchvision", config=known)
    assert all(torch.equal(result[name], value) for name, value in wanted.items())


def test_convert_state_dict__takes_an_architecture_by_name():
    """A name is as good as a config; its number of classes is the file's."""
    model = tiny("vit_tiny_patch16_224", img_size=224, embed_dim=192, num_heads=3, depth=12)
    state = convert_state_dict(model.state_dict(), to="hf_vit", config="vit_tiny_patch16_224")
    assert state["classifier.weight"].shape == (5, 192)
    with pytest.raises(RequestError, match="did you mean 'vit_tiny_patch16_224'"):
        convert_state_dict(model.state_dict(), to="hf_vit", config="vit_tiny_patch16_22")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "hf_vitt"}, "no format 'hf_vitt'; did you mean 'hf_vit'"),
        ({"to": "timm", "source": "hf"}, "no format 'hf'"),
        ({"to": "timm", "source": "torchvision"}, "the torchvision names don't add up"),
        ({"to": "torchvision", "config": {"epss": 1}}, "a ViT has no 'epss'; did you mean 'eps'"),
        ({"to": "torchvision", "config": {"num_heads": 3, "eps": 1e-6, "act": "gelu"}}, "not divisible by 3"),
    ],
)
def test_convert_state_dict__wrong_requests(arguments, message):
    """Each mistake is one line that names it."""
    state, _ = hf_state()
    with pytest.raises(RequestError, match=message):
        convert_state_dict(state, **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_pool": "avg"}, "global_pool='avg' .it holds 'token'.; fc_norm=True"),
        ({"norm_eps": 1e-5}, r"norm_eps=1e-05 \(it holds 1e-06\)"),
        ({"act_layer": "quick_gelu"}, "act_layer='quick_gelu'"),
        ({"pre_norm": True}, "pre_norm=True"),
        ({"mlp_layer": "swiglu"}, "mlp_layer='swiglu'"),
        ({"block_fn": "res_post"}, "block_fn='res_post'"),
        ({"num_classes": 0}, "no head"),
        ({"img_size": (32, 16)}, "squares"),
    ],
)
def test_not_representable__names_every_option_that_has_no_words(fields, message):
    """torchvision holds one kind of ViT; anything else is refused with the option, its value and what it may be."""
    model, config = network(**fields)
    with pytest.raises(NotRepresentable, match=message):
        convert_state_dict(model.state_dict(), to="torchvision", config=config)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_values": 0.1},
        {"qkv_bias": False},
        {"no_embed_class": True},
        {"init_values": 0.1, "qkv_bias": False, "no_embed_class": True},
    ],
    ids="+".join,
)
def test_rewrites__widen_what_can_be_written_and_keep_the_function(fields):
    """LayerScale is folded, missing biases and positions become zeros: the same logits in float64."""
    model, config = network(**fields)
    model = model.double()
    state = convert_state_dict(model.state_dict(), to="torchvision", config=config)
    back = convert_state_dict(state, to="timm")
    plain = VisionTransformer(ViTConfig(**SIZES)).double().eval()
    plain.load_state_dict(back, strict=True)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), model(images), atol=1e-12, rtol=0)


NAMES = sorted(hf_state()[0])


@pytest.mark.parametrize("name", NAMES)
def test_mutated__a_missing_tensor_is_named(name):
    """A file without any one of its tensors is refused, and the message names it or its place."""
    state, _ = hf_state()
    del state[name]
    hints = {"num_heads": 2, "eps": 1e-6, "act": "gelu"}
    with pytest.raises(RequestError) as caught:
        convert_state_dict(state, to="timm", source="hf_vit", config=hints)
    bare = name.removeprefix("vit.").rsplit(".", 1)[0]
    fused = next((part for part in ("query", "key", "value") if f".{part}." in name), None)
    assert ("blocks" in str(caught.value)) if fused else (bare in str(caught.value))


@pytest.mark.parametrize("name", NAMES)
def test_mutated__a_misspelt_tensor_is_named(name):
    """A wrong name is listed with the closest right one."""
    state, config = hf_state()
    state[f"{name}_x"] = state.pop(name)
    with pytest.raises(RequestError, match=f"{name}_x|no known ViT layout"):
        convert_state_dict(state, to="timm", config=config)


@pytest.mark.parametrize("name", NAMES)
def test_mutated__a_wrong_shape_is_named(name):
    """One row too many anywhere is refused with both shapes."""
    state, config = hf_state()
    state[name] = torch.cat([state[name], state[name][:1]])
    with pytest.raises(RequestError, match="shape|instead of|head|more than|give"):
        convert_state_dict(state, to="timm", config=config if "classifier" not in name else {"num_classes": 3})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_mutated__values_that_are_not_finite(value):
    """NaN and infinity are refused by the tensor's name."""
    state, config = hf_state()
    state["vit.encoder.layer.1.intermediate.dense.weight"][3, 4] = value
    with pytest.raises(RequestError, match=r"blocks\.1\.mlp\.fc1\.weight holds 1 values that are NaN or infinite"):
        convert_state_dict(state, to="timm", config=config)


def test_mutated__integers_are_no_weights():
    """A tensor of another kind of type is refused by its name."""
    state, config = hf_state()
    state["vit.layernorm.weight"] = torch.ones(16, dtype=torch.int64)
    with pytest.raises(RequestError, match=r"1 not of a floating-point type: vit\.layernorm\.weight \(int64\)"):
        convert_state_dict(state, to="timm", config=config)


def test_network_of__names_what_is_missing_in_the_files_words():
    """The message speaks the file's language, not ours."""
    state, _ = hf_state()
    del state["vit.encoder.layer.1.layernorm_after.bias"]
    with pytest.raises(RequestError, match=r"1 missing: encoder\.layer\.1\.layernorm_after\.bias"):
        convert_state_dict(state, to="timm")


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    heads=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([8, 12, 16]),
    depth=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    classes=st.integers(0, 4),
)
@pytest.mark.parametrize("name", ["hf_vit", "hf_dinov2", "torchvision"])
def test_round_trip__over_random_networks(name, data, heads, width, depth, grid, classes):
    """Any network that a format holds comes back bitwise, in whatever order its tensors are."""
    classes = max(classes, 1) if name == "torchvision" else classes
    grid = grid if name == "hf_vit" else (grid[0], grid[0])
    config = ViTConfig(
        img_size=(4 * grid[0], 4 * grid[1]),
        patch_size=(4, 4),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        init_values=0.1 if name == "hf_dinov2" else None,
        mlp_ratio=2.0,
    )
    state = create_model("vit_tiny_patch16_224", **{**config.to_mapping(), "num_classes": classes}).state_dict()
    written = from_timm(state, FORMATS[name], config)
    shuffled = dict(data.draw(st.permutations(list(written.items()))))
    converted = to_timm(shuffled, FORMATS[name], {"img_size": config.img_size})
    assert converted.tensors.keys() == state.keys()
    assert all(torch.equal(converted.tensors[key], value) for key, value in state.items())
    known = {"num_heads": heads, "norm_eps": 1e-6, "act_layer": "gelu", **converted.fields}
    told = network_of(Plan(lazily(converted.tensors), fields=known), FORMATS[name], stated=None)
    assert (told.embed_dim, told.depth, told.img_size) == (width, depth, config.img_size)
