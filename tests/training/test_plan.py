"""The plan: the clock, the learning rate at every step, and what does not fit together."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from training_helpers import plan_of

from vit_finetune.common.errors import RequestError
from vit_finetune.training import Stage, micro_batch, plan_stages, steps_in
from vit_finetune.training.micro_batches import MicroBatches
from vit_finetune.training.stages import PictureSize, plan_sizes

SIZES = (
    PictureSize(first_step=0, height=16, width=16),
    PictureSize(first_step=2, height=16, width=32),
    PictureSize(first_step=4, height=32, width=32),
)


@pytest.mark.parametrize(
    ("epochs", "num_train", "global_batch_size", "steps"),
    [
        (1, 10, 4, 3),
        (3, 10, 4, 8),  # 30 pictures, not 3 x ceil(10 / 4) = 9 steps: no epoch ends in a short step
        (2, 10, 5, 4),
        (0.5, 10, 5, 1),
        (0.07, 100, 7, 1),  # 0.07 x 100 / 7 is 1.0000000000000002 in floating point
        (0.7, 100, 10, 7),
        (1, 1, 64, 1),
        (0.001, 10, 64, 1),  # never less than one step
        (300, 1_281_167, 1024, 375_342),  # ImageNet-1k
    ],
)
def test_steps_in__clock(epochs: float, num_train: int, global_batch_size: int, steps: int) -> None:
    """The steps of some epochs are the pictures they hold over the global batch, rounded up."""
    assert steps_in(epochs, num_train=num_train, global_batch_size=global_batch_size) == steps


def test_steps_in__least() -> None:
    """No warm-up epochs are no steps, while a run has at least one."""
    assert steps_in(0, num_train=10, global_batch_size=4, least=0) == 0
    assert steps_in(0, num_train=10, global_batch_size=4) == 1


@pytest.mark.parametrize(
    ("schedule", "step", "lr"),
    [
        # 10 steps, 2 of warm-up, peak 0.8: half of it, the peak twice (end of the warm-up, start of the schedule)
        *[(name, 0, 0.4) for name in ("cosine", "linear", "constant")],
        *[(name, 1, 0.8) for name in ("cosine", "linear", "constant")],
        *[(name, 2, 0.8) for name in ("cosine", "linear", "constant")],
        ("constant", 9, 0.8),
        ("linear", 3, 0.7),
        ("linear", 6, 0.4),
        ("linear", 9, 0.1),
        ("cosine", 4, 0.8 * 0.8535533905932737),  # (1 + cos 45 degrees) / 2
        ("cosine", 6, 0.4),
        ("cosine", 8, 0.8 * 0.1464466094067262),
    ],
)
def test_lr_at__by_hand(schedule: str, step: int, lr: float) -> None:
    """The rate of named steps equals numbers written out by hand."""
    assert plan_of(num_steps=10, warmup_steps=2, schedule=schedule, lr=0.8).lr_at(step) == pytest.approx(lr, rel=1e-12)


def test_lr_at__ends() -> None:
    """Cosine and linear reach 0 at the end of the run and not before; without a warm-up the peak comes first."""
    for schedule in ("cosine", "linear"):
        plan = plan_of(num_steps=10, warmup_steps=0, schedule=schedule, lr=0.8)
        assert plan.lr_at(0) == 0.8
        assert plan.lr_at(10) == pytest.approx(0, abs=1e-15)
        assert all(plan.lr_at(step) > 0 for step in range(10))


def test_lr_at__warm_up_only() -> None:
    """A run may be all warm-up: it ends at the peak."""
    plan = plan_of(num_steps=4, warmup_steps=4, lr=0.8)
    assert [plan.lr_at(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert math.isfinite(plan.lr_at(4))


def oracle_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)


@pytest.mark.parametrize(("num_steps", "warmup"), [(50, 0), (50, 1), (50, 7), (200, 20)])
def test_lr_at__whole_curve_equals_torch(num_steps: int, warmup: int) -> None:
    """Every rate of a warm-up and cosine equals that of torch's own schedulers, chained."""
    optimizer = oracle_optimizer()
    cosine = CosineAnnealingLR(optimizer, T_max=num_steps - warmup)
    if warmup:
        rising = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
        schedule = SequentialLR(optimizer, [rising, cosine], milestones=[warmup])
    else:
        schedule = cosine
    plan = plan_of(num_steps=num_steps, warmup_steps=warmup, lr=0.8)
    for step in range(num_steps):
        assert plan.lr_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12), step
        optimizer.step()
        schedule.step()


