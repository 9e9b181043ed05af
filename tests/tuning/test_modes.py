"""What trains in each mode, name by name, on several families of networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_helpers import small_fields

from vit_finetune.common.errors import RequestError
from vit_finetune.config import TuningConfig
from vit_finetune.models import VisionTransformer, create_model, replace_head
from vit_finetune.tuning import MODES, apply_tuning, count_tuning

PLAIN = "vit_tiny_patch16_224"
FAMILIES = (
    PLAIN,
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "eva_large_patch14_196",
)


def network(name: str = PLAIN, *, depth: int = 3) -> VisionTransformer:
    """Return a small network with a new head, none of whose parameters is as the modes want it."""
    model = replace_head(create_model(name, **small_fields(name, depth=depth)), 3)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    return model


def trained(model: VisionTransformer) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def tops(names: set[str]) -> set[str]:
    """Return the first part of each name, of a block with its number."""
    return {".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in names}


@pytest.mark.parametrize("name", FAMILIES)
def test_apply_tuning__full(name: str) -> None:
    """full: every parameter trains."""
    model = network(name)
    apply_tuning(model, "full")
    assert trained(model) == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_apply_tuning__linear_probe(name: str) -> None:
    """linear_probe: the head's weight and bias train, and nothing else, not even a pooling attention."""
    model = network(name)
    apply_tuning(model, "linear_probe")
    assert trained(model) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("name", "after_the_blocks"),
    [
        (PLAIN, {"norm", "head"}),
        ("deit_tiny_distilled_patch16_224", {"norm", "head"}),
        ("vit_base_patch32_clip_224", {"norm", "head"}),
        ("vit_small_patch14_reg4_dinov2", {"norm", "head"}),
        ("vit_base_patch16_siglip_224", {"norm", "attn_pool", "head"}),
        ("eva_large_patch14_196", {"fc_norm", "head"}),
    ],
)
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_apply_tuning__last_n(name: str, after_the_blocks: set[str], num_blocks: int) -> None:
    """last_n: the last blocks train and all that follows them: final norm, pooling attention, head; no embedding."""
    model = network(name)
    apply_tuning(model, "last_n", num_blocks=num_blocks)
    blocks = {f"blocks.{index}" for index in range(3 - num_blocks, 3)}
    assert tops(trained(model)) == blocks | after_the_blocks
    frozen = dict(model.named_parameters()).keys() - trained(model)
    assert not tops(frozen) & (blocks | after_the_blocks), "a part trains whole or not at all"


@pytest.mark.parametrize(("mode", "extra"), [("full", {}), ("linear_probe", {}), ("last_n", {"num_blocks": 1})])
def test_apply_tuning__counts(mode: str, extra: dict[str, Any]) -> None:
    """The counts are numbers of values, and add up to the whole network."""
    model = network()
    tuned = apply_tuning(model, mode, **extra)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert tuned.num_trained == sum(sizes[name] for name in trained(model))
    assert tuned.num_trained + tuned.num_frozen == sum(sizes.values())
    if mode == "linear_probe":
        assert tuned.num_trained == 3 * (model.embed_dim + 1)


def test_apply_tuning__can_be_changed() -> None:
    """A mode decides about every parameter, whatever was chosen before."""
    model = network()
    apply_tuning(model, "linear_probe")
    apply_tuning(model, "last_n", num_blocks=3)
    apply_tuning(model, "full")
    assert trained(model) == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("mode", "num_blocks", "message"),
    [
        ("last_n", None, "tuning.num_blocks is None; this network has 3 blocks, give 1 to 3"),
        ("last_n", 0, "tuning.num_blocks is 0; this network has 3 blocks, give 1 to 3"),
        ("last_n", 4, "tuning.num_blocks is 4; this network has 3 blocks, give 1 to 3"),
        (
            "linear_prob",
            None,
            "tuning.mode 'linear_prob' is not one of full, linear_probe, last_n, bias, norm, attention, lora; "
            "did you mean 'linear_probe'?",
        ),
        (
            "everything",
            None,
            "tuning.mode 'everything' is not one of full, linear_probe, last_n, bias, norm, attention, lora",
        ),
        ("lora", None, "tuning.mode lora trains adapters and this network has none; call add_lora(model) first"),
    ],
)
def test_apply_tuning__refuses(mode: str, num_blocks: int | None, message: str) -> None:
    """An unknown mode and blocks that are not there are refused, and no parameter is changed."""
    model = network()
    before = trained(model)
    with pytest.raises(RequestError) as error:
        apply_tuning(model, mode, num_blocks=num_blocks)
    assert str(error.value) == message
    assert trained(model) == before


