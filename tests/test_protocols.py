"""The ViT paper's protocol as we run it against restatements of its reference code, number by number.

Restated from google-research/vision_transformer (vit_jax: utils.py, train.py, input_pipeline.py, checkpoint.py),
big_vision (utils.py) and TensorFlow's kernels, from reading them; none of those libraries is at hand. Where ours
differs, the test says by how much.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import photo
from PIL import Image
from run_helpers import TINY, make_pictures
from scipy import ndimage
from training_helpers import plan_of

from vit_finetune import Config, create_model, export_model_folder, finetune, load_splits
from vit_finetune.assembly import build_model, preprocess_of
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.common.seeding import derive_seed
from vit_finetune.data.transforms import apply_seeded, build_eval_transform, build_train_transform
from vit_finetune.training import make_optimizer

# name -> steps, warm-up, rate, share of train held out: vit_jax DATASET_PRESETS, big_vision configs/transfer.py; VTAB's
# from memory of the paper.
PUBLISHED = {
    "vit_paper/cifar10": (10_000, 500, 0.01, 0.02),
    "vit_paper/cifar100": (10_000, 500, 0.03, 0.02),
    "vit_paper/pets": (500, 100, 0.003, 0.1),
    "vit_paper/flowers": (500, 100, 0.003, 0.1),
    "vit_paper/imagenet": (20_000, 500, 0.03, 0.01),
    "vit_paper/vtab": (2_500, 500, 0.01, None),
}


def vit_jax_rate(step: int, *, total: int, base: float, warmup: int) -> float:
    """vit_jax's utils.create_learning_rate_schedule, cosine; big_vision's has the same form."""
    progress = min(max((step - warmup) / float(total - warmup), 0.0), 1.0)
    rate = base * 0.5 * (1.0 + math.cos(math.pi * progress))
    return rate * min(1.0, step / warmup) if warmup else rate


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset__numbers(name: str) -> None:
    """Steps, warm-up, rate and held-out share are the reference's; the rest is the paper's everywhere."""
    config = Config.load(name)
    steps, warmup, rate, held_out = PUBLISHED[name]
    assert (config.train.steps, config.schedule.warmup_steps, config.optimizer.lr) == (steps, warmup, rate)
    assert (config.data.val_fraction if config.data.val_split else None) == held_out
    optimizer, train, data = config.optimizer, config.train, config.data
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.layer_decay) == ("sgd", 0.9, 0, 1)
    assert not optimizer.nesterov
    assert (train.global_batch_size, train.max_grad_norm, train.label_smoothing) == (512, 1.0, 0.0)
    assert (config.schedule.name, config.model.pos_embed, config.model.head_init) == ("cosine", "bilinear", "zeros")
    assert (data.scale, data.ratio, data.hflip) == ((0.05, 1.0), (0.75, 1.33), 0.5)
    assert (data.color_jitter, data.auto_augment, data.random_erasing) == (0, None, 0)
    assert config.model.img_size == (384, 384)
    dropped = {key: rate for key, rate in config.model.model_dump().items() if "drop" in key}
    assert set(dropped.values()) == {0.0}, dropped


@pytest.mark.parametrize("name", PUBLISHED)
def test_rate__is_vit_jaxs(name: str) -> None:
    """After the warm-up the rate of every step is the reference's; in it ours is one step ahead of theirs.

    optax asks for the rate of the first update at count 0, where the reference's warm-up gives 0: a step that changes
    nothing. Ours starts with peak / warm-up instead, and reaches the peak at the same place less one step.
    """
    steps, warmup, rate, _ = PUBLISHED[name]
    plan = plan_of(num_steps=steps, warmup_steps=warmup, lr=rate, schedule="cosine")
    theirs = {"total": steps, "base": rate, "warmup": warmup}
    for step in range(warmup, steps, max(1, steps // 997)):
        assert plan.lr_at(step) == pytest.approx(vit_jax_rate(step, **theirs), rel=1e-12, abs=1e-15), step
    for step in range(warmup):
        assert plan.lr_at(step) == pytest.approx(rate * (step + 1) / warmup, rel=1e-12)
        if step:  # theirs also multiplies the ramp by the cosine, which is 1 there
            assert plan.lr_at(step - 1) == pytest.approx(vit_jax_rate(step, **theirs), rel=1e-12)


def test_rate__at_named_steps() -> None:
    """CIFAR-10's rate by hand: the ramp, the peak, the half way point of the cosine, the last step."""
    plan = plan_of(num_steps=10_000, warmup_steps=500, lr=0.01, schedule="cosine")
    named = {0: 2e-5, 249: 0.005, 499: 0.01, 500: 0.01, 5250: 0.005, 9999: 0.01 * (math.pi / 9500) ** 2 / 4}
    assert {step: plan.lr_at(step) for step in named} == pytest.approx(named, rel=1e-6)