def test_lr_at__whole_cosine_equals_timm() -> None:
    """Every rate of a cosine equals timm's scheduler, counted in updates."""
    optimizer = oracle_optimizer()
    schedule = CosineLRScheduler(optimizer, t_initial=120, lr_min=0.0, t_in_epochs=False)
    plan = plan_of(num_steps=120, warmup_steps=0, lr=0.8)
    for step in range(121):
        schedule.step_update(step)
        assert plan.lr_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12), step


def test_plan__when() -> None:
    """Evaluations and checkpoints come at their steps and at the last; without save_every at each evaluation."""
    plan = plan_of(num_steps=11, evaluate_every=4, save_every=3)
    assert [step for step in range(1, 12) if plan.evaluates_at(step)] == [4, 8, 11]
    assert [step for step in range(1, 12) if plan.saves_at(step)] == [3, 6, 9, 11]
    plan = plan_of(num_steps=11, evaluate_every=4, save_every=None)
    assert [step for step in range(1, 12) if plan.saves_at(step)] == [4, 8, 11]
    plan = plan_of(num_steps=3, warmup_steps=0, evaluate_every=100)
    assert [step for step in range(1, 4) if plan.evaluates_at(step)] == [3]


def test_plan__epoch() -> None:
    """The epoch in files is pictures seen over training pictures, a fraction."""
    plan = plan_of(num_train=20, global_batch_size=8)
    assert [plan.epoch_at(step) for step in (0, 1, 5)] == [0.0, 0.4, 2.0]


def test_plan__is_json() -> None:
    """The plan is plain JSON, every number under its name."""
    plan = plan_of(sizes=SIZES)
    mapping = json.loads(json.dumps(plan.to_mapping()))
    assert mapping["num_steps"] == 6
    read = {
        "stages": tuple(Stage(**stage) for stage in mapping["stages"]),
        "sizes": tuple(PictureSize(**size) for size in mapping["sizes"]),
    }
    assert type(plan)(**(mapping | read)) == plan


def test_plan__warm_up_too_long() -> None:
    """A warm-up that is longer than the run is refused with both numbers and the way out."""
    with pytest.raises(RequestError) as error:
        plan_of(num_steps=3, warmup_steps=4)
    assert str(error.value) == (
        "the warm-up of 4 steps is longer than the run of 3; lower schedule.warmup_steps or schedule.warmup_epochs, "
        "or train for longer"
    )


@pytest.mark.parametrize(
    ("wanted", "batch", "processes", "kind", "size"),
    [
        ("auto", 64, 1, "cpu", 16),
        ("auto", 256, 1, "cuda", 256),
        ("auto", 64, 1, "mps", 32),
        ("auto", 64, 8, "cuda", 8),
        ("auto", 7, 2, "cpu", 4),
        ("auto", 5, 1, "cuda", 5),
        (64, 64, 1, "cpu", 64),
        (4, 7, 2, "cpu", 4),
        (1, 2, 2, "cuda", 1),
    ],
)
def test_micro_batch__size(wanted: int | str, batch: int, processes: int, kind: str, size: int) -> None:
    """A process takes what was asked for; auto is what suits the device, or on CUDA its share, which is tried first."""
    assert (
        micro_batch(wanted, global_batch_size=batch, num_processes=processes, device_kind=kind, num_tokens=197) == size
    )


@pytest.mark.parametrize(("num_tokens", "size"), [(17, 64), (50, 32), (65, 16), (257, 16)])
def test_micro_batch__small_pictures_on_a_cpu(num_tokens: int, size: int) -> None:
    """Pictures of few tokens are taken in larger numbers, in powers of two up to 2,048 tokens and 64 pictures."""
    given = {"global_batch_size": 256, "num_processes": 1}
    assert micro_batch("auto", device_kind="cpu", num_tokens=num_tokens, **given) == size
    assert micro_batch("auto", device_kind="mps", num_tokens=num_tokens, **given) == 32


