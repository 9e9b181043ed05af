"""Batches: the same at any number of ranks and workers, from any step, and errors as one line."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import picture_set

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.common.seeding import derive_seed
from vit_finetune.data import ImageSet
from vit_finetune.data.batch import TENSORS, Batch
from vit_finetune.data.loader import default_num_workers, eval_batches, train_batches
from vit_finetune.data.order import global_batch
from vit_finetune.data.transforms import apply_seeded, build_eval_transform, build_train_transform

SPEC = PreprocessSpec(input_size=(3, 8, 8))
TRAIN = build_train_transform(SPEC, color_jitter=0.3, auto_augment="trivialaugment", random_erasing=0.3)
EVAL = build_eval_transform(SPEC)
COUNT = 11


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Return eleven labelled pictures."""
    return picture_set(tmp_path_factory.mktemp("pictures"), COUNT)


def steps(images: ImageSet, **options: Any) -> list[list[Batch]]:
    """Return training steps, 5 of 6 samples in micro-batches of 4 unless asked otherwise."""
    chosen = {"seed": 3, "global_batch_size": 6, "per_device_batch_size": 4, "start_step": 0, "num_steps": 5, **options}
    return list(train_batches(images, TRAIN, **chosen))


NAMES = TENSORS


def joined(batches: list[Batch]) -> Batch:
    """Return batches as one."""
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in NAMES))


def assert_equal(left: Batch, right: Batch) -> None:
    """Check that two batches are equal to the bit."""
    for name in NAMES:
        assert torch.equal(getattr(left, name), getattr(right, name)), name


def no_workers_left() -> bool:
    """Tell whether all worker processes end within a few seconds."""
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not multiprocessing.active_children()


