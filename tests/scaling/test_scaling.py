"""What a run takes, counted: against torch's profiler on a real step, and against what can be said on paper."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from run_helpers import run_module
from torch.profiler import ProfilerActivity, profile
from training_helpers import adamw, pictures, tiny_vit

from vit_finetune.config import Config
from vit_finetune.scaling import Footprint, even_world_sizes, footprint, scale_plan, share_of
from vit_finetune.scaling.planning import Growth, growth_of, network_on_paper
from vit_finetune.tuning import add_lora, apply_tuning

HELD = Footprint(
    micro_batch=1,
    parameters=1000,
    trained=800,
    optimizer=1600,
    average=1000,
    update=4400,
    passes=6400,
    largest_block=100,
    around_blocks=200,
)


def counted(
    micro_batch: int, *, mixed_precision: str = "no", recomputing: Any = False, rank: int | None = None, **options: Any
) -> Footprint:
    with torch.device("meta"):
        model = tiny_vit(init="zeros", weight_init="skip", **options)
        if rank is not None:
            add_lora(model, rank=rank)
            apply_tuning(model, "lora")
    model.set_grad_checkpointing(recomputing)
    return footprint(
        model,
        blocks=list(model.blocks),
        optimizer_of=adamw,
        image_size=(3, 32, 32),
        micro_batch=micro_batch,
        mixed_precision=mixed_precision,
    )


def profiled(micro_batch: int) -> int:
    """Return the most bytes that a real step held beside weights and optimizer states, as profiled."""
    model = tiny_vit()
    batch = pictures(0, micro_batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        images = batch.images.clone()
        logits = model(images, sample_seeds=batch.sample_seeds)
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("micro_batch", [64, 256])
def test_footprint__is_what_torch_allocates(micro_batch: int) -> None:
    """The counted peak of the passes is within 5 % of what torch's profiler saw allocated in a real step."""
    found = counted(micro_batch)
    assert found.peak - found.parameters - found.optimizer == pytest.approx(profiled(micro_batch), rel=0.05)


def test_footprint__weights_and_states() -> None:
    """Weights, trained weights and AdamW's states are the network's to the byte (a step counter each, beside)."""
    model = tiny_vit()
    found, count = counted(4), sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters == found.trained == 4 * count
    assert found.optimizer == 8 * count + 4 * len(list(model.parameters()))
    blocks = [4 * sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks]
    assert (found.largest_block, found.around_blocks) == (max(blocks), 4 * count - sum(blocks))


def test_footprint__what_saves_memory() -> None:
    """16 bits and fewer tokens hold less; twice the pictures hold about twice the activations."""
    usual, twice = counted(64), counted(128)
    assert 1.9 < twice.activations / usual.activations < 2.2
    assert counted(64, mixed_precision="bf16").activations < 0.97 * usual.activations
    assert counted(64, patch_size=32).activations < 0.8 * usual.activations


@pytest.mark.parametrize(
    ("options", "plain", "lean"),
    [({"init_values": 1e-5}, 18, 10), ({"mixed_precision": "bf16", "rank": 1}, 9, 6)],
    ids=["layer scale", "lora in bf16"],
)
def test_footprint__recomputing_by_the_block(options: dict[str, Any], plain: int, lean: int) -> None:
    """A block keeps 18 numbers per token and channel with LayerScale, 10 if cheap ones are recomputed, or 1."""
    per_unit = 256 * 5 * 48 * 4  # pictures, tokens, channels, bytes
    for recomputing, want in ((False, plain), ("elementwise", lean), ("blocks", 1)):
        few, more = (counted(256, depth=depth, recomputing=recomputing, **options) for depth in (2, 3))
        # Beside them: two numbers per norm and token, one per head and token, what adapters keep.
        assert (more.activations - few.activations) / per_unit == pytest.approx(want, abs=0.6)


def test_share_of__ddp() -> None:
    """Each process holds all, and gradients twice; an all-reduce sends 2 (N - 1) / N of them."""
    share = share_of(HELD, "ddp", num_processes=4, accumulation=3)
    assert (share.weights, share.gradients, share.optimizer, share.average) == (1000, 800, 1600, 1000)
    assert (share.activations, share.sent) == (2800, 1200)
    assert share.peak == HELD.peak + 800
    alone = share_of(HELD, "ddp", num_processes=1, accumulation=1)
    assert (alone.peak, alone.sent) == (HELD.peak, 0)


def test_share_of__fsdp() -> None:
    """Each process holds its part and two whole blocks; it gathers twice a micro-batch and reduces once a step."""
    share = share_of(HELD, "fsdp", num_processes=4, accumulation=1)
    assert (share.weights, share.optimizer, share.average) == (250, 400, 250)
    assert share.gathered == 2 * 100 + 200
    assert share.gradients == 200 + 100 + 200
    assert share.sent == round(0.75 * (2 * 1000 + 800))
    accumulated = share_of(HELD, "fsdp", num_processes=4, accumulation=3, compute_bytes=2)
    assert accumulated.gradients == 200 + 400
    assert accumulated.sent == round(0.75 * (6 * 500 + 400))


