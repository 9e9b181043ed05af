"""LoRA: the adapters of peft in our networks, their names, their file and their merging, on every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from models_helpers import DIVERSE, randomize, small_fields
from placed_helpers import tiny_fields
from safetensors.torch import load_file

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.export import export_model_folder
from vit_finetune.models import Backbone, create_model, replace_head
from vit_finetune.tuning import add_lora, apply_tuning, merge_lora, require_peft, save_adapter

PLAIN = "vit_tiny_patch16_224"
PLACED = (
    *("beit_base_patch16_224", "beitv2_base_patch16_224", "eva02_tiny_patch14_224", "eva02_base_patch14_224"),
    *("vit_base_patch16_rope_reg1_gap_256", "vit_small_patch16_rope_mixed_224", "vit_small_patch16_dinov3"),
    *("vit_pe_core_base_patch16_224", "vit_base_patch16_rope_ape_224"),
)


def network(name: str = PLAIN, **overrides: Any) -> Backbone:
    """Return a small network with weights that matter and a head for three classes."""
    fields = small_fields(name, **overrides) if name in (PLAIN, *DIVERSE) else tiny_fields(name, **overrides)
    return randomize(replace_head(create_model(name, **fields), 3)).eval()  # type: ignore[return-value]


def images_for(model: Backbone) -> torch.Tensor:
    return torch.randn(2, model.config.in_chans, *model.config.img_size, generator=torch.Generator().manual_seed(1))


def learn(model: Backbone) -> None:
    """Give adapters and head values that training could have given them."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("name", "dora"),
    [(name, False) for name in (*DIVERSE, *PLACED)] + [(name, True) for name in (PLAIN, PLACED[0], PLACED[2])],
)
def test_add_lora__every_family(name: str, dora: bool) -> None:
    """Fresh adapters change nothing, all get a gradient, what they learn changes the logits, merging keeps those."""
    model = network(name)
    layout = {key: tensor.shape for key, tensor in model.state_dict().items()}
    images = images_for(model)
    with torch.no_grad():
        before = model(images)
        add_lora(model, rank=2, dora=dora)
        torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-5)
    apply_tuning(model, "lora")
    learn(model)
    model(images).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in key or key.startswith("head.")), key
    with torch.no_grad():
        learned = model(images)
        merge_lora(model)
        torch.testing.assert_close(model(images), learned, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(learned, before, atol=1e-3)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == layout


def test_add_lora__all_linear_layers_of_the_blocks() -> None:
    """By default every linear layer of the blocks has an adapter, and nothing else: no pooling, no patch embedding."""
    model = network("vit_base_patch16_siglip_224")
    add_lora(model, rank=2)
    apply_tuning(model, "lora")
    adapted = {name.partition(".lora_")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"blocks.{block}.{layer}" for block in range(2) for layer in layers}
    assert adapted == expected | {"head.weight", "head.bias"}


def test_add_lora__chosen_layers_rank_and_count() -> None:
    """Layers are chosen by full name or its end; an adapter of rank r on a x b has r (a + b) values."""
    model = network()
    add_lora(model, rank=3, target_modules=["qkv", "blocks.1.mlp.fc1"])
    tuned = apply_tuning(model, "lora")
    dim = model.embed_dim
    assert tuned.num_trained == 2 * 3 * (dim + 3 * dim) + 3 * (dim + 4 * dim) + 3 * (dim + 1)
    assert {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_A" in name} == {
        *("blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1")
    }


def test_add_lora__names_stay_timms() -> None:
    """Adapters hang below the layers' own names and every other name is as it was, so depths can be told."""
    model = network()
    names = set(model.state_dict())
    add_lora(model, rank=2, target_modules=["qkv"])
    new = {name.replace(".base_layer", "") for name in model.state_dict()} - names
    assert new == {f"blocks.{block}.attn.qkv.lora_{part}.default.weight" for block in range(2) for part in "AB"}
    assert [model.parameter_depth(name) for name, _ in model.named_parameters() if ".lora_A" in name] == [1, 2]


def test_apply_tuning__patterns_over_lora() -> None:
    """Adapters can be frozen by pattern; what an adapter's file cannot hold is refused."""
    model = network()
    add_lora(model, rank=2, target_modules=["qkv"])
    apply_tuning(model, "lora", freeze=["blocks.0.*"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"blocks.1.attn.qkv.lora_{part}.default.weight" for part in "AB"} | {"head.weight", "head.bias"}
    with pytest.raises(RequestError, match=r"tuning.train matches 'norm.weight', but with tuning.mode lora"):
        apply_tuning(model, "lora", train=["norm.*"])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_save_adapter__peft_puts_it_onto_timms_network(tmp_path: Path, dora: bool) -> None:
    """peft loads the folder onto timm's network of the same weights; logits are ours, before and after its merge; the
    merged network, exported as a plain folder, is opened by timm and gives them, too.
    """
    from peft import PeftModel

    model = network(num_classes=3)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = images_for(model)
    add_lora(model, rank=2, alpha=8, dora=dora)
    apply_tuning(model, "lora")
    learn(model)
    with torch.no_grad():
        ours = model(images)
    folder = save_adapter(model, tmp_path / "adapter", base="somewhere")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}

    theirs = timm.create_model(PLAIN, **small_fields(PLAIN, num_classes=3)).eval()
    theirs.load_state_dict(start)
    loaded = PeftModel.from_pretrained(theirs, str(folder)).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), ours, atol=1e-5, rtol=0)
        torch.testing.assert_close(loaded.merge_and_unload()(images), ours, atol=1e-5, rtol=0)

    own = network(num_classes=3)
    own.load_state_dict(start)
    with torch.no_grad():
        torch.testing.assert_close(PeftModel.from_pretrained(own, str(folder)).eval()(images), ours, atol=1e-5, rtol=0)

    merge_lora(model)
    spec = PreprocessSpec(input_size=(3, *model.config.img_size), mean=(0.5,) * 3, std=(0.5,) * 3, source="a test")
    export_model_folder(model, tmp_path / "model", preprocess=spec, class_names=None)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(images), ours, atol=1e-5, rtol=0)


