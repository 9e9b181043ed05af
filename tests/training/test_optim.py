"""Parameter groups written out and equal to timm's; optimizers equal to torch's; their state goes round bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_helpers import DIVERSE, small_fields
from safetensors.torch import load, save
from timm.optim import list_optimizers, param_groups_layer_decay
from torch import Tensor
from training_helpers import adamw, pictures, tiny_vit

from vit_finetune.common.errors import RequestError
from vit_finetune.models import VisionTransformer, create_model
from vit_finetune.training import group_table, make_optimizer, parameter_groups
from vit_finetune.training.optim import load_optimizer_tensors, optimizer_tensors, set_lr
from vit_finetune.tuning import add_lora, apply_tuning


def by_name(groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return name -> (lr_scale, weight_decay), each name once."""
    found = [(name, (group["lr_scale"], group["weight_decay"])) for group in groups for name in group["names"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_parameter_groups__written_out() -> None:
    """Every parameter of a two-block ViT has the rate and decay that the rule says, written out name by name."""
    embedding, first, last, head = 0.125, 0.25, 0.5, 1.0
    expected = {
        "cls_token": (embedding, 0.0),
        "pos_embed": (embedding, 0.0),
        "patch_embed.proj.weight": (embedding, 0.05),
        "patch_embed.proj.bias": (embedding, 0.0),
        "blocks.0.norm1.weight": (first, 0.0),
        "blocks.0.norm1.bias": (first, 0.0),
        "blocks.0.attn.qkv.weight": (first, 0.05),
        "blocks.0.attn.qkv.bias": (first, 0.0),
        "blocks.0.attn.proj.weight": (first, 0.05),
        "blocks.0.attn.proj.bias": (first, 0.0),
        "blocks.0.norm2.weight": (first, 0.0),
        "blocks.0.norm2.bias": (first, 0.0),
        "blocks.0.mlp.fc1.weight": (first, 0.05),
        "blocks.0.mlp.fc1.bias": (first, 0.0),
        "blocks.0.mlp.fc2.weight": (first, 0.05),
        "blocks.0.mlp.fc2.bias": (first, 0.0),
        "blocks.1.norm1.weight": (last, 0.0),
        "blocks.1.norm1.bias": (last, 0.0),
        "blocks.1.attn.qkv.weight": (last, 0.05),
        "blocks.1.attn.qkv.bias": (last, 0.0),
        "blocks.1.attn.proj.weight": (last, 0.05),
        "blocks.1.attn.proj.bias": (last, 0.0),
        "blocks.1.norm2.weight": (last, 0.0),
        "blocks.1.norm2.bias": (last, 0.0),
        "blocks.1.mlp.fc1.weight": (last, 0.05),
        "blocks.1.mlp.fc1.bias": (last, 0.0),
        "blocks.1.mlp.fc2.weight": (last, 0.05),
        "blocks.1.mlp.fc2.bias": (last, 0.0),
        "norm.weight": (last, 0.0),
        "norm.bias": (last, 0.0),
        "head.weight": (head, 0.05),
        "head.bias": (head, 0.0),
    }
    groups = parameter_groups(tiny_vit(), weight_decay=0.05, layer_decay=0.5)
    assert by_name(groups) == expected
    assert [group["lr_scale"] for group in groups] == sorted(group["lr_scale"] for group in groups)


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
@pytest.mark.parametrize("name", DIVERSE)
def test_parameter_groups__equal_timms(name: str, layer_decay: float) -> None:
    """Groups equal timm's param_groups_layer_decay for every family: registers, distilled, map pooling, ..."""
    model = create_model(name, **small_fields(name, depth=3))
    names = {parameter: key for key, parameter in model.named_parameters()}
    expected = {
        names[parameter]: (pytest.approx(group["lr_scale"], rel=1e-12), group["weight_decay"])
        for group in param_groups_layer_decay(
            model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
        )
        for parameter in group["params"]
    }
    ours = by_name(parameter_groups(model, weight_decay=0.05, layer_decay=layer_decay))
    assert ours == expected
    assert ours.keys() == dict(model.named_parameters()).keys()


def test_parameter_groups__frozen_parameters_are_left_out() -> None:
    """Only what trains is in a group, at the rate that its depth has when all train."""
    model = tiny_vit()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("head", "blocks.1.mlp.fc2")))
    groups = by_name(parameter_groups(model, weight_decay=0.05, layer_decay=0.5))
    assert groups == {
        "blocks.1.mlp.fc2.weight": (0.5, 0.05),
        "blocks.1.mlp.fc2.bias": (0.5, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }


def test_parameter_groups__nothing_trains() -> None:
    """A network without a trainable parameter is refused."""
    with pytest.raises(RequestError) as error:
        parameter_groups(tiny_vit().requires_grad_(False), weight_decay=0.05, layer_decay=1.0)
    assert str(error.value) == "no parameter of this network trains; choose another tuning.mode"


def test_parameter_groups__head_lr_scale() -> None:
    """Another rate of the head is the head's alone: the norm behind the blocks keeps its own, the rest too."""
    plain = by_name(parameter_groups(tiny_vit(global_pool="avg"), weight_decay=0.05, layer_decay=0.5))
    fast = by_name(parameter_groups(tiny_vit(global_pool="avg"), weight_decay=0.05, layer_decay=0.5, head_lr_scale=10))
    expected = plain | {"head.weight": (10.0, 0.05), "head.bias": (10.0, 0.0)}
    assert fast == expected
    assert fast["fc_norm.weight"] == (1.0, 0.0)


def test_parameter_groups__layer_decay_under_lora() -> None:
    """Adapters have the rates of the blocks they stand in, matrices with and DoRA's lengths without weight decay."""
    model = tiny_vit()
    add_lora(model, rank=2, target_modules=["qkv"], dora=True)
    apply_tuning(model, "lora")
    groups = by_name(parameter_groups(model, weight_decay=0.05, layer_decay=0.5))
    assert groups == {
        "blocks.0.attn.qkv.lora_A.default.weight": (0.25, 0.05),
        "blocks.0.attn.qkv.lora_B.default.weight": (0.25, 0.05),
        "blocks.0.attn.qkv.lora_magnitude_vector.default.weight": (0.25, 0.0),
        "blocks.1.attn.qkv.lora_A.default.weight": (0.5, 0.05),
        "blocks.1.attn.qkv.lora_B.default.weight": (0.5, 0.05),
        "blocks.1.attn.qkv.lora_magnitude_vector.default.weight": (0.5, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }


def test_group_table__written_out() -> None:
    """The table has a line for each group: how much is in it, its rate and its weight decay."""
    model = tiny_vit()
    apply_tuning(model, "last_n", num_blocks=1)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5, head_lr_scale=4)
    assert group_table(groups, 2e-3) == [
        "group              tensors  values  lr scale  peak lr  weight decay",
        "block 1, no decay       10     720       0.5    0.001             0",
        "block 1                  4  27,648       0.5    0.001          0.05",
        "head x4, no decay        1       3         4    0.008             0",
        "head x4                  1     144         4    0.008          0.05",
    ]


def test_set_lr__writes_every_group() -> None:
    """Each group's rate is the step's rate times its own scale."""
    optimizer = adamw(tiny_vit(), layer_decay=0.5)
    set_lr(optimizer, 0.4)
    assert {(group["lr_scale"], group["lr"]) for group in optimizer.param_groups} == {
        (0.125, 0.05),
        (0.25, 0.1),
        (0.5, 0.2),
        (1.0, 0.4),
    }


def give_gradients(model: VisionTransformer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "nesterov"), [("adamw", False), ("sgd", False), ("sgd", True)], ids=["adamw", "sgd", "nesterov"]
)
def test_make_optimizer__steps_equal_torchs_plain_ones(name: str, nesterov: bool) -> None:
    """Five steps of our optimizer equal those of torch's own, not fused, built group by group, to 1e-6."""
    ours_model, their_model = tiny_vit(), tiny_vit()
    groups = parameter_groups(ours_model, weight_decay=0.05, layer_decay=0.75)
    own: dict[str, Any] = {"betas": (0.8, 0.99), "eps": 1e-7} if name == "adamw" else {"betas": None, "eps": None}
    ours = make_optimizer(groups, name=name, lr=0.01, momentum=0.9, nesterov=nesterov, **own)
    theirs = dict(their_model.named_parameters())
    plain = [
        {
            "params": [theirs[key] for key in group["names"]],
            "lr": 0.01 * group["lr_scale"],
            "weight_decay": group["weight_decay"],
        }
        for group in groups
    ]
    oracle: torch.optim.Optimizer
    if name == "adamw":
        oracle = torch.optim.AdamW(plain, betas=(0.8, 0.99), eps=1e-7, foreach=False, fused=False)
    else:
        oracle = torch.optim.SGD(plain, momentum=0.9, nesterov=nesterov, foreach=False, fused=False)
    for step in range(5):
        set_lr(ours, 0.01)
        for model, optimizer in ((ours_model, ours), (their_model, oracle)):
            give_gradients(model, step)
            optimizer.step()
    for key, parameter in ours_model.named_parameters():
        torch.testing.assert_close(parameter, theirs[key], atol=1e-6, rtol=1e-6, msg=key)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "adamww",
            {},
            "optimizer.name 'adamww' is neither adamw, sgd nor one of timm's optimizers; did you mean 'adamw' or "
            "'radamw' or 'nadamw'?",
        ),
        (
            "zzz",
            {},
            "optimizer.name 'zzz' is neither adamw, sgd nor one of timm's optimizers; try adamw, sgd, lion, lamb, "
            "adopt or muon",
        ),
        ("sgd", {"nesterov": True, "momentum": 0.0}, "optimizer.nesterov needs optimizer.momentum above 0; got 0"),
        ("lion", {"nesterov": True}, "optimizer.nesterov is for optimizer.name: sgd; the name is lion"),
        ("sgd", {"betas": (0.9, 0.99)}, "optimizer.name sgd has no betas; leave optimizer.betas out"),
        ("lion", {"eps": 1e-8}, "optimizer.name lion has no eps; leave optimizer.eps out"),
        ("adamw", {"betas": (0.9, 0.9, 0.9)}, "optimizer.betas has 3 numbers; optimizer.name adamw takes 2"),
        ("adan", {"betas": (0.9, 0.99)}, "optimizer.betas has 2 numbers; optimizer.name adan takes 3"),
        (
            "adahessian",
            {},
            "optimizer.name adahessian cannot be used here: it needs second derivatives, which the training loop does "
            "not compute; take adamw, lion or adopt",
        ),
        (
            "kronw",
            {},
            "optimizer.name kronw cannot be used here: its state holds lists and a random generator, which a "
            "checkpoint here cannot; take adamw, lion or adopt",
        ),
    ],
)
def test_make_optimizer__refuses(name: str, changes: dict[str, Any], message: str) -> None:
    """An unknown name, one that no run here can have, and an option that would be ignored are refused in one line."""
    groups = parameter_groups(tiny_vit(), weight_decay=0.0, layer_decay=1.0)
    values = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "betas": None, "eps": None} | changes
    with pytest.raises(RequestError) as error:
        make_optimizer(groups, name=name, **values)
    assert str(error.value) == message


