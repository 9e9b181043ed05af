"""The head swap: what it puts, what it keeps, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from models_helpers import DIVERSE, images, small
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import replace_head

CLASSES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("name", DIVERSE)
def test_replace_head__first_loss_is_ln_k(name):
    """With zeros the first loss is ln K for every kind of network, and the backbone is untouched."""
    model = small(name)
    before = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("head")}
    assert replace_head(model, 7) is model
    loss = nn.functional.cross_entropy(model(images(model.config)), torch.tensor([0, 3]))
    assert loss.item() == pytest.approx(math.log(7), abs=1e-12)
    after = model.state_dict()
    assert set(after) - set(before) == {"head.weight", "head.bias"}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert model.num_classes == model.config.num_classes == 7


def test_replace_head__distilled_reads_the_mean_of_both_tokens():
    """A distilled model gets one head on the mean of class and distillation token, and keeps the token."""
    model = replace_head(small("deit_tiny_distilled_patch16_224"), 3, init="trunc_normal")
    tokens = model.forward_features(images(model.config))
    want = model.head((tokens[:, 0] + tokens[:, 1]) / 2)
    torch.testing.assert_close(model(images(model.config)), want, atol=1e-12, rtol=0)
    assert model.head_dist is None and model.dist_token is not None


@pytest.mark.parametrize(("init", "std"), [("zeros", 0.0), ("trunc_normal", 0.02), (0.1, 0.1)])
def test_replace_head__init(init, std):
    """The starting spread is the one asked for; biases are zero."""
    torch.manual_seed(0)
    head = replace_head(small("vit_tiny_patch16_224", embed_dim=192), 100, init=init).head
    assert head.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not head.bias.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_replace_head__keeps_dtype_device_and_mode(dtype):
    """The new layer has the model's dtype, device and training mode."""
    model = small("vit_tiny_patch16_224").to(dtype)
    assert replace_head(model, 3).head.weight.dtype == dtype
    assert not model.head.training
    assert replace_head(model.to("meta"), 3).head.weight.is_meta


def test_replace_head__copies_rows_by_name():
    """Classes known by name keep their rows whatever case and separators; the others are zero."""
    model = small("vit_tiny_patch16_224")
    old_weight, old_bias = model.head.weight.clone(), model.head.bias.clone()
    previous = ("Golden_Retriever", "cat", "sea-lion", "owl", "fox")
    replace_head(model, 3, class_names=("sea lion", "zebra", "golden retriever"), previous=previous)
    assert torch.equal(model.head.weight[[0, 2]], old_weight[[2, 0]])
    assert torch.equal(model.head.bias[[0, 2]], old_bias[[2, 0]])
    assert not model.head.weight[1].any() and not model.head.bias[1]


def test_replace_head__copies_the_mean_of_two_heads():
    """The rows of a distilled model are the mean of its two heads'."""
    model = small("deit_tiny_distilled_patch16_224")
    want = (model.head.weight + model.head_dist.weight) / 2
    replace_head(model, 5, class_names=CLASSES, previous=CLASSES)
    assert torch.equal(model.head.weight, want)


@pytest.mark.parametrize(
    ("num_classes", "options", "message"),
    [
        (0, {}, "at least 1 class"),
        (2, {"class_names": CLASSES}, "2, but 5 class names"),
        (5, {"init": "ones"}, "init='ones'"),
        (5, {"init": -0.1}, "above 0"),
        (5, {"previous": CLASSES}, "needs class_names"),
        (
            5,
            {"previous": CLASSES[:4], "class_names": CLASSES},
            "names 4 classes, but the model's linear head is one with 5",
        ),
        (2, {"previous": CLASSES, "class_names": ("a b", "A_B")}, "differ at most in case"),
        (1, {"previous": ("x", "X", "c", "d", "e"), "class_names": ("x",)}, r"fits rows \[0, 1\]"),
    ],
)
def test_replace_head__refuses(num_classes, options, message):
    """Contradictory requests are refused before the model is touched."""
    model = small("vit_tiny_patch16_224")
    head = model.head
    with pytest.raises(RequestError, match=message):
        replace_head(model, num_classes, **options)
    assert model.head is head


def test_replace_head__previous_needs_a_head():
    """A headless model has no rows to copy."""
    model = small("vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(RequestError, match="linear head is none"):
        replace_head(model, 5, class_names=CLASSES, previous=CLASSES)
