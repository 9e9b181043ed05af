"""The one loop: exact gradients, exact figures, the rate of every step, a stop before weights are spoiled, resuming."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn
from training_helpers import (
    NUM_CLASSES,
    Pictures,
    Run,
    copied,
    figures,
    options_of,
    pictures,
    plan_of,
    scorer,
    steps_of,
    tiny_vit,
)

from vit_finetune.common.errors import WorkError
from vit_finetune.training import Progress, Stage, find_checkpoint, restore
from vit_finetune.training import checkpoint as store
from vit_finetune.training import loop as loop_module
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.mix import PairMixing
from vit_finetune.training.objective import Objective


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-identical results are promised at one thread count; one is fastest for networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def watch_gradients(run: Run) -> dict[str, Tensor]:
    """Return what holds, once a step was done, the gradients that its optimizer was given."""
    gradients: dict[str, Tensor] = {}
    step = run.optimizer.step

    def watched_step() -> None:
        gradients.update({name: parameter.grad.clone() for name, parameter in run.model.named_parameters()})
        step()

    run.optimizer.step = watched_step
    return gradients


@pytest.mark.parametrize("micro", [2, 3, 8], ids=["four", "uneven", "one"])
def test_fit__accumulation_is_exact(tmp_path: Path, micro: int) -> None:
    """One, four or three uneven micro-batches give the gradient of the mean loss of the whole batch, in float64."""
    model = tiny_vit(dtype=torch.float64, drop_path_rate=0.3)
    whole = pictures(0, dtype=torch.float64)
    twin = tiny_vit(dtype=torch.float64, drop_path_rate=0.3).train()
    logits = twin(whole.images, sample_seeds=whole.sample_seeds)
    nn.functional.cross_entropy(logits, whole.labels).backward()

    run = Run.start(tmp_path, model, name="sgd")
    gradients = watch_gradients(run)
    plan, options = plan_of(num_steps=1, warmup_steps=0), options_of(max_grad_norm=None)
    run.fit(plan, options, batches=steps_of(micro=micro, dtype=torch.float64))
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-12, rtol=1e-9, msg=name)


def test_fit__accumulation_gives_equal_weights(tmp_path: Path) -> None:
    """After six AdamW steps with clipping, four micro-batches and one end at the same weights and losses in float64."""
    ends, losses = [], []
    for micro in (8, 2):
        run = Run.start(tmp_path / str(micro), tiny_vit(dtype=torch.float64, drop_path_rate=0.3))
        run.fit(batches=steps_of(micro=micro, dtype=torch.float64))
        ends.append(copied(run.model))
        losses.append([row["loss"] for row in run.rows()])
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], atol=1e-12, rtol=0, msg=name)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_fit__first_loss_of_a_zero_head(tmp_path: Path) -> None:
    """A zero-initialised head knows nothing: its first loss is ln K."""
    run = Run.start(tmp_path, tiny_vit(init="zeros"))
    run.fit(plan_of(num_steps=1, warmup_steps=0))
    assert run.rows()[0]["loss"] == pytest.approx(math.log(NUM_CLASSES), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fit__loss_is_torchs(tmp_path: Path, smoothing: float) -> None:
    """The train loss is torch's cross-entropy of the whole batch, with its label smoothing."""
    batch = pictures(0)
    with torch.no_grad():
        logits = tiny_vit()(batch.images)
    expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, batch.labels).item()
    run = Run.start(tmp_path)
    run.fit(
        plan_of(num_steps=1, warmup_steps=0),
        options_of(objective=Objective(label_smoothing=smoothing)),
        batches=steps_of(micro=2),
    )
    assert run.rows()[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("limit", [None, 1e-3, 1e6])
def test_fit__clipping(tmp_path: Path, limit: float | None) -> None:
    """The gradient is scaled to the limit when it is longer, left alone otherwise; its own norm is what is written."""
    twin, batch = tiny_vit(), pictures(0)
    nn.functional.cross_entropy(twin(batch.images), batch.labels).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()]).norm().item()
    run = Run.start(tmp_path, name="sgd")
    before = copied(run.model)
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.0
    run.fit(plan_of(num_steps=1, warmup_steps=0, lr=1.0), options_of(max_grad_norm=limit))
    assert run.rows()[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    moved = before["head.weight"] - copied(run.model)["head.weight"]  # the head's group has the whole rate, which is 1
    scale = 1.0 if limit is None else min(1.0, limit / norm)
    torch.testing.assert_close(moved, scale * twin.head.weight.grad, atol=1e-6, rtol=1e-3)


def test_fit__starts_without_gradients(tmp_path: Path) -> None:
    """Gradients that a caller left in the network are no part of the first step."""
    ends = []
    for leftover in (0.0, 7.0):
        run = Run.start(tmp_path / str(leftover))
        for parameter in run.model.parameters():
            parameter.grad = torch.full_like(parameter, leftover) if leftover else None
        run.fit(plan_of(num_steps=2))
        ends.append(copied(run.model))
    assert same(*ends)


def test_fit__rate_of_every_step_and_group(tmp_path: Path) -> None:
    """Each update is made at the plan's rate, times the scale of each group, and that rate is what is written."""
    run = Run.start(tmp_path)
    plan = plan_of(lr=0.008, warmup_steps=2, num_steps=6, schedule="linear")
    rates: list[dict[float, float]] = []
    step = run.optimizer.step

    def watched_step() -> None:
        rates.append({group["lr_scale"]: group["lr"] for group in run.optimizer.param_groups})
        step()

    run.optimizer.step = watched_step
    run.fit(plan)
    expected = [0.004, 0.008, 0.008, 0.006, 0.004, 0.002]
    for found, lr in zip(rates, expected, strict=True):
        assert found == pytest.approx({scale: lr * scale for scale in (0.75**3, 0.75**2, 0.75, 1.0)})
    assert [row["lr"] for row in run.rows()] == pytest.approx(expected)


def test_fit__rows(tmp_path: Path) -> None:
    """metrics.jsonl holds step, epoch and figures, every so many steps and at the last; clocks are in timing.jsonl."""
    run = Run.start(tmp_path)
    run.fit(plan_of(num_steps=5), options_of(log_every_steps=2), evaluate=scorer())
    assert [(row["step"], row["epoch"]) for row in run.rows()] == [(2, 0.8), (4, 1.6), (5, 2.0)]
    everywhere = {"step", "epoch", "split", "loss"}
    assert all(row.keys() == everywhere | {"lr", "grad_norm"} for row in run.rows())
    assert [row["step"] for row in run.rows("val")] == [2, 4, 5]
    assert all(row.keys() == everywhere | {"accuracy", "macro_accuracy", "macro_f1"} for row in run.rows("val"))
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert {"seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes"} < timing[0].keys()
    assert {"processors_joules", "no_processors_joules"} & timing[0].keys()


def spoiled(step: int, row: int, *, micro: int = 2) -> Iterator[Sequence[Pictures]]:
    """Yield good batches, but for one pixel of one picture of the step after `step` done steps."""
    for number, batches in enumerate(steps_of(micro=micro)):
        if number == step:
            images = batches[row // micro].images.clone()
            images[row % micro, 1, 5, 5] = math.nan
            batches[row // micro] = replace(batches[row // micro], images=images)
        yield batches


def test_fit__stops_at_a_nan_pixel(tmp_path: Path) -> None:
    """A NaN names step, picture and first module; that step changes no weight and the last checkpoint stays whole."""
    undisturbed = Run.start(tmp_path / "undisturbed")
    undisturbed.fit(plan_of(), batches=steps_of(micro=2))
    run = Run.start(tmp_path / "run")
    with pytest.raises(WorkError) as error:
        run.fit(batches=spoiled(3, 5))
    # Step 4 holds the pictures 24 to 31 of a set of 20 that starts again: row 5 is picture 29 - 20.
    assert str(error.value) == (
        "step 4 stopped: loss nan, gradient norm nan; process 0: the output of patch_embed.proj is the first that is "
        "not finite, for photos/9.png; the checkpoint of step 2 is whole; lower optimizer.lr, or look at those pictures"
    )
    assert error.value.exit_code == 1
    assert [row["step"] for row in run.rows()] == [1, 2, 3]
    assert run.rows() == undisturbed.rows()[:3]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in copied(run.model).values())
    assert store.pointed_step(tmp_path / "run" / "checkpoints", "LATEST") == 2
    assert store.newest_whole(tmp_path / "run" / "checkpoints") == (2, [])


def test_fit__a_stopped_step_changes_no_weight(tmp_path: Path) -> None:
    """The weights after the stop are those of the step before, bit for bit."""
    good = Run.start(tmp_path / "good")
    good.fit(plan_of(num_steps=6, save_every=1, evaluate_every=1), batches=steps_of(micro=2))
    run = Run.start(tmp_path / "run")
    with pytest.raises(WorkError, match="step 4 stopped"):
        run.fit(plan_of(save_every=1, evaluate_every=1), batches=spoiled(3, 0))
    saved = load_file(tmp_path / "good" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert not same(copied(run.model), saved)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "model.safetensors")
    assert same(copied(run.model), saved)


def test_fit__stops_before_the_first_checkpoint(tmp_path: Path) -> None:
    """A run that stops in its first step says that there is no checkpoint."""
    run = Run.start(tmp_path)
    with pytest.raises(WorkError, match=r"step 1 stopped: .*photos/0\.png; there is no whole checkpoint yet; lower"):
        run.fit(batches=spoiled(0, 0))


class SpoilGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.inf


def test_fit__stops_at_a_gradient(tmp_path: Path) -> None:
    """A gradient that is not finite under a finite loss names the parameter nearest to where it began."""
    run = Run.start(tmp_path)
    run.model.blocks[1].mlp.fc1.register_forward_hook(lambda _module, _inputs, output: SpoilGradient.apply(output))
    before = copied(run.model)
    with pytest.raises(WorkError) as error:
        run.fit(batches=steps_of(micro=8))
    names = "photos/0.png, photos/1.png, photos/2.png, photos/3.png, photos/4.png and 3 more"
    assert "process 0: the gradient of blocks.1.mlp.fc1.bias is the first that is not finite" in str(error.value)
    assert f"for a batch of {names};" in str(error.value)
    assert "step 1 stopped: loss 1." in str(error.value)
    assert same(copied(run.model), before)


def test_fit__stops_at_a_val_loss(tmp_path: Path) -> None:
    """A val loss that is not finite stops the run rather than being written as a figure."""
    run = Run.start(tmp_path)
    with pytest.raises(WorkError) as error:
        run.fit(evaluate=lambda _: figures(loss=math.nan, accuracy=0.3))
    assert str(error.value) == "the val loss after step 2 is nan; lower optimizer.lr"
    assert run.rows("val") == []


@pytest.fixture
def fp16() -> Iterator[Callable[[Path, float], Run]]:
    """Start runs in real fp16 autocast on the CPU, with torch's own gradient scaler; Accelerate offers both on CUDA."""

    def start(run_dir: Path, init_scale: float) -> Run:
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        return Run.start(run_dir, accelerator=accelerator)

    yield start
    AcceleratorState._reset_state(reset_partial_state=True)


def test_fit__scaler_skips_overflows(
    tmp_path: Path, fp16: Callable[[Path, float], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that overflows in fp16 is told, changes no weight and halves the scale; a resumed run does the same."""
    plan, options = plan_of(num_steps=8, save_every=1), options_of(keep_last=99)
    run = fp16(tmp_path / "whole", 2.0**20)
    lines: list[str] = []
    monkeypatch.setattr(run.console, "say", lambda *new: lines.extend(new))
    before = copied(run.model)
    done = run.fit(plan, options)
    skipped = [row["step"] for row in run.rows() if "grad_norm" not in row]
    assert 0 < len(skipped) < 8
    told = [line for line in lines if "overflow" in line]
    assert [line.partition(":")[0] for line in told] == [f"step {step}" for step in skipped]
    assert told[0] == "step 1: fp16 overflow, the scaler skips this step (1 in a row)"
    assert done.skipped_in_a_row == 0
    assert run.accelerator.scaler.get_scale() == 2.0 ** (20 - len(skipped))
    root = tmp_path / "whole" / "checkpoints"
    for step in range(1, 9):
        after = store.load_checkpoint(root, step).model
        assert same(before, after) is (step in skipped), step
        before = after

    folder = f"checkpoints/{store.folder_name(skipped[-1] - 1)}"  # the last overflow is still to come
    shutil.copytree(tmp_path / "whole" / folder, tmp_path / "run" / folder)
    resumed = fp16(tmp_path / "run", 2.0**3)
    progress = restored(resumed)
    assert resumed.fit(plan, options, progress=progress) == done
    assert same(copied(resumed.model), copied(run.model))
    assert resumed.accelerator.scaler.get_scale() == run.accelerator.scaler.get_scale()


def test_fit__stops_where_every_step_overflows(tmp_path: Path, fp16: Callable[[Path, float], Run]) -> None:
    """Twenty skipped steps in a row are a divergence: the run stops, with the weights it started from."""
    run = fp16(tmp_path, 2.0**90)
    before = copied(run.model)
    with pytest.raises(WorkError, match=r"step 20 stopped: loss 1\.\d+, gradient norm (nan|inf)"):
        run.fit(plan_of(num_steps=30))
    assert len(run.rows()) == 19
    assert same(copied(run.model), before)


def test_fit__a_nan_loss_is_no_matter_of_the_scale(tmp_path: Path, fp16: Callable[[Path, float], Run]) -> None:
    """With a scaler, too, a loss that is not finite stops the run at once."""
    with pytest.raises(WorkError, match="step 1 stopped: loss nan"):
        fp16(tmp_path, 2.0).fit(batches=spoiled(0, 0))


def restored(run: Run, average: WeightAverage | None = None) -> Progress:
    return restore(
        run.run_dir,
        find_checkpoint(run.run_dir),
        model=run.model,
        optimizer=run.optimizer,
        accelerator=run.accelerator,
        console=run.console,
        metric="accuracy",
        keep_last=3,
        keep_threads=False,
        average=average,
    )


def test_fit__resume_is_bit_identical(tmp_path: Path) -> None:
    """A run stopped after step 3 and resumed from step 2 ends as an undisturbed one, bit for bit, its metrics too."""
    noisy: dict[str, Any] = {"drop_path_rate": 0.3, "proj_drop_rate": 0.2, "patch_drop_rate": 0.25}
    whole = Run.start(tmp_path / "whole", tiny_vit(**noisy))
    done = whole.fit(evaluate=scorer())

    first = Run.start(tmp_path / "run", tiny_vit(**noisy))
    with pytest.raises(StopIteration):
        first.fit(batches=itertools.islice(steps_of(), 3), evaluate=scorer())
    assert [row["step"] for row in first.rows()] == [1, 2, 3]

    torch.manual_seed(12345)
    second = Run.start(tmp_path / "run", tiny_vit(seed=1, **noisy))
    progress = restored(second)
    assert progress.step == 2
    assert second.fit(evaluate=scorer(), progress=progress) == done
    assert same(copied(second.model), copied(whole.model))
    for name in ("metrics.jsonl", "checkpoints/BEST", "checkpoints/LATEST"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for step in (4, 6):
        folder = f"checkpoints/{store.folder_name(step)}/SHA256SUMS"
        assert (tmp_path / "run" / folder).read_bytes() == (tmp_path / "whole" / folder).read_bytes()


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.5, 0.7, 0.7], 4),  # a tie: the earlier stays
        ("accuracy", [0.7, 0.5, 0.6], 2),
        ("accuracy", [0.5, 0.6, 0.7], 6),
        ("loss", [0.9, 0.4, 0.4], 4),
        ("loss", [0.4, 0.5, 0.6], 2),
    ],
)
def test_fit__best_step(tmp_path: Path, metric: str, values: list[float], best: int) -> None:
    """The best step by the named metric is kept, however few others are; of equal ones it is the earlier."""
    results = iter([figures(**{"accuracy": 0.1, metric: value}) for value in values])
    run = Run.start(tmp_path)
    done = run.fit(options=options_of(metric=metric, keep_last=1), evaluate=lambda _: next(results))
    assert (done.best_step, done.best_value) == (best, values[best // 2 - 1])
    root = tmp_path / "checkpoints"
    assert store.pointed_step(root, "BEST") == best
    assert store.saved_steps(root) == sorted({best, 6})


def test_fit__no_val_split(tmp_path: Path) -> None:
    """Where nothing selects, the last step is the best one."""
    done = Run.start(tmp_path).fit()
    assert done == Progress(6, 6, None, 0)
    assert store.pointed_step(tmp_path / "checkpoints", "BEST") == 6


def test_fit__a_new_best_is_saved_between_checkpoints(tmp_path: Path) -> None:
    """A best step is saved although no checkpoint was due."""
    results = iter([figures(accuracy=value) for value in (0.1, 0.9, 0.2)])
    Run.start(tmp_path).fit(plan_of(save_every=6), evaluate=lambda _: next(results))
    assert store.saved_steps(tmp_path / "checkpoints") == [2, 4, 6]


def test_fit__best_pointer_catches_up_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A best checkpoint whose pointer a kill prevented is pointed to, and kept, by the resumed run."""
    run = Run.start(tmp_path)
    results = iter([figures(accuracy=value) for value in (0.1, 0.9)])

    def killed(root: Path, pointer: str, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        point_to(root, pointer, step)

    point_to = store.point_to
    monkeypatch.setattr(store, "point_to", killed)
    with pytest.raises(KeyboardInterrupt):
        run.fit(evaluate=lambda _: next(results))
    monkeypatch.undo()
    root = tmp_path / "checkpoints"
    assert (store.pointed_step(root, "BEST"), store.newest_whole(root)[0]) == (2, 4)
    progress = Progress(4, 4, 0.9, 0)
    plan = plan_of(num_steps=8, save_every=1)
    done = run.fit(plan, options_of(keep_last=1), evaluate=lambda _: figures(accuracy=0.2), progress=progress)
    assert done.best_step == 4
    assert store.pointed_step(root, "BEST") == 4
    assert store.saved_steps(root) == [4, 8]


def test_fit__every_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is written when so many minutes have passed since the last one, besides those that are due."""
    now = 0.0

    def batches() -> Iterator[Sequence[Pictures]]:
        nonlocal now
        for micro_batches in steps_of():
            now += 25.0
            yield micro_batches

    monkeypatch.setattr(loop_module.time, "monotonic", lambda: now)
    options = options_of(every_minutes=1, keep_last=9)
    Run.start(tmp_path).fit(plan_of(num_steps=8, evaluate_every=100), options, batches=batches())
    assert store.saved_steps(tmp_path / "checkpoints") == [3, 6, 8]


def test_fit__state_of_a_checkpoint(tmp_path: Path) -> None:
    """state.json holds what a resumed run needs and no generator state: every step seeds itself."""
    run = Run.start(tmp_path)
    run.fit(plan_of(num_steps=2), evaluate=scorer())
    state = store.load_checkpoint(tmp_path / "checkpoints", 2).state
    assert state == {
        "step": 2,
        "best_step": 2,
        "best_value": run.rows("val")[0]["accuracy"],
        "best_is_average": False,
        "num_not_better": 0,
        "num_averaged": None,
        "skipped_in_a_row": 0,
        "scaler": None,
        "num_processes": 1,
        "num_threads": 1,
        "data": "abc",
    }


def test_fit__full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that the disk refuses stops the run with one clear error; the one before is whole."""
    run = Run.start(tmp_path)
    save_file = store.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(WorkError, match=r"cannot write the checkpoint .*step-00000004.*No space left on device"):
        run.fit()
    assert store.newest_whole(tmp_path / "checkpoints") == (2, [])


def test_fit__fewer_pictures_divide_by_their_number(tmp_path: Path) -> None:
    """A step that lost pictures has the gradient of the mean loss over those that are left, and that loss is told."""
    model = tiny_vit(dtype=torch.float64)
    left = pictures(0, dtype=torch.float64).part(slice(0, 5))
    twin = tiny_vit(dtype=torch.float64).train()
    loss = nn.functional.cross_entropy(twin(left.images, sample_seeds=left.sample_seeds), left.labels)
    loss.backward()

    run = Run.start(tmp_path, model, name="sgd")
    gradients = watch_gradients(run)
    options = options_of(max_grad_norm=None, count_images=lambda batches: sum(map(len, batches)))
    parts = [left.part(slice(0, 2)), left.part(slice(2, 5))]
    run.fit(plan_of(num_steps=1, warmup_steps=0), options, batches=iter([parts]))
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-12, rtol=1e-9, msg=name)
    told = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert told["loss"] == pytest.approx(loss.item(), abs=1e-6)  # summed in float32


MIXING = PairMixing(seed=0, mixup_alpha=0.8, cutmix_alpha=1.0, off_step=4)


@pytest.mark.parametrize("micro", [2, 4])
def test_fit__mixing_is_the_same_in_micro_batches(tmp_path: Path, micro: int) -> None:
    """With Mixup and CutMix, micro-batches of one or two pairs end at the weights of the whole batch, in float64."""
    ends = []
    for size in (8, micro):
        run = Run.start(tmp_path / f"{size}", tiny_vit(dtype=torch.float64, drop_path_rate=0.3))
        options = options_of(objective=Objective(label_smoothing=0.1, mixing=MIXING))
        run.fit(options=options, batches=steps_of(micro=size, dtype=torch.float64))
        ends.append(copied(run.model))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("raw", "averaged", "best", "is_average"),
    [
        ([0.5, 0.6, 0.7], [0.4, 0.8, 0.7], 4, True),  # the average of step 4 is the best of all six
        ([0.5, 0.9, 0.7], [0.9, 0.8, 0.7], 2, True),  # a tie with it later: the earlier stays
        ([0.5, 0.8, 0.7], [0.4, 0.8, 0.7], 4, False),  # a tie at one step: the weights themselves
    ],
)
def test_fit__the_average_is_scored_beside_the_weights(
    tmp_path: Path, raw: list[float], averaged: list[float], best: int, is_average: bool
) -> None:
    """Both are scored and written, and whichever is better decides; the checkpoint holds both."""
    run = Run.start(tmp_path)
    average = WeightAverage(tiny_vit(), 0.9)
    values = {id(run.model): iter(raw), id(average.model): iter(averaged)}
    done = run.fit(evaluate=lambda model: figures(accuracy=next(values[id(model)])), average=average)
    assert (done.best_step, done.best_is_average) == (best, is_average)
    assert [(row["accuracy"], row["ema_accuracy"]) for row in run.rows("val")] == list(zip(raw, averaged, strict=True))
    saved = store.load_checkpoint(tmp_path / "checkpoints", best)
    assert saved.state["best_is_average"] is is_average
    assert saved.average is not None
    assert saved.average.keys() == saved.model.keys()
    (tmp_path / "checkpoints" / store.folder_name(best) / "ema.safetensors").write_bytes(b"")
    assert "ema.safetensors has another content" in str(store.damage_of_step(tmp_path / "checkpoints", best))


def test_fit__the_average_without_val(tmp_path: Path) -> None:
    """Where nothing selects, the average of the last step is the result, as was asked for."""
    done = Run.start(tmp_path).fit(average=WeightAverage(tiny_vit(), 0.9))
    assert (done.best_step, done.best_is_average) == (6, True)


def test_fit__patience(tmp_path: Path) -> None:
    """Two evaluations without a better one end the run, which is saved there and says so; resumed, it stays there."""
    values = [0.5, 0.7, 0.6, 0.7, 0.9]
    scores = iter(values)
    run = Run.start(tmp_path)
    plan, options = plan_of(num_steps=10, save_every=5), options_of(patience=2)
    done = run.fit(plan, options, evaluate=lambda _: figures(accuracy=next(scores)))
    assert (done.step, done.best_step, done.num_not_better) == (8, 4, 2)
    assert store.pointed_step(tmp_path / "checkpoints", "LATEST") == 8
    again = Run.start(tmp_path)
    assert again.fit(plan, options, evaluate=scorer(), progress=restored(again)) == done


def test_fit__patience_waits_for_the_last_stage(tmp_path: Path) -> None:
    """Evaluations before the last stage do not count: a stage that stands still is no reason to miss the next."""
    scores = iter([0.5, 0.5, 0.5, 0.5, 0.5])
    plan = plan_of(num_steps=10, stages=(Stage(mode="linear_probe"), Stage(first_step=4)))
    done = Run.start(tmp_path).fit(plan, options_of(patience=2), evaluate=lambda _: figures(accuracy=next(scores)))
    assert (done.step, done.num_not_better) == (8, 2)


def test_fit__resume_with_mixing_and_average_is_bit_identical(tmp_path: Path) -> None:
    """A run with Mixup, CutMix and an average, stopped and resumed, ends bit for bit as the undisturbed one."""
    options = options_of(objective=Objective(mixing=MIXING), patience=5)
    ends = []
    for name in ("whole", "run"):
        run, average = Run.start(tmp_path / name), WeightAverage(tiny_vit(), 0.9)
        if name == "run":
            with pytest.raises(StopIteration):
                run.fit(options=options, batches=itertools.islice(steps_of(), 3), evaluate=scorer(), average=average)
            run, average = Run.start(tmp_path / name, tiny_vit(seed=1)), WeightAverage(tiny_vit(seed=2), 0.9)
            progress = restored(run, average)
            assert progress.step == average.num_updates == 2
            done = run.fit(options=options, evaluate=scorer(), average=average, progress=progress)
        else:
            done = run.fit(options=options, evaluate=scorer(), average=average)
        ends.append((done, copied(run.model), average.tensors()))
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])
    assert same(ends[0][2], ends[1][2])
    for name in ("metrics.jsonl", "checkpoints/step-00000006/SHA256SUMS"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