def test_make_optimizer__timms_options_reach_it() -> None:
    """An optimizer of timm's is timm's class, with timm's defaults where the recipe says nothing."""
    groups = parameter_groups(tiny_vit(), weight_decay=0.05, layer_decay=0.5)
    values: dict[str, Any] = {"lr": 0.1, "momentum": 0.8, "nesterov": False, "eps": None}
    lion = make_optimizer(groups, name="lion", betas=None, **values)
    assert type(lion).__module__ == "timm.optim.lion"
    assert lion.param_groups[0]["betas"] == (0.9, 0.99)
    assert make_optimizer(groups, name="lion", betas=(0.7, 0.9), **values).param_groups[0]["betas"] == (0.7, 0.9)
    assert make_optimizer(groups, name="sgdw", betas=None, **values).param_groups[0]["momentum"] == 0.8


def train(model: VisionTransformer, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = pictures(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_tensors__round_trip(name: str) -> None:
    """State taken out after some steps and put into a new optimizer gives bit-identical next steps."""
    torch.set_num_threads(1)
    model = tiny_vit()
    optimizer = adamw(model, name=name)
    train(model, optimizer, range(3))
    tensors = {key: tensor.clone() for key, tensor in optimizer_tensors(optimizer).items()}
    wanted = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}[name]
    expected = {f"{key}/{state}" for key, _ in model.named_parameters() for state in wanted}
    assert tensors.keys() == expected

    other = tiny_vit(seed=1)
    other.load_state_dict(model.state_dict())
    resumed = adamw(other, name=name)
    load_optimizer_tensors(resumed, tensors)
    for network, state in ((model, optimizer), (other, resumed)):
        train(network, state, range(3, 5))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


USABLE = [name for name in map(str, list_optimizers()) if not name.startswith(("adahessian", "kron", "bnb", "fused"))]


def test_make_optimizer__most_of_timms_names_work() -> None:
    """The list that the next test goes through is not empty by accident."""
    assert {"lion", "lamb", "adopt", "muon", "adan", "adafactorbv", "nadamw", "laprop", "mars"} < set(USABLE)
    assert len(USABLE) > 80


@pytest.mark.parametrize("name", USABLE)
def test_optimizer_tensors__round_trip_of_timms(name: str) -> None:
    """State of every optimizer of timm's goes through a file of tensors: the steps after it are bit-identical."""
    torch.set_num_threads(1)

    def network() -> tuple[Any, torch.optim.Optimizer]:
        model = tiny_vit(depth=1)
        groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.75)
        values: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "nesterov": False, "betas": None, "eps": None}
        return model, make_optimizer(groups, name=name, **values)

    def go(model: VisionTransformer, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            give_gradients(model, step)
            optimizer.step()

    model, optimizer = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    go(model, optimizer, range(2))
    other, resumed = network()
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(resumed, load(save({key: t.clone() for key, t in optimizer_tensors(optimizer).items()})))
    for parts in ((model, optimizer), (other, resumed)):
        go(*parts, range(2, 4))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    assert not torch.equal(model.state_dict()["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])


def test_optimizer_tensors__nothing_before_the_first_step() -> None:
    """An optimizer that has not stepped has no tensors."""
    assert optimizer_tensors(adamw(tiny_vit())) == {}


def test_load_optimizer_tensors__unknown_parameter() -> None:
    """State of a parameter that does not train in this run is refused by name."""
    model = tiny_vit()
    model.blocks[0].requires_grad_(False)
    state: dict[str, Tensor] = {"blocks.0.mlp.fc1.weight/exp_avg": torch.zeros(1)}
    with pytest.raises(RequestError) as error:
        load_optimizer_tensors(adamw(model), state)
    assert str(error.value) == (
        "the optimizer state holds 'blocks.0.mlp.fc1.weight/exp_avg', "
        "but no parameter 'blocks.0.mlp.fc1.weight' trains in this run"
    )
