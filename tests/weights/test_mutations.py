"""A hundred mutated checkpoints: each is refused with the tensor named, or what was done to it is reported.

What no reader can see is not here and not counted, because names, shapes and types stay right: the contents of queries
and values exchanged under right names, a square matrix transposed, two blocks or two rows exchanged, another weight's
values, a norm's scale times two. Against those there are checksums, and the proof that a conversion runs on request
compares with the source as it is. Nor is a CLIP tower here whose projection is gone, which is a tower without one.
"""

from __future__ import annotations

import json
import pickle
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_helpers import hints_of, network_for, options
from safetensors.torch import save, save_file

from vit_finetune import RequestError, ViTConfig, convert_checkpoint, convert_state_dict
from vit_finetune.weights.rules import structure

SIZES = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 5}
SIZES |= {"img_size": (8, 8), "patch_size": (2, 2)}
REGISTERS = {"init_values": 0.1, "reg_tokens": 2}
CHOSEN = {
    "timm": {**REGISTERS, "no_embed_class": True},
    "hf_dinov2": {"init_values": 0.1, "num_classes": 0},
    "hf_dinov2_with_registers": {**REGISTERS, "num_classes": 0},
    "facebook_dinov2_registers": {**REGISTERS, "num_classes": 0},
    "facebook_deit3": {"init_values": 0.1},
    "hf_siglip": {"num_classes": 0},
    "jax": {"act_layer": "gelu_tanh"},
    "mmpretrain": {"init_values": 0.1},
}


def state_of(name):
    """Return a whole state dict of a format, and what a user says about it."""
    defaults = {
        field: default if (default := structure()[field]) in values else values[0]
        for field, values in options(name).items()
    }
    config, _, theirs = network_for(name, defaults | SIZES | CHOSEN.get(name, {}))
    return {key: value.clone() for key, value in theirs.items()}, hints_of(config)


def gone(key, state):
    """Leave a tensor out."""
    del state[key]


def renamed(old, new, state):
    """Give tensors whose names hold a text another one instead."""
    found = [key for key in state if old in key]
    assert found
    for key in found:
        state[key.replace(old, new)] = state.pop(key)


def put(key, value, state):
    """Add or replace a tensor."""
    state[key] = value


def turned(key, state):
    """Transpose a tensor from its first axis to its last."""
    state[key] = state[key].movedim(0, -1).contiguous()
    assert state[key].shape != state[key].movedim(-1, 0).shape


def cut(key, state, *, axis=0):
    """Leave out the last row of an axis."""
    state[key] = state[key].narrow(axis, 0, state[key].shape[axis] - 1).clone()


def grown(key, state):
    """Add an axis."""
    state[key] = state[key][None]


def whole_numbers(key, state):
    """Store a tensor as integers."""
    state[key] = (100 * state[key]).to(torch.int32)


def spoilt(key, state, *, value=torch.nan):
    """Spoil one element."""
    state[key].view(-1)[-1] = value


def copied(old, new, state):
    """Store a tensor under another name too."""
    state[new] = state[old]


def m(name, change, *arguments, names, **options):
    """Return a mutation: the format, what is done, and what the refusal names."""
    words = " ".join(str(argument) for argument in arguments if isinstance(argument, str))
    return pytest.param(name, partial(change, *arguments, **options), names, id=f"{name}: {change.__name__} {words}")


B = "blocks.1"
HF, HF2 = "vit.encoder.layer.1", "encoder.layer.1"
TV = "encoder.layers.encoder_layer_1"
CLIP = "vision_model.encoder.layers.1"
OC = "visual.transformer.resblocks.1"
JAX = "Transformer/encoderblock_1"
HEADS = f"{JAX}/MultiHeadDotProductAttention_1"
VP, ZU, MM = "transformer.layers.1", "1.1", "backbone.layers.1"