def test_train_batches__are_what_the_order_says(images: ImageSet) -> None:
    """Indices, labels, augmentation and noise seeds, each from its own written-out rule."""
    for step, micro_batches in enumerate(steps(images)):
        assert [len(batch) for batch in micro_batches] == [4, 2]
        batch = joined(micro_batches)
        epochs, indices = global_batch(step, seed=3, num_samples=COUNT, global_batch_size=6)
        assert batch.indices.tolist() == indices.tolist()
        assert batch.labels.tolist() == [index % 3 for index in indices]
        assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5]
        assert batch.sample_seeds.tolist() == [derive_seed(3, "noise", step, int(index)) for index in indices]
        for row, (epoch, index) in enumerate(zip(epochs.tolist(), indices.tolist(), strict=True)):
            expected = apply_seeded(TRAIN, images.load(index), derive_seed(3, "augment", epoch, index))
            assert torch.equal(batch.images[row], expected)
        assert (batch.images.dtype, batch.labels.dtype, batch.sample_seeds.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_train_batches__ranks_share_the_same_batch(images: ImageSet, world_size: int) -> None:
    """The ranks' samples laid side by side are the single process's, to the bit, none left without."""
    alone = steps(images)
    ranks = [steps(images, rank=rank, world_size=world_size, per_device_batch_size=2) for rank in range(world_size)]
    for step, expected in enumerate(alone):
        assert all(len(joined(rank[step])) >= 1 for rank in ranks)
        assert_equal(joined([batch for rank in ranks for batch in rank[step]]), joined(expected))


def test_train_batches__go_on_at_any_step(images: ImageSet) -> None:
    """A resumed stream is the rest of the first one, in the middle of an epoch too."""
    whole = steps(images)
    for start in (1, 2, 4):
        rest = steps(images, start_step=start, num_steps=5 - start)
        for left, right in zip(rest, whole[start:], strict=True):
            assert_equal(joined(left), joined(right))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_train_batches__in_pairs_keep_neighbours_together(images: ImageSet, world_size: int) -> None:
    """Micro-batches hold whole pairs of the global batch, and together they are the single process's batch."""
    sizes = {"global_batch_size": 10, "per_device_batch_size": 4, "in_pairs": True}
    ranks = [steps(images, rank=rank, world_size=world_size, **sizes) for rank in range(world_size)]
    for step, expected in enumerate(steps(images, global_batch_size=10)):
        batches = [batch for rank in ranks for batch in rank[step]]
        assert all(batch.positions[0] % 2 == 0 and len(batch) % 2 == 0 for batch in batches)
        assert_equal(joined(batches), joined(expected))


def test_train_batches__balanced(images: ImageSet) -> None:
    """A skewed split is visited class by class equally often, the same from any step, a repeat in another view."""
    skewed = ImageSet(images.store, np.array([0] * 9 + [1] * 2))
    options = {"global_batch_size": 11, "num_steps": 3, "balanced": True}
    whole = [joined(step) for step in steps(skewed, **options)]
    assert all(abs(int((batch.labels == 1).sum()) - 5.5) < 1 for batch in whole)
    again = steps(skewed, **{**options, "start_step": 2, "num_steps": 1})
    assert_equal(joined(again[0]), whole[2])
    rows = (whole[0].indices == whole[0].indices[whole[0].labels == 1][0]).nonzero().flatten()
    assert len(rows) >= 2
    assert not torch.equal(whole[0].images[rows[0]], whole[0].images[rows[1]])


def test_train_batches__workers_change_nothing(images: ImageSet) -> None:
    """0, 1 and 2 workers give the same micro-batches, and torch's generator is not drawn from."""
    state = torch.get_rng_state()
    alone = steps(images)
    for num_workers in (1, 2):
        many = steps(images, num_workers=num_workers)
        assert [[len(batch) for batch in step] for step in many] == [[4, 2]] * 5
        for left, right in zip(many, alone, strict=True):
            assert_equal(joined(left), joined(right))
    assert torch.equal(torch.get_rng_state(), state)
    assert no_workers_left()


def test_train_batches__global_batch_larger_than_the_split(images: ImageSet) -> None:
    """A step may see a sample twice, from two epochs and differently augmented."""
    batch = joined(steps(images, global_batch_size=25, num_steps=1)[0])
    assert sorted(batch.indices.tolist()[:22]) == sorted([*range(COUNT)] * 2)
    first, second = (batch.indices == batch.indices[0]).nonzero().flatten().tolist()[:2]
    assert not torch.equal(batch.images[first], batch.images[second])


@pytest.mark.parametrize("seed", [4, 5])
def test_train_batches__seed_changes_everything(images: ImageSet, seed: int) -> None:
    """Another seed gives another order, other crops and other noise."""
    one, other = joined(steps(images, num_steps=1)[0]), joined(steps(images, num_steps=1, seed=seed)[0])
    assert not torch.equal(one.indices, other.indices)
    assert not set(one.sample_seeds.tolist()) & set(other.sample_seeds.tolist())


def test_train_batches__closing_early_ends_the_workers(images: ImageSet) -> None:
    """A stream that is closed, or dropped, in the middle leaves no process behind."""
    options = {"seed": 0, "global_batch_size": 4, "per_device_batch_size": 2, "start_step": 0, "num_steps": 1000}
    stream = train_batches(images, TRAIN, num_workers=2, **options)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()  # type: ignore[attr-defined]
    assert no_workers_left()
    stream = train_batches(images, TRAIN, num_workers=2, **options)
    next(stream)
    del stream
    assert no_workers_left()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches__bad_picture_is_one_line(num_workers: int, tmp_path: Path) -> None:
    """A picture that breaks in the middle is the same one-line error with and without workers."""
    images = picture_set(tmp_path, 6)
    path = tmp_path / "all" / "4.png"
    path.write_bytes(path.read_bytes()[:-200])
    stream = eval_batches(images, EVAL, batch_size=2, num_workers=num_workers)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(RequestError) as caught:
        next(stream)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert "\n" not in str(caught.value)
    assert no_workers_left()
    with pytest.raises(RequestError, match=r"4\.png"):
        list(
            train_batches(
                images,
                TRAIN,
                seed=0,
                global_batch_size=3,
                per_device_batch_size=3,
                start_step=0,
                num_steps=2,
                num_workers=num_workers,
            )
        )


def broken_transform(image: object) -> torch.Tensor:
    """Fail as a bug would."""
    raise ZeroDivisionError("bug")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches__a_bug_keeps_its_type_and_names_the_picture(images: ImageSet, num_workers: int) -> None:
    """What is not the user's mistake keeps its traceback, and says which picture it met."""
    with pytest.raises(ZeroDivisionError) as caught:
        list(eval_batches(images, broken_transform, batch_size=2, num_workers=num_workers))
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert f"while transforming {images.name(0)}, 24x20 pixels" in told
    traceback.clear_frames(caught.tb)  # they hold the workers' iterator
    assert no_workers_left()


@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_eval_batches__every_sample_once(images: ImageSet, world_size: int) -> None:
    """All ranks together see every sample once and in order; more ranks than samples are fine."""
    ranks = [list(eval_batches(images, EVAL, batch_size=4, rank=r, world_size=world_size)) for r in range(world_size)]
    batches = [batch for rank in ranks for batch in rank]
    assert all(1 <= len(batch) <= 4 for batch in batches)
    batch = joined(batches)
    assert batch.indices.tolist() == list(range(COUNT))
    assert batch.labels.tolist() == images.labels.tolist()
    for index in range(COUNT):
        assert torch.equal(batch.images[index], EVAL(images.load(index)))


def test_eval_batches__workers_change_nothing(images: ImageSet) -> None:
    """Two workers give the same batches as none."""
    left, right = (list(eval_batches(images, EVAL, batch_size=3, num_workers=n)) for n in (0, 2))
    assert [len(batch) for batch in left] == [len(batch) for batch in right] == [3, 3, 3, 2]
    assert_equal(joined(left), joined(right))


def test_train_batches__spawned_workers_can_be_used(images: ImageSet) -> None:
    """What a worker needs can be pickled, so platforms that spawn work as those that fork."""
    import pickle

    from vit_finetune.data.workers import Worker

    worker = pickle.loads(pickle.dumps(Worker(images, TRAIN, 3)))
    image = images.load(1)
    assert torch.equal(worker._transformed(image, 0, 1), Worker(images, TRAIN, 3)._transformed(image, 0, 1))


@pytest.mark.parametrize(
    "options", [{"global_batch_size": 1, "world_size": 2}, {"per_device_batch_size": 0}, {"global_batch_size": 0}]
)
def test_train_batches__refuses_impossible_sizes(images: ImageSet, options: dict[str, int]) -> None:
    """A rank without a sample is refused when the stream is asked for, not at its first step."""
    sizes = {"global_batch_size": 6, "per_device_batch_size": 4, **options}
    with pytest.raises(RequestError, match="at least one sample per step"):
        train_batches(images, TRAIN, seed=0, start_step=0, num_steps=1, **sizes)
    with pytest.raises(RequestError, match="batch_size is 0"):
        eval_batches(images, EVAL, batch_size=0)


@pytest.mark.parametrize("sizes", [(5, 4), (6, 3)])
def test_train_batches__pairs_need_even_sizes(images: ImageSet, sizes: tuple[int, int]) -> None:
    """Neighbours cannot stay together in an odd batch."""
    with pytest.raises(RequestError, match="both must be even where neighbours are mixed"):
        steps(images, global_batch_size=sizes[0], per_device_batch_size=sizes[1], in_pairs=True)


def test_train_batches__balanced_needs_one_class_each(images: ImageSet) -> None:
    """Pictures with several classes have no balanced order."""
    several = ImageSet(images.store, np.ones((COUNT, 2), dtype=np.uint8))
    with pytest.raises(RequestError, match="a balanced order needs one class per picture"):
        steps(several, balanced=True)


def test_batch__moves_to_a_device(images: ImageSet) -> None:
    """`to` moves every tensor."""
    batch = steps(images, num_steps=1)[0][0].to("meta")
    assert {tensor.device.type for tensor in (batch.images, batch.labels, batch.indices, batch.sample_seeds)} == {
        "meta"
    }


def test_default_num_workers__is_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    """None where the model computes on the same cores; else this rank's share, from 1 to 8."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(32), raising=False)
    assert default_num_workers("cpu", 1) == 0
    assert [default_num_workers("cuda", ranks) for ranks in (1, 4, 8, 64)] == [8, 8, 4, 1]


BAD = (2, 3, 7)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Return eleven pictures, three of which end too early."""
    root = tmp_path_factory.mktemp("damaged")
    pictures = picture_set(root, COUNT)
    for index in BAD:
        path = root / f"all/{index}.png"
        path.write_bytes(path.read_bytes()[:200])
    return pictures


@pytest.mark.parametrize("num_workers", [0, 1])
def test_train_batches__skip_bad_leaves_out_and_replaces_nothing(
    images: ImageSet, damaged: ImageSet, num_workers: int
) -> None:
    """What is left is the undamaged set's to the bit, without the bad rows; those are named with a reason."""
    for batches, whole in zip(steps(damaged, skip_bad=True, num_workers=num_workers), steps(images), strict=True):
        left, expected = joined(batches), joined(whole)
        kept = ~torch.isin(expected.indices, torch.tensor(BAD))
        assert all(len(batch) for batch in batches)
        assert_equal(left, Batch(*(getattr(expected, name)[kept] for name in NAMES)))
        found = [bad for batch in batches for bad in batch.bad]
        assert [bad.index for bad in found] == expected.indices[~kept].tolist()
        assert all(damaged.name(bad.index) in bad.reason for bad in found)


def test_train_batches__skip_bad_in_pairs_takes_the_neighbour_along(damaged: ImageSet) -> None:
    """No pair is ever parted: micro-batches stay even, and only bad pictures and their neighbours are missing."""
    sizes = {"global_batch_size": 10, "per_device_batch_size": 4, "in_pairs": True, "skip_bad": True}
    for step, batches in enumerate(steps(damaged, **sizes)):
        _, indices = global_batch(step, seed=3, num_samples=COUNT, global_batch_size=10)
        pairs = [pair for pair in indices.reshape(-1, 2).tolist() if not set(pair) & set(BAD)]
        assert joined(batches).indices.tolist() == [index for pair in pairs for index in pair]
        assert all(batch.positions[0] % 2 == 0 and len(batch) % 2 == 0 for batch in batches)


def test_train_batches__skip_bad_with_nothing_left(damaged: ImageSet) -> None:
    """A rank all of whose pictures are bad gets one empty batch in the shape of the others."""
    only_bad = ImageSet(damaged.store.take(np.array(BAD)), np.zeros(3, dtype=np.int64))
    (batches,) = steps(only_bad, global_batch_size=6, num_steps=1, skip_bad=True)
    assert [tuple(batch.images.shape) for batch in batches] == [(0, 3, 8, 8)]
    assert len(batches[0].bad) == 6


def test_train_batches__skip_bad_is_not_for_a_failing_disk(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be gone next time is no property of the picture, so it ends the run under any policy."""
    import errno

    def fail(_path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(RequestError, match="Input/output error"):
        steps(images, skip_bad=True)


def test_train_batches__bytes_are_stacked_as_they_lie(images: ImageSet) -> None:
    """A batch of quickly resized bytes holds each picture's own transform, channels side by side."""
    quick = build_train_transform(SPEC, resizer="torch", as_bytes=True)
    sizes = {"seed": 3, "global_batch_size": 6, "per_device_batch_size": 4, "start_step": 0, "num_steps": 1}
    for batch in next(train_batches(images, quick, **sizes)):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for row, index in enumerate(batch.indices.tolist()):
            alone = apply_seeded(quick, images.load(index), derive_seed(3, "augment", 0, index))
            assert torch.equal(batch.images[row], alone)


@pytest.mark.parametrize("weights", [[0.5, 2, 0, 1, 3, 1, 1, 4, 0.25, 1, 2], [0.0] * 10 + [1]])
def test_train_batches__weights_have_a_mean_of_one_over_the_ranks(images: ImageSet, weights: list[float]) -> None:
    """The weights of a global batch keep their ratios, and their mean over all ranks is 1, or all are 0."""
    given = torch.tensor(weights, dtype=torch.float64)
    weighted = replace(images, weights=given.numpy())
    ranks = [steps(weighted, rank=rank, world_size=2) for rank in range(2)]
    for step in zip(*ranks, strict=True):
        batches = [batch for part in step for batch in part]
        found = torch.cat([batch.weights for batch in batches if batch.weights is not None])
        expected = given[torch.cat([batch.indices for batch in batches])]
        torch.testing.assert_close(found, expected / expected.mean() if expected.any() else expected)