def test_save_adapter__says_what_it_is(tmp_path: Path) -> None:
    """The folder holds rank, alpha, layers and base, the same bytes each time, and of the base the head alone."""
    model = network()
    add_lora(model, rank=2, alpha=8, dropout=0.1, target_modules=["qkv", "fc1"])
    apply_tuning(model, "lora")
    save_adapter(model, tmp_path / "adapter", base="hf-hub:owner/name")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "lora_dropout": 0.1, "modules_to_save": ["head"]}
    assert {key: config[key] for key in wanted} == wanted
    assert config["base_model_name_or_path"] == "hf-hub:owner/name"
    layers = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("attn.qkv", "mlp.fc1")]
    assert config["target_modules"] == layers
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"} | {"head.weight", "head.bias"}
    assert set(tensors) == {f"base_model.model.{name}" for name in expected}
    assert torch.equal(tensors["base_model.model.head.weight"], model.head.weight)
    assert model.peft_config["default"].inference_mode is False, "the network's own configuration is not changed"


def test_lora__refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A layer that is not there, adapters twice, none to save and a missing peft are told, each with the way out."""
    model = network()
    with pytest.raises(RequestError) as error:
        add_lora(model, target_modules=["qvk"])
    assert str(error.value) == (
        "tuning.lora.target_modules names 'qvk', which is no linear layer of the blocks; they have attn.qkv, "
        "attn.proj, mlp.fc1, mlp.fc2"
    )
    with pytest.raises(RequestError, match="no adapters to save"):
        save_adapter(model, tmp_path / "adapter", base="x")
    before = set(model.state_dict())
    merge_lora(model)
    assert set(model.state_dict()) == before
    add_lora(model, rank=1)
    with pytest.raises(RequestError, match="has adapters already"):
        add_lora(model, rank=1)
    monkeypatch.setattr("vit_finetune.tuning.lora.find_spec", lambda name: None)
    with pytest.raises(RequestError) as error:
        require_peft()
    assert str(error.value) == "tuning.mode lora needs peft; install it with: pip install 'vit-finetune[lora]'"