REFUSED = [
    m("timm", gone, "cls_token", names="class_token"),
    m("timm", gone, "norm.bias", names="norm.bias"),
    m("timm", gone, f"{B}.ls1.gamma", names=f"{B}.ls1.gamma"),
    m("timm", gone, "blocks.0.ls2.gamma", names="blocks.0.ls2.gamma"),
    m("timm", gone, "blocks.0.attn.qkv.bias", names="blocks.0.attn.qkv.bias"),
    m("timm", gone, "patch_embed.proj.weight", names="patch_embed.proj.weight"),
    m("timm", gone, "pos_embed", names="pos_embed"),
    m("timm", renamed, "reg_token", "reg_tokens", names="reg_tokens"),
    m("timm", renamed, "reg_token", "register_token", names="register_token"),
    m("timm", renamed, "blocks.2.", "blocks.3.", names="blocks.2"),
    m("timm", renamed, "blocks.1.attn.qkv", "blocks.1.attn.vkq", names="blocks.1.attn.vkq"),
    m("timm", turned, f"{B}.attn.qkv.weight", names=f"{B}.attn.qkv.weight"),
    m("timm", turned, f"{B}.mlp.fc2.weight", names=f"{B}.mlp.fc2.weight"),
    m("timm", cut, "pos_embed", names="pos_embed", axis=1),
    m("timm", whole_numbers, "head.weight", names="head.weight"),
    m("timm", spoilt, f"{B}.norm2.weight", names=f"{B}.norm2.weight"),
    m("timm", put, "pre_logits.fc.weight", torch.ones(16, 16), names="pre_logits.fc.weight"),
    m("timm", put, "head_dist.bias", torch.ones(5), names="head_dist.bias"),
    m("hf_vit", gone, f"{HF}.attention.attention.key.bias", names="blocks.1.attn.qkv.bias"),
    m("hf_vit", gone, f"{HF}.attention.attention.query.weight", names="blocks.1.attn.qkv.weight"),
    m("hf_vit", gone, "vit.layernorm.weight", names="layernorm"),
    m("hf_vit", gone, "vit.embeddings.position_embeddings", names="embeddings.position_embeddings"),
    m("hf_vit", gone, f"{HF}.output.dense.weight", names="encoder.layer.1.output.dense.weight"),
    m("hf_vit", renamed, "layer.1.attention.attention.value", "layer.1.attention.q_proj", names="attention.query"),
    m("hf_vit", renamed, "layer.1.attention.attention.query", "layer.1.attention.v_proj", names="attention.value"),
    m(
        "hf_vit",
        renamed,
        "layer.1.attention.attention.query",
        "layer.1.attention.attention.query_layer",
        names="query_layer",
    ),
    m("hf_vit", renamed, "layernorm_before", "layernorm_befor", names="layernorm_befor"),
    m("hf_vit", renamed, "layer.2.", "layer.7.", names="encoder.layer.2"),
    m("hf_vit", turned, f"{HF}.intermediate.dense.weight", names="intermediate.dense"),
    m("hf_vit", turned, "classifier.weight", names="classifier.weight"),
    m("hf_vit", cut, f"{HF}.attention.attention.value.weight", names="blocks.1.attn.qkv.weight"),
    m("hf_vit", cut, "classifier.bias", names="classifier.bias"),
    m("hf_vit", whole_numbers, f"{HF}.attention.attention.key.weight", names="attention.key.weight"),
    m("hf_vit", spoilt, f"{HF}.attention.attention.key.weight", names="layer.1.attention.attention.key.weight"),
    m("hf_vit", put, f"{HF}.layer_scale3.lambda1", torch.ones(16), names="layer_scale3.lambda1"),
    m("hf_dinov2", gone, f"{HF2}.layer_scale1.lambda1", names="encoder.layer.1.layer_scale1.lambda1"),
    m("hf_dinov2", gone, "encoder.layer.0.layer_scale2.lambda1", names="encoder.layer.0.layer_scale2.lambda1"),
    m("hf_dinov2", renamed, "layer.1.layer_scale1.lambda1", "layer.1.layer_scale1.gamma", names="layer_scale1.gamma"),
    m("hf_dinov2", renamed, "layer.1.layer_scale2.lambda1", "layer.1.layer_scale1.lambda2", names="scale1.lambda2"),
    m("hf_dinov2", cut, f"{HF2}.layer_scale1.lambda1", names="layer_scale1.lambda1"),
    m("hf_dinov2", gone, "embeddings.cls_token", names="embeddings.cls_token"),
    m("hf_dinov2", spoilt, f"{HF2}.layer_scale2.lambda1", names="layer.1.layer_scale2.lambda1", value=torch.inf),
    m("hf_dinov2", copied, f"{HF2}.mlp.fc1.weight", f"{HF2}.mlp.weights_in.weight", names="mlp.weights_in"),
    m("hf_dinov2_with_registers", renamed, "register_tokens", "register_token", names="embeddings.register_token"),
    m("hf_dinov2_with_registers", renamed, "register_tokens", "reg_token", names="embeddings.reg_token"),
    m("hf_dinov2_with_registers", gone, "embeddings.cls_token", names="class and register tokens"),
    m("hf_dinov2_with_registers", whole_numbers, "embeddings.cls_token", names="embeddings.cls_token"),
    m("hf_dinov2_with_registers", cut, "embeddings.register_tokens", names="register_tokens", axis=2),
    m("facebook_dinov2_registers", renamed, "register_tokens", "storage_tokens", names="storage_tokens"),
    m("facebook_dinov2_registers", gone, f"{B}.norm1.weight", names=f"{B}.norm1.weight"),
    m("facebook_deit3", gone, f"{B}.gamma_1", names=f"{B}.gamma_1"),
    m("facebook_deit3", renamed, "blocks.1.gamma_2", "blocks.1.gamma_3", names="blocks.1.gamma_3"),
    m("facebook_deit3", grown, f"{B}.gamma_1", names=f"{B}.gamma_1"),
    m("facebook_deit3", copied, f"{B}.gamma_1", f"{B}.ls1.gamma", names=f"{B}.ls1.gamma"),
    m("hf_clip", gone, f"{CLIP}.self_attn.q_proj.weight", names="blocks.1.attn.qkv.weight"),
    m("hf_clip", renamed, "pre_layrnorm.bias", "pre_layernorm.bias", names="pre_layernorm.bias"),
    m("hf_clip", renamed, "post_layernorm.weight", "post_layrnorm.weight", names="post_layrnorm.weight"),
    m("hf_clip", renamed, "layers.1.self_attn.v_proj", "layers.1.self_attn.q_prj", names="self_attn.q_prj"),
    m("hf_clip", cut, "vision_model.embeddings.class_embedding", names="class_embedding"),
    m("hf_clip", put, "visual_projection.bias", torch.ones(5), names="visual_projection.bias"),
    m("hf_siglip", gone, "vision_model.head.attention.in_proj_bias", names="in_proj_bias"),
    m("hf_siglip", cut, "vision_model.head.attention.in_proj_weight", names="in_proj_weight"),
    m("hf_siglip", gone, "vision_model.head.mlp.fc1.bias", names="head.mlp.fc1.bias"),
    m("hf_siglip", renamed, "layers.1.self_attn.k_proj", "layers.1.self_attn.key", names="self_attn.key"),
    m("torchvision", gone, "class_token", names="class_token"),
    m("torchvision", gone, "encoder.ln.weight", names="encoder.ln"),
    m("torchvision", copied, f"{TV}.mlp.0.weight", f"{TV}.mlp.linear_1.weight", names=f"{TV}.mlp.0.weight"),
    m("torchvision", renamed, "encoder_layer_1.", "encoder_layer_01.", names="encoder_layer_1"),
    m("torchvision", put, "heads.pre_logits.weight", torch.ones(16, 16), names="heads.pre_logits.weight"),
    m("torchvision", turned, f"{TV}.self_attention.in_proj_weight", names=f"{TV}.self_attention.in_proj_weight"),
    m("torchvision", whole_numbers, "conv_proj.weight", names="conv_proj.weight"),
    m("open_clip", turned, "visual.proj", names="visual.proj"),
    m("open_clip", gone, f"{OC}.attn.in_proj_bias", names="resblocks.1.attn.in_proj_bias"),
    m("open_clip", put, f"{OC}.attn.ln_inner.weight", torch.ones(16), names="attn.ln_inner.weight"),
    m("open_clip", put, "visual.attn_pool.query", torch.ones(4, 16), names="attn_pool.query"),
    m("jax", turned, f"{HEADS}/out/kernel", names="blocks.1.attn.proj.weight"),
    m("jax", turned, f"{HEADS}/query/kernel", names="blocks.1.attn.qkv.weight"),
    m("jax", turned, "embedding/kernel", names="embedding/kernel"),
    m("jax", gone, f"{HEADS}/value/bias", names="blocks.1.attn.qkv.bias"),
    m("jax", renamed, "encoderblock_1/LayerNorm_2", "encoderblock_1/LayerNorm_5", names="LayerNorm_5"),
    m("jax", put, "pre_logits/kernel", torch.ones(16, 16), names="pre_logits/kernel"),
    m("jax", renamed, "Dense_1/kernel", "Dense_1/weight", names="Dense_1/weight"),
    m("vit_pytorch_c", gone, f"{VP}.0.to_qkv.weight", names=f"{VP}.0.to_qkv.weight"),
    m("vit_pytorch_c", gone, "to_patch_embedding.1.bias", names="to_patch_embedding.1.bias"),
    m("vit_pytorch_c", cut, "to_patch_embedding.2.weight", names="patch", axis=1),
    m("zuppichini", gone, f"{ZU}.0.fn.1.qkv.bias", names=f"{ZU}.0.fn.1.qkv.bias"),
    m("zuppichini", renamed, "1.1.0.fn.1.projection", "1.1.0.fn.1.proj", names="1.1.0.fn.1.proj"),
    m("mmpretrain", gone, f"{MM}.attn.gamma1.weight", names="layers.1.attn.gamma1.weight"),
    m("mmpretrain", put, "head.layers.pre_logits.weight", torch.ones(4, 16), names="head.layers.pre_logits.weight"),
]