def test_scale_plan__takes_the_largest_that_fits() -> None:
    """A process takes its share at once where that fits, else equal parts of it; the global batch stays."""
    config = Config.load(
        {
            "model": {"name": "x", "pretrained": None},
            "data": {"root": "x"},
            "train": {"steps": 1, "global_batch_size": 96},
        }
    )
    growth = Growth(lambda size: replace(HELD, micro_batch=size, passes=4400 + 10**9 * size))
    found = [
        scale_plan(growth, config, "ddp", num_processes=2, memory=memory * 10**9 + 10**4, mixed_precision="no")
        for memory in (100, 48 + 1, 47 + 1, 2, 1)
    ]
    assert [(plan.per_device_batch_size, plan.gradient_accumulation_steps) for plan in found] == [
        *((48, 1), (48, 1), (24, 2), (1, 48), (1, 48))
    ]
    assert [plan.fits for plan in found] == [True, True, True, True, False]


def test_growth__is_that_of_the_passes() -> None:
    """Where few pictures take less than the optimizer's step, more of them are still seen to take more."""
    growth = Growth(lambda size: replace(HELD, micro_batch=size, passes=100 * size))
    assert [growth.at(size).peak for size in (4, 44, 45, 100)] == [4400, 4400, 4500, 10_000]


def test_growth__bends_where_another_moment_is_the_peak() -> None:
    """Memory follows what is counted at 4, 8, 64 and 128 pictures, in between never less, beyond as the last line."""

    def passes(size: int) -> int:
        return max(5000 + 10 * size, 300 * size)

    growth = Growth(lambda size: replace(HELD, micro_batch=size, passes=passes(size)))
    for size in (1, 4, 6, 8, 64, 100, 128, 1000):
        assert growth.at(size).passes == passes(size)
    assert all(growth.at(size).passes >= passes(size) for size in range(9, 64))


def test_even_world_sizes() -> None:
    """The nearest numbers of processes that divide the global batch, or its pairs."""
    assert even_world_sizes(64, 24) == [16, 32]
    assert even_world_sizes(64, 16) == [16]
    assert even_world_sizes(64, 100) == [64]
    assert even_world_sizes(64, 64, in_pairs=True) == [32]


def test_network_on_paper__follows_the_recipe() -> None:
    """What trains is the recipe's, nothing has values, and the head has the asked classes."""
    config = Config.load(
        {
            "model": {"name": "vit_tiny_patch16_224", "pretrained": None, "overrides": {"depth": 2}},
            "data": {"root": "x"},
            "train": {"steps": 1},
            "tuning": {"mode": "linear_probe"},
        }
    )
    model = network_on_paper(config, 7)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.weight": (7, 192), "head.bias": (7,)}
    assert model.grad_checkpointing == config.train.grad_checkpointing == "elementwise"


@pytest.mark.parametrize("size", [3, 150])
def test_growth_of__is_what_is_counted(size: int) -> None:
    """With LayerScale, which goes into weights from 46 pictures of 17 tokens on, a line is what counting finds."""
    config = Config.load(
        {
            "model": {
                "name": "vit_tiny_patch16_224",
                "pretrained": None,
                "img_size": 64,
                "overrides": {"depth": 2, "init_values": 1e-5},
            },
            "data": {"root": "x"},
            "train": {"steps": 1},
        }
    )
    model = network_on_paper(config, 7)
    blocks, image_size = list(model.blocks), (3, 64, 64)
    exact = footprint(model, blocks=blocks, optimizer_of=adamw, image_size=image_size, micro_batch=size)
    found = growth_of(config, num_classes=7, mixed_precision="no").at(size)
    assert found.peak == pytest.approx(exact.peak, rel=1e-3)


def test_plan__command() -> None:
    """The command prints both strategies, and as JSON what the table is made of; no picture is looked for."""
    overrides = [
        "data.root=nowhere",
        "model.pretrained=null",
        "model.name=vit_tiny_patch16_224",
        "model.overrides.depth=1",
    ]
    done = run_module(["plan", "image_folder", *overrides, "--num-processes", "3", "--memory", "16GiB", "--json"])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["memory_bytes"] == 16 * 2**30
    assert told["even_num_processes"] == even_world_sizes(told["global_batch_size"], 3)
    for name in ("ddp", "fsdp"):
        share = told[name]["share"]
        assert told[name]["fits"]
        parts = ("weights", "gradients", "optimizer", "average", "gathered", "activations")
        assert told[name]["peak_bytes"] == sum(share[part] for part in parts)
    assert told["fsdp"]["share"]["optimizer"] * 3 == pytest.approx(told["ddp"]["share"]["optimizer"], rel=0.01)