@pytest.mark.parametrize(
    ("wanted", "batch", "processes", "message"),
    [
        (
            "auto",
            3,
            4,
            "train.global_batch_size 3 leaves some of 4 processes without a picture; "
            "give at least 4, or use at most 3 process(es)",
        ),
        (
            64,
            64,
            2,
            "train.per_device_batch_size is 64, but each of 2 processes gets 32 pictures of "
            "train.global_batch_size 64; give at most 32, or auto",
        ),
    ],
)
def test_micro_batch__refuses(wanted: int | str, batch: int, processes: int, message: str) -> None:
    """A share without a picture, and one smaller than what a process is told to take, are refused with numbers."""
    with pytest.raises(RequestError) as error:
        micro_batch(wanted, global_batch_size=batch, num_processes=processes, device_kind="cpu", num_tokens=197)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        # 4 steps of probe from 0.8, linear to 0 without a warm-up
        *[(0, 0.8), (1, 0.6), (2, 0.4), (3, 0.2)],
        # then 6 steps of fine-tuning: 2 of warm-up to 0.1, linear to 0
        *[(4, 0.05), (5, 0.1), (6, 0.1), (7, 0.075), (8, 0.05), (9, 0.025)],
    ],
)
def test_lr_at__probe_and_fine_tuning_have_a_schedule_each(step: int, lr: float) -> None:
    """Of lp_ft, the probe has no warm-up and ends at 0; fine-tuning starts over with its own; written out by hand."""
    plan = plan_of(num_steps=10, probe_steps=4, probe_lr=0.8, lr=0.1, warmup_steps=2, schedule="linear")
    assert plan.lr_at(step) == pytest.approx(lr, rel=1e-12)


def test_lr_at__fine_tuning_after_a_probe_is_a_run_of_its_own() -> None:
    """The rates after the probe are those of a run without one as long as what is left; the probe's lr is lr."""
    staged, alone = plan_of(num_steps=10, probe_steps=3), plan_of(num_steps=7)
    assert [staged.lr_at(step) for step in range(3, 10)] == [alone.lr_at(step) for step in range(7)]
    assert staged.lr_at(0) == staged.lr


def test_plan__warm_up_longer_than_what_the_probe_leaves() -> None:
    """The warm-up belongs to fine-tuning, so it has to fit in there."""
    with pytest.raises(RequestError, match="the warm-up of 4 steps is longer than the 3 steps that the linear probe"):
        plan_of(num_steps=6, probe_steps=3, warmup_steps=4)


def stages(mode: str, **values: int) -> list[tuple[int, str, int | None]]:
    given = {"num_steps": 10, "depth": 3} | values
    return [(stage.first_step, stage.mode, stage.num_blocks) for stage in plan_stages(mode, **given)]


def test_plan_stages__written_out() -> None:
    """Stages of every kind of mode, written out: where each begins and what trains."""
    assert stages("full") == [(0, "full", None)]
    assert stages("lora") == [(0, "lora", None)]
    assert stages("last_n", num_blocks=2) == [(0, "last_n", 2)]
    assert stages("lp_ft", probe_steps=4) == [(0, "linear_probe", None), (4, "full", None)]
    assert stages("gradual", num_stages=2) == [(0, "linear_probe", None), (5, "full", None)]
    assert stages("gradual", num_stages=4) == [
        *[(0, "linear_probe", None), (2, "last_n", 1), (5, "last_n", 2), (7, "full", None)]
    ]
    assert [row[2] for row in stages("gradual", num_stages=4, depth=12)] == [None, 4, 8, None]


@pytest.mark.parametrize(
    ("mode", "values", "message"),
    [
        ("lp_ft", {"probe_steps": 10}, "the linear probe of 10 steps leaves nothing of the run of 10"),
        ("gradual", {"num_stages": 5}, "tuning.num_stages is 5; this network has 3 blocks, give 2 to 4"),
        ("gradual", {"num_stages": 4, "num_steps": 3}, "tuning.num_stages is 4, the run has 3 steps"),
    ],
)
def test_plan_stages__refuses(mode: str, values: dict[str, int], message: str) -> None:
    """Stages that are longer than the run, or more of them than the network or the run has room for, are refused."""
    with pytest.raises(RequestError, match=message):
        stages(mode, **values)


def test_stage_at__every_step() -> None:
    """A stage is in force from its first step to the step before the next one; the last also after the run's end."""
    plan = plan_of(num_steps=6, stages=(Stage(mode="linear_probe"), Stage(first_step=2), Stage(first_step=5)))
    assert [plan.stage_at(step).first_step for step in range(7)] == [0, 0, 2, 2, 2, 5, 5]
    assert [plan.end_of(stage) for stage in plan.stages] == [2, 5, 6]