@pytest.mark.parametrize(("name", "change", "names"), REFUSED)
def test_mutated__is_refused_with_the_tensor_named(name, change, names):
    """A mutated state dict gives one error, which names the tensor in the file's words, or the one it makes up."""
    state, hints = state_of(name)
    assert convert_state_dict(state, to=name, source=name, config=hints).keys() == state.keys()  # it was whole before
    change(state)
    with pytest.raises(RequestError) as caught:
        convert_state_dict(state, to=name, source=name, config=hints)
    assert names in str(caught.value)


def without_layer_scale(state):
    """Leave every LayerScale out."""
    for key in [key for key in state if ".ls" in key or "layer_scale" in key]:
        del state[key]


UNSCALED = [
    pytest.param("timm", ViTConfig(**SIZES, **CHOSEN["timm"]), "blocks.0.ls1.gamma", id="stated by a config"),
    pytest.param("hf_dinov2", None, "encoder.layer.0.norm1", id="part of the fingerprint"),
]


@pytest.mark.parametrize(("name", "config", "names"), UNSCALED)
def test_mutated__all_layer_scale_is_gone(name, config, names):
    """A file without any LayerScale is refused where a config or its fingerprint says that it has it."""
    state, hints = state_of(name)
    without_layer_scale(state)
    with pytest.raises(RequestError, match=names):
        convert_state_dict(state, to="timm", config=config or hints)