def test_modes__are_those_of_the_recipe() -> None:
    """The recipe offers exactly the modes that are built, those that are a row of them, and the readout."""
    offered = TuningConfig.model_json_schema()["properties"]["mode"]["enum"]
    assert tuple(offered) == (*MODES, "lp_ft", "gradual", "readout")


HEAD = {"head.weight", "head.bias"}
BLOCK_NORMS = {f"blocks.{block}.norm{norm}.{own}" for block in "01" for norm in "12" for own in ("weight", "bias")}
OWN = ("weight", "bias")
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize(
    ("mode", "expected", "count"),
    [
        (
            "bias",
            {"patch_embed.proj.bias", "norm.bias", *(name for name in BLOCK_NORMS if name.endswith("bias"))}
            | {f"blocks.{block}.{layer}.bias" for block in "01" for layer in LAYERS},
            # patch embedding 24, final norm 24, of each block two norms, qkv, proj and fc2, fc1
            24 + 24 + 2 * (2 * 24 + 72 + 24 + 24 + 96),
        ),
        ("norm", {"norm.weight", "norm.bias"} | BLOCK_NORMS, 5 * 2 * 24),
        (
            "attention",
            {"pos_embed"} | {f"blocks.{b}.attn.{part}.{own}" for b in "01" for part in ("qkv", "proj") for own in OWN},
            13 * 24 + 2 * (72 * 25 + 24 * 25),
        ),
    ],
)
def test_apply_tuning__written_out(mode: str, expected: set[str], count: int) -> None:
    """What bias, norm and attention train of a two-block ViT of width 24, name by name, and how many values that is."""
    model = network(depth=2)
    tuned = apply_tuning(model, mode)
    assert trained(model) == expected | HEAD
    assert tuned.num_trained == count + 3 * 25


def test_apply_tuning__bias_equals_pefts() -> None:
    """bias: what peft's `bias="all"` leaves trainable, and the head."""
    from peft import LoraConfig, inject_adapter_in_model

    model, theirs = network(depth=2), network(depth=2)
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["blocks.0.attn.qkv"], bias="all"), theirs)
    names = {name.replace("base_layer.", "") for name in trained(theirs) if ".lora_" not in name}
    apply_tuning(model, "bias")
    assert trained(model) == names | HEAD


def test_apply_tuning__attention_of_other_families() -> None:
    """Tables and biases inside attention train with it; a block that fuses attention and MLP is refused."""
    beit = replace_head(create_model("beit_base_patch16_224", depth=1, embed_dim=24, num_heads=3, img_size=32), 3)
    apply_tuning(beit, "attention")
    own = ("q_bias", "v_bias", "relative_position_bias_table", "qkv.weight", "proj.weight", "proj.bias")
    assert trained(beit) == HEAD | {f"blocks.0.attn.{name}" for name in own}
    with pytest.raises(RequestError, match="one projection for attention and MLP"):
        apply_tuning(network("vit_dpwee_patch16_reg1_gap_256"), "attention")


def test_apply_tuning__patterns_are_laid_over_the_mode() -> None:
    """train adds to what the mode trains, freeze takes away, and `*` stands for anything, dots too."""
    model = network()
    apply_tuning(model, "linear_probe", train=["norm.*"], freeze=["head.bias"])
    assert trained(model) == {"norm.weight", "norm.bias", "head.weight"}
    apply_tuning(model, "full", freeze=["blocks.*", "patch_embed.*", "*_embed", "cls_token"])
    assert trained(model) == {"norm.weight", "norm.bias", *HEAD}


