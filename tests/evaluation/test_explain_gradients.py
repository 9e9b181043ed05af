"""Grad-CAM on a network that was trained to spot a bright square: the heat lies on the square."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vit_finetune import create_model
from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.explain_gradients import grad_cam
from vit_finetune.models import Backbone

pytest.importorskip("pytorch_grad_cam")
CELL, GRID = 8, 4


def squares(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return dim noise [n, 3, 32, 32], half of it with one bright patch; labels; and the patch's number."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, CELL * GRID, CELL * GRID, generator=generator) * 0.2
    labels = torch.arange(count) % 2
    places = torch.randint(0, GRID * GRID, (count,), generator=generator)
    for image, label, place in zip(images, labels, places.tolist(), strict=True):
        row, column = divmod(place, GRID)
        image[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] += 3.0 * label
    return images, labels, places


@pytest.fixture(scope="module")
def spotter() -> Backbone:
    """Train a network for a second to tell pictures with a bright patch."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_classes": 2}
    model = create_model("vit_tiny_patch16_224", **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        images, labels, _ = squares(32, step)
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1, "the network has not learned the task"
    return model.eval()


def test_grad_cam__is_hottest_on_the_square(spotter: Backbone) -> None:
    """In at least nine of ten pictures the hottest patch is the bright one; the shape is the pictures'."""
    images, labels, places = squares(40, 1234)
    shown = images[labels == 1]
    heat = torch.from_numpy(grad_cam(spotter, shown, classes=[1] * len(shown)))
    assert heat.shape == (20, 32, 32)
    assert (heat.min() >= 0, heat.max() <= 1) == (True, True)
    cells = functional.avg_pool2d(heat[:, None], CELL).flatten(1).argmax(dim=1)
    assert (cells == places[labels == 1]).float().mean() >= 0.9


def test_grad_cam__leaves_the_network_as_it_was(spotter: Backbone) -> None:
    """Weights, gradients and hooks are as before; without classes it is of the first guess."""
    images, labels, _ = squares(2, 7)
    before = {name: value.clone() for name, value in spotter.state_dict().items()}
    gradients = {name: value.grad for name, value in spotter.named_parameters()}
    torch.testing.assert_close(
        torch.from_numpy(grad_cam(spotter, images)),
        torch.from_numpy(grad_cam(spotter, images, classes=labels.tolist())),
    )
    for name, value in spotter.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(value.grad is gradients[name] for name, value in spotter.named_parameters())
    assert not any(module._forward_hooks for module in spotter.modules())
    for parameter in spotter.parameters():
        parameter.requires_grad_(False)
    assert grad_cam(spotter, images).max() > 0, "a frozen network has a heat too"


def test_grad_cam__every_kind_of_block_has_a_heat() -> None:
    """Blocks that normalise behind attention, or have branches beside it, and rotary networks give a heat as well."""
    images = squares(2, 3)[0]
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 3, "embed_dim": 48, "num_heads": 3}
    plain = [create_model("vit_tiny_patch16_224", **sizes, block_fn=kind) for kind in ("res_post", "parallel_things")]
    beside = create_model("vit_tiny_patch16_224", **sizes, block_fn="parallel_scaling")
    rotary = create_model("vit_small_patch16_dinov3", **sizes)
    pooled = create_model("vit_tiny_patch16_224", **sizes, class_token=False, global_pool="avg")
    for model in (*plain, beside, rotary, pooled):
        heat = grad_cam(model.eval(), images, classes=[0, 2])
        assert (heat.shape, heat.max() > 0.9) == ((2, 32, 32), True)


def test_grad_cam__refuses_classes_that_do_not_fit(spotter: Backbone) -> None:
    """Too few classes, and a class beyond the head, are refused in words."""
    images = squares(2, 3)[0]
    for classes in ([0], [0, 2], [-1, 0]):
        with pytest.raises(RequestError, match="number < 2"):
            grad_cam(spotter, images, classes=classes)