@pytest.mark.parametrize(
    ("sizes", "until", "num_steps", "starts"),
    [
        ([], 0.7, 10, []),
        ([(56, 56)], 0.29, 100, [(0, 56), (29, 98)]),  # 0.29 x 100 is 28.999999999999996 in floating point
        ([(56, 56), (77, 77)], 0.7, 100, None),
        ([(56, 56), (70, 70)], 0.7, 100, [(0, 56), (35, 70), (70, 98)]),
        ([(56, 56), (70, 70)], 0.99, 3, [(0, 56), (1, 70), (2, 98)]),
        ([(98, 98)], 0.5, 2, [(0, 98), (1, 98)]),
    ],
)
def test_plan_sizes__equal_parts_then_the_target(
    sizes: list[tuple[int, int]], until: float, num_steps: int, starts: list[tuple[int, int]] | None
) -> None:
    """Sizes share the first steps evenly and the target has the rest; a size that patches do not divide is refused."""

    def found() -> list[tuple[int, int]]:
        plan = plan_sizes(sizes, until=until, num_steps=num_steps, target=(98, 98), patch_size=(14, 14))
        return [(size.first_step, size.height) for size in plan]

    if starts is not None:
        assert found() == starts
        return
    with pytest.raises(RequestError) as error:
        found()
    assert str(error.value) == (
        "a size of train.progressive_sizes is 77x77 pixels; patches of 14x14 have to divide it, and at most 98x98 are "
        "allowed; the nearest is 84x84"
    )


@pytest.mark.parametrize(
    ("target", "patch", "num_steps", "found"),
    [
        ((98, 98), 14, 100, [(56, 56), (70, 70), (98, 98)]),
        ((224, 224), 16, 100, [(128, 128), (160, 160), (224, 224)]),
        ((224, 224), 14, 100, [(126, 126), (154, 154), (224, 224)]),
        ((224, 112), 16, 100, [(128, 64), (160, 80), (224, 112)]),
        ((70, 70), 14, 100, [(56, 56), (70, 70)]),  # three patches a side are left out
        ((56, 56), 14, 100, []),
        ((100, 100), 14, 100, []),  # patches do not divide it
        ((98, 98), 14, 2, []),  # 0.7 of two steps is one, for two sizes
        ((98, 98), 14, 3, [(56, 56), (70, 70), (98, 98)]),
    ],
)
def test_plan_sizes__auto(target: tuple[int, int], patch: int, num_steps: int, found: list[tuple[int, int]]) -> None:
    """Four and five sevenths of the patches a side, nothing where that leaves too few patches or steps."""
    plan = plan_sizes("auto", until=0.7, num_steps=num_steps, target=target, patch_size=(patch, patch))
    assert [(size.height, size.width) for size in plan] == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [(112, 56)]}, r"is 112x56 pixels; .* the nearest is 98x56"),
        ({"sizes": [(5, 56)]}, r"is 5x56 pixels; .* the nearest is 14x56"),
        ({"target": (100, 98)}, r"model.img_size, the target of train.progressive_sizes is 100x98 .* is 98x98"),
        ({"num_steps": 1}, r"has 1 sizes for the first 0 of 1 steps; give a step to each"),
        ({"sizes": [(14, 14), (28, 28)], "num_steps": 2}, r"has 2 sizes for the first 1 of 2 steps"),
    ],
)
def test_plan_sizes__refuses(changes: dict[str, object], message: str) -> None:
    """Sizes too large or too small, a target that patches do not divide, and sizes without a step are refused."""
    values: dict[str, Any] = {"sizes": [(56, 56)], "until": 0.7, "num_steps": 10, "target": (98, 98)}
    values |= changes
    with pytest.raises(RequestError, match=message):
        plan_sizes(values.pop("sizes"), **values, patch_size=(14, 14))


def test_plan__size_is_a_function_of_the_step() -> None:
    """The size of a step, the stretches of one size from any step on, and how much longer steps may yet become."""
    plan = plan_of(sizes=SIZES)
    assert [plan.size_at(step) for step in range(6)] == [(16, 16)] * 2 + [(16, 32)] * 2 + [(32, 32)] * 2
    assert list(plan.stretches(0, 6)) == [(0, 2), (2, 4), (4, 6)]
    assert list(plan.stretches(3, 5)) == [(3, 4), (4, 5)]
    assert list(plan.stretches(4, 6)) == [(4, 6)]
    assert [plan.growth_after(step) for step in range(1, 7)] == [3, 3, 1, 1, 0, 0]
    assert (plan_of().size_at(3), plan_of().growth_after(3), list(plan_of().stretches(2, 6))) == (None, 0, [(2, 6)])


def test_micro_batches__are_proven_anew_where_the_size_changes() -> None:
    """Processes rehearse the first step of each size, as none of its shape was seen to fit."""
    micro = MicroBatches(plan_of(sizes=SIZES))
    proven = []
    for step in range(6):
        micro.begin(step)
        proven.append(micro.proven)
        micro.proven = True
    assert proven == [False, True, False, True, False, True]