@pytest.mark.parametrize(
    ("mode", "patterns", "message"),
    [
        (
            "full",
            {"freeze": ["block.0.*"]},
            "pattern 'block.0.*' of tuning.freeze matches no parameter of this network; names are such as cls_token, "
            "head.bias, and * stands for anything",
        ),
        (
            "linear_probe",
            {"train": ["norm.wieght"]},
            "pattern 'norm.wieght' of tuning.train matches no parameter of this network; did you mean "
            "'norm.weight'?; names are such as cls_token, head.bias, and * stands for anything",
        ),
        (
            "linear_probe",
            {"train": ["blocks.2.*"], "freeze": ["*.bias"]},
            "parameter 'blocks.2.attn.proj.bias' is matched by 'blocks.2.*' of tuning.train and '*.bias' of "
            "tuning.freeze; make the patterns agree",
        ),
        (
            "linear_probe",
            {"freeze": ["head.*"]},
            "no parameter of this network trains; choose another tuning.mode or fewer tuning.freeze",
        ),
    ],
)
def test_apply_tuning__refuses_patterns(mode: str, patterns: dict[str, list[str]], message: str) -> None:
    """A pattern without a match, a contradiction and a choice of nothing are refused; no parameter is changed."""
    model = network()
    before = trained(model)
    for act in (apply_tuning, count_tuning):
        with pytest.raises(RequestError) as error:
            act(model, mode, **patterns)
        assert str(error.value) == message
    assert trained(model) == before


@pytest.mark.parametrize("mode", ["full", "linear_probe", "bias", "norm", "attention"])
def test_count_tuning__changes_nothing(mode: str) -> None:
    """Counting gives what applying gives, and leaves the network as it was."""
    model = network()
    before = trained(model)
    counted = count_tuning(model, mode)
    assert trained(model) == before
    assert counted == apply_tuning(model, mode)


def noisy(**changes: Any) -> Any:
    """Return a network with every kind of noise."""
    rates = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    fields = small_fields(PLAIN, depth=3) | dict.fromkeys(rates, 0.5) | changes
    return replace_head(create_model(PLAIN, **fields), 3)


@pytest.mark.parametrize(
    ("mode", "changes", "noise"),
    [
        ("full", {}, {"pos_drop", "patch_drop", "blocks.0", "blocks.1", "blocks.2", "head_drop"}),
        ("bias", {}, {"pos_drop", "patch_drop", "blocks.0", "blocks.1", "blocks.2", "head_drop"}),
        ("linear_probe", {}, {"head_drop"}),
        ("last_n", {"num_blocks": 1}, {"blocks.2", "head_drop"}),
        ("linear_probe", {"train": ["blocks.0.*"]}, {"pos_drop", "patch_drop", "blocks.0", "head_drop"}),
        ("full", {"freeze": ["blocks.1.*", "head.*"]}, {"pos_drop", "patch_drop", "blocks.0", "blocks.2"}),
    ],
)
def test_apply_tuning__frozen_parts_are_without_noise(mode: str, changes: dict[str, Any], noise: set[str]) -> None:
    """In training, dropout acts in blocks that train, before the first block if that or the embedding does, at the head
    if that does; in a frozen part it is off, whenever the network is told to train.
    """
    model = noisy()
    apply_tuning(model, mode, **changes)
    parts = [*("pos_drop", "patch_drop", "head_drop"), *(f"blocks.{index}" for index in range(3))]
    for _ in range(2):
        model.train()
        assert {part for part in parts if model.get_submodule(part).training} == noise
        for block in range(3):
            inside = {module.training for module in model.blocks[block].modules()}
            assert inside == {f"blocks.{block}" in noise}
        model.eval()
        assert not any(module.training for module in model.modules())
    apply_tuning(model, "full")
    model.train()
    assert all(module.training for module in model.modules())


def test_apply_tuning__frozen_features_are_those_of_evaluation() -> None:
    """A linear probe trains on exactly the features that evaluation sees."""
    model = noisy(drop_rate=0.0)
    apply_tuning(model, "linear_probe")
    images = torch.randn(2, 3, *model.config.img_size)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("mode", "changes"),
    [("linear_probe", {}), ("last_n", {"num_blocks": 1}), ("last_n", {"num_blocks": 2}), ("full", {})],
)
def test_apply_tuning__nothing_is_kept_for_a_frozen_prefix(mode: str, changes: dict[str, Any]) -> None:
    """Before the first parameter that trains, torch keeps no tensor for the backward pass, and pictures need none."""
    model = network()
    apply_tuning(model, mode, **changes)
    model.train()
    images = torch.randn(2, 3, *model.config.img_size)
    first = {"linear_probe": 4, "full": 0}.get(mode, 4 - changes.get("num_blocks", 0))
    kept: dict[int, int] = {}
    inside = [0]
    for depth, part in enumerate([model.patch_embed, *model.blocks, model.head]):
        part.register_forward_pre_hook(lambda *_, depth=depth: inside.__setitem__(0, depth))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[inside[0]] = kept.get(inside[0], 0) + 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
    assert min(kept) == first
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