class Payload:
    """An object whose unpickling would create a file."""

    def __reduce__(self):
        return open, ("payload_ran", "w")


def payload_beside(state):
    """Save weights with a payload beside them."""
    torch.save({"state_dict": state, "extra": Payload()}, "evil.pth")
    return "evil.pth"


def payload_alone(state):
    """Save a payload under a weight file's name."""
    Path("evil.bin").write_bytes(pickle.dumps({**dict.fromkeys(state, 0), "norm.weight": Payload()}))
    return "evil.bin"


def named_twice(state):
    """Save a safetensors file that names a tensor twice."""
    data = save(state)
    length = struct.unpack("<Q", data[:8])[0]
    text, body = data[8 : 8 + length].decode().rstrip(), data[8 + length :]
    text = text.removesuffix("}") + f',"norm.bias":{json.dumps(json.loads(text)["norm.weight"])}}}'
    Path("twice.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode() + body)
    return "twice.safetensors"


def objects(state):
    """Save Python objects among arrays."""
    np.savez("objects.npz", **{"norm.weight": np.array([{}], dtype=object), "pos_embed": state["pos_embed"].numpy()})
    return "objects.npz"


def two_networks(state):
    """Save a teacher and a student."""
    torch.save({"teacher": state, "student": {key: value * 0 for key, value in state.items()}}, "dino.pth")
    return "dino.pth"


FILES = [
    pytest.param(payload_beside, "evil.pth holds more than weights.*open", id="a payload beside weights"),
    pytest.param(payload_alone, "evil.bin", id="a payload in place of weights"),
    pytest.param(named_twice, "names norm.bias more than once", id="a tensor named twice"),
    pytest.param(objects, "norm.weight.* holds Python objects", id="objects among arrays"),
    pytest.param(two_networks, "two networks, 'teacher' and 'student'", id="two networks"),
]


@pytest.mark.parametrize(("make", "message"), FILES)
def test_mutated__files_are_refused(make, message, tmp_path, monkeypatch):
    """Payloads never run, and what can't be told apart is asked about; nothing is written."""
    monkeypatch.chdir(tmp_path)
    state, hints = state_of("timm")
    path = make(state)
    with pytest.raises(RequestError, match=message):
        convert_checkpoint(path, "out", to="timm", config=hints)
    assert [entry.name for entry in tmp_path.iterdir()] == [path]


REPORTED = [
    pytest.param("hf_vit", "vit.pooler.dense.weight", "tanh layer", id="a pooler"),
    pytest.param("hf_dinov2", "embeddings.mask_token", "pre-training", id="a mask token of other values"),
    pytest.param("hf_clip", "text_model.embeddings.weight", "text tower", id="a text tower"),
    pytest.param("hf_vit", "decoder.decoder_embed.weight", "masked pre-training", id="a decoder"),
]


@pytest.mark.parametrize(("name", "key", "reason"), REPORTED)
def test_mutated__what_has_no_place_is_reported(name, key, reason, tmp_path):
    """A tensor that belongs to no network here is named in the report with the reason; the rest is converted."""
    state, hints = state_of(name)
    save_file({**state, key: torch.randn(16, 16)}, tmp_path / "model.safetensors")
    report = convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", to="timm", config=hints, verify=False)
    assert reason in report.dropped[key]
    assert any(key in line and reason in line for line in report.lines())
    assert key not in {source for row in report.tensors for source in row.sources}


def test_mutations__are_a_hundred():
    """As many as were promised, no two the same."""
    mutations = [*REFUSED, *UNSCALED, *FILES, *REPORTED]
    assert len({mutation.id for mutation in mutations}) == len(mutations) == 100
