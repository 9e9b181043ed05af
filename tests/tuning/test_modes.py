"""What trains in each mode, name by name, on several families of networks."""

from __future__ import annotations

from typing import Any

import pytest
from models_helpers import small_fields

from vit_finetune.common.errors import RequestError
from vit_finetune.config import TuningConfig
from vit_finetune.models import VisionTransformer, create_model, replace_head
from vit_finetune.tuning import MODES, apply_tuning

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
            "tuning.mode 'linear_prob' is not one of full, linear_probe, last_n; did you mean 'linear_probe'?",
        ),
        ("everything", None, "tuning.mode 'everything' is not one of full, linear_probe, last_n"),
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
    """The recipe offers exactly the modes that are built."""
    offered = TuningConfig.model_json_schema()["properties"]["mode"]["enum"]
    assert tuple(offered) == MODES