# The kernel of tf.image.sample_distorted_bounding_box (sample_distorted_bounding_box_op.cc), which draws a ratio and
# then a height evenly; int(x + 0.5) stands for lrintf.
def tf_crop(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> tuple[int, int]:
    """Return width and height of a crop of TensorFlow's with the default ratio 0.75 to 1.33."""
    least, most = scale[0] * width * height, scale[1] * width * height
    for _ in range(100):
        ratio = rng.uniform(0.75, 1.33)
        low, high = int(math.sqrt(least / ratio) + 0.5), int(math.sqrt(most / ratio) + 0.5)
        if int(high * ratio + 0.5) > width:
            high = int((width + 0.5 - 1e-7) / ratio)
            high -= int(high * ratio + 0.5) > width
        high = min(high, height)
        low = min(low, high)
        tall = int(rng.integers(low, high + 1))
        wide = int(tall * ratio + 0.5)
        if wide * tall < least:
            tall += 1
            wide = int(tall * ratio + 0.5)
        if wide * tall > most:
            tall -= 1
            wide = int(tall * ratio + 0.5)
        if least <= wide * tall <= most and 0 < wide <= width and 0 < tall <= height:
            return wide, tall
    return width, height


def ruler(width: int, height: int) -> Image.Image:
    """Return a picture whose pixels say where they are, so that a crop can be read from what comes out."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([across, down, 0 * across], axis=2).astype(np.uint8))


def our_crops(count: int, width: int, height: int) -> np.ndarray:
    """Return [count, 2] width and height of crops in pixels, read from the recipe's own transform."""
    data = Config.load("vit_paper").data
    spec = PreprocessSpec(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    transform = build_train_transform(spec, scale=data.scale, ratio=data.ratio, hflip=0.0)
    picture = ruler(width, height)
    crops = []
    for index in range(count):
        pixels = (apply_seeded(transform, picture, derive_seed(0, "augment", 0, index)) + 1) * 127.5
        # A resize maps a crop of n pixels linearly onto 64: the slope, away from the borders, is n / 64.
        across, down = (pixels[0, 32, 48] - pixels[0, 32, 16]) * 2, (pixels[1, 48, 32] - pixels[1, 16, 32]) * 2
        crops.append((float(across), float(down)))
    return np.array(crops)


def test_crop__area_and_ratio_are_within_the_references_bounds() -> None:
    """Every crop of ours takes 5 to 100 % of the picture at a ratio of 0.75 to 1.33, as TensorFlow's do."""
    width, height = 200, 160
    crops = our_crops(600, width, height)
    area, ratio = crops.prod(axis=1) / (width * height), crops[:, 0] / crops[:, 1]
    slack = 3 / crops.min()  # pixels are whole numbers: the ruler reads to about one
    assert 0.05 * (1 - slack) <= area.min() < 0.1
    assert 0.9 < area.max() <= 1 + 1e-6 + slack / 10
    assert 0.75 * (1 - slack) <= ratio.min() < 0.85
    assert 1.2 < ratio.max() <= 1.33 * (1 + slack)


def test_crop__area_is_spread_otherwise_than_tensorflows() -> None:
    """The stated difference: area is drawn evenly by torchvision, the height by TensorFlow, whose crops are smaller.

    On 200 x 160 pixels the mean share of the area is about 0.49 here and 0.37 there.
    """
    rng = np.random.default_rng(0)
    theirs = np.array([tf_crop(rng, 200, 160, (0.05, 1.0)) for _ in range(4000)]).prod(axis=1) / (200 * 160)
    ours = our_crops(600, 200, 160).prod(axis=1) / (200 * 160)
    assert theirs.min() >= 0.05 and theirs.max() <= 1.0
    assert 0.08 < ours.mean() - theirs.mean() < 0.16


def tf_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """tf.image.resize, bilinear: half-pixel centres, edges repeated, no antialiasing."""

    def axis(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(at)
        return np.clip(low, 0, old - 1).astype(int), np.clip(low + 1, 0, old - 1).astype(int), at - low

    top, bottom, down = axis(image.shape[0], height)
    left, right, across = axis(image.shape[1], width)
    rows = image[top] * (1 - down)[:, None, None] + image[bottom] * down[:, None, None]
    return rows[:, left] * (1 - across)[None, :, None] + rows[:, right] * across[None, :, None]


def paper_eval(size: int):
    """Return the evaluation transform of the recipe, of the weights' own preprocessing with its keys laid over."""
    data = Config.load("vit_paper").data
    assert data.mean is not None and data.std is not None
    fields = {"interpolation": data.interpolation, "crop_mode": data.crop_mode, "crop_pct": data.crop_pct}
    spec = PreprocessSpec(input_size=(3, size, size), mean=data.mean, std=data.std, **fields)
    return build_eval_transform(spec)


@pytest.mark.parametrize("shape", [(40, 30), (96, 96), (64, 95)])
def test_evaluation__enlarging_is_tf_image_resize(shape: tuple[int, int]) -> None:
    """A picture that is no larger than the network is resized whole, without a crop, as the reference does it.

    Equal to one level of 255, since Pillow rounds to bytes; pixels run from -1 to 1.
    """
    image = photo(1, *shape)
    ours = paper_eval(96)(image)
    theirs = (tf_resize(np.asarray(image, dtype=np.float64), 96, 96) - 127.5) / 127.5
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), theirs, rtol=0, atol=1.01 / 127.5)


def test_evaluation__shrinking_is_antialiased_unlike_tf() -> None:
    """The stated difference: a large picture is averaged over what a pixel covers; the reference picks neighbours."""
    image = photo(2, 384, 512)
    pixels = np.asarray(image, dtype=np.float64) + np.random.default_rng(0).normal(0, 30, (512, 384, 3))
    noisy = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    ours = paper_eval(64)(noisy).permute(1, 2, 0).numpy()
    theirs = (tf_resize(np.asarray(noisy, dtype=np.float64), 64, 64) - 127.5) / 127.5
    clean = (
        tf_resize(np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.float64), 64, 64) - 127.5
    ) / 127.5
    assert np.abs(ours - clean).mean() < 0.5 * np.abs(theirs - clean).mean()


def test_evaluation__pixels_are_minus_one_to_one() -> None:
    """Black is -1 and white is 1: (x - 127.5) / 127.5."""
    for value, want in ((0, -1.0), (255, 1.0), (128, 0.5 / 127.5)):
        pixels = paper_eval(8)(Image.new("RGB", (8, 8), (value,) * 3))
        torch.testing.assert_close(pixels, torch.full((3, 8, 8), want), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [96, 48, 32])
def test_start__positions_head_and_preprocessing(size: int, tmp_path: Path) -> None:
    """From a checkpoint at 64 pixels the recipe's network has scipy's zoomed grid, a zero head and [-1, 1] pixels."""
    torch.manual_seed(0)
    small = create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_classes=5)
    spec = PreprocessSpec(input_size=(3, 64, 64))
    export_model_folder(small, tmp_path / "weights", preprocess=spec, class_names=list("abcde"))
    root = make_pictures(tmp_path / "pictures", train=2, val=1)
    overrides = [f"model.pretrained={tmp_path / 'weights'}", f"model.img_size={size}", f"data.root={root}"]
    config = Config.load("vit_paper", overrides=overrides)
    model, report = build_model(config, load_splits(root=root))
    zoom = size / 64
    grid = small.pos_embed[0, 1:].detach().numpy().astype(np.float64).reshape(4, 4, 48)
    zoomed = ndimage.zoom(grid, (zoom, zoom, 1), order=1).reshape(-1, 48)
    np.testing.assert_allclose(model.pos_embed[0, 1:].detach().numpy(), zoomed, atol=3e-7)
    assert torch.equal(model.pos_embed[:, 0], small.pos_embed[:, 0])
    assert not model.head.weight.any() and not model.head.bias.any()
    used = preprocess_of(config, model, report)
    assert (used.mean, used.std, used.crop_mode, used.crop_pct) == ((0.5,) * 3, (0.5,) * 3, "squash", 1.0)


def test_run__first_loss_is_ln_k_and_batches_of_512_are_accumulated(tmp_path: Path) -> None:
    """Two steps of the recipe but for network and data: 512 pictures a step from micro-batches, and ln 3 at first."""
    root = make_pictures(tmp_path / "pictures", train=6, val=2)
    overrides = [*TINY, f"data.root={root}", f"run.dir={tmp_path / 'run'}", "train.steps=2", "schedule.warmup_steps=1"]
    finetune(Config.load("vit_paper", overrides=[*overrides, "train.per_device_batch_size=100"]))
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (plan["global_batch_size"], plan["gradient_accumulation_steps"]) == (512, 6)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(3), abs=1e-6)


def test_update__is_optaxs() -> None:
    """The update of SGD 0.9 on a gradient clipped to norm 1, restated from optax, is ours over three steps."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), torch.nn.Parameter(torch.zeros(2).double())]
    theirs, trace = [w.detach().numpy().copy() for w in weights], [np.zeros(w.shape) for w in weights]
    config = Config.load("vit_paper").optimizer
    options = config.model_dump(include={"name", "lr", "momentum", "nesterov", "betas", "eps"})
    groups = [{"params": weights, "weight_decay": config.weight_decay, "lr_scale": 1.0, "lr": config.lr}]
    optimizer = make_optimizer(groups, **options)
    for step in range(3):
        gradients = [torch.randn(w.shape, dtype=torch.float64) * (step + 0.1) for w in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)  # as the loop does
        optimizer.step()
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        factor = 1.0 if norm < 1 else 1 / norm  # optax.clip_by_global_norm
        for place, gradient in enumerate(gradients):
            trace[place] = gradient.numpy() * factor + 0.9 * trace[place]  # optax.trace, without nesterov
            theirs[place] -= 0.03 * trace[place]
    for ours, restated in zip(weights, theirs, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), restated, atol=1e-6)
