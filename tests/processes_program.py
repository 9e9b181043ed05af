"""Runs on 1, 2 and 3 real gloo processes for `test_processes_agree.py`: `python processes_program.py FOLDER`.

One interpreter imports everything and forks the processes of each world, so that many cases cost one start. Results
are left in FOLDER/NUMBER.pt by the first process of each world.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from data_helpers import picture_set
from run_helpers import make_pictures, tiny_config
from torch import nn
from torch.distributed.fsdp import FSDPModule
from training_helpers import CLASS_NAMES, Pictures, adamw, copied, options_of, pictures, plan_of, tiny_vit

from vit_finetune import finetune
from vit_finetune.common.errors import WorkError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import ImageSet
from vit_finetune.data.batch import TENSORS
from vit_finetune.data.loader import eval_batches, train_batches
from vit_finetune.data.transforms import build_eval_transform, build_train_transform
from vit_finetune.evaluation import EvalResult, score
from vit_finetune.training import RunConsole, fit, load_optimizer_tensors, optimizer_tensors, sharding
from vit_finetune.training import checkpoint as store
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.mix import PairMixing
from vit_finetune.training.objective import Objective
from vit_finetune.training.plan import largest_share
from vit_finetune.training.processes import gathered_lists

NUM_STEPS, GLOBAL_BATCH = 2, 18  # nine pairs: two processes have shares of 8 and 10, three of 6
SPEC = PreprocessSpec(input_size=(3, 32, 32))
TRAIN = build_train_transform(SPEC, color_jitter=0.3, auto_augment="trivialaugment", random_erasing=0.3)


class Case(NamedTuple):
    """One training run: pictures in both splits, micro-batches of a step, and how the processes share the network."""

    size: int
    accumulation: int
    dtype: torch.dtype = torch.float64
    strategy: str = "ddp"
    cpu_offload: bool = False
    grad_checkpointing: Any = "elementwise"


PLAIN = [
    *(Case(size, count) for size in (1, 7, 64, 65) for count in (1, 3)),
    *(Case(size, count, torch.float32) for size, count in ((7, 3), (65, 1))),
]
SHARDED = [
    *(Case(size, count, strategy="fsdp") for size, count in ((1, 1), (7, 3), (64, 1), (65, 3))),
    Case(65, 1, torch.float32, strategy="fsdp"),
    Case(7, 3, strategy="fsdp", cpu_offload=True, grad_checkpointing="blocks"),
]
# Two processes run all of them; three run each size, both kinds of accumulation, numbers and sharing.
CASES = {
    1: PLAIN,
    2: [*PLAIN, *SHARDED],
    3: [*(Case(size, count) for size, count in ((1, 3), (7, 1), (64, 3), (65, 1))), PLAIN[-1], *SHARDED[1:4:2]],
}


def as_dtype(batch: Any, dtype: torch.dtype) -> Pictures:
    """Return a batch with pixels of a dtype."""
    found = Pictures(*(getattr(batch, name) for name in TENSORS))
    return Pictures(found.images.to(dtype), found.labels, found.indices, found.sample_seeds, found.positions)


def is_looked_at(case: Case) -> bool:
    """Say whether what sharding does to each tensor is looked at: once, and with parts in the CPU's memory."""
    return case.size == 1 or case.cpu_offload


def place(model: Any, case: Case, accelerator: Accelerator) -> None:
    """Shard a network where the case says so, and see that this changes no tensor of it."""
    if case.strategy != "fsdp":
        return
    before = copied(model) if is_looked_at(case) else {}
    sharding.shard(
        model, device=accelerator.device, mixed_precision=accelerator.mixed_precision, cpu_offload=case.cpu_offload
    )
    assert isinstance(model, FSDPModule), "silently not sharded"
    assert all(isinstance(block, FSDPModule) for block in model.blocks)
    if not before:
        return
    after = sharding.whole(model.state_dict())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "consolidated tensors differ"
    sharding.load_whole(model, {name: tensor + 1 for name, tensor in before.items()})
    moved = sharding.whole(model.state_dict())
    assert all(torch.equal(before[name] + 1, moved[name]) for name in before), "loaded tensors differ"
    sharding.load_whole(model, before)


def run_case(case: Case, images: ImageSet, accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Train and score; return what has to be equal at any number of processes."""
    rank, world = accelerator.process_index, accelerator.num_processes
    share = {"rank": rank, "world_size": world}
    model = tiny_vit(dtype=case.dtype, drop_path_rate=0.2, patch_drop_rate=0.25, init_values=0.1)
    model.set_grad_checkpointing(case.grad_checkpointing)
    average = WeightAverage(model, 0.9)
    for network in (model, average.model):
        place(network, case, accelerator)
    optimizer = accelerator.prepare(adamw(model))
    sharded = case.strategy == "fsdp"
    wrapped = accelerator.prepare_model(model, evaluation_mode=sharded)
    largest = largest_share(GLOBAL_BATCH, world, in_pairs=True)
    size = 2 * -(-largest // (2 * case.accumulation))
    plan = plan_of(
        num_train=case.size,
        num_steps=NUM_STEPS,
        evaluate_every=NUM_STEPS,
        global_batch_size=GLOBAL_BATCH,
        per_device_batch_size=size,
        num_processes=world,
    )
    seen: list[tuple[int, int, int, float]] = []
    results: list[EvalResult] = []

    def batches() -> Iterator[list[Pictures]]:
        found = train_batches(
            images,
            TRAIN,
            seed=0,
            global_batch_size=GLOBAL_BATCH,
            per_device_batch_size=size,
            start_step=0,
            num_steps=NUM_STEPS,
            in_pairs=True,
            **share,
        )
        for step, micro_batches in enumerate(found):
            for batch in micro_batches:
                pixels = batch.images.double().sum(dim=(1, 2, 3)).tolist()
                seen.extend(
                    zip([step] * len(batch), batch.positions.tolist(), batch.indices.tolist(), pixels, strict=True)
                )
            yield [as_dtype(batch, case.dtype) for batch in micro_batches]

    def evaluate(network: nn.Module) -> EvalResult:
        found = (
            as_dtype(batch, case.dtype)
            for batch in eval_batches(images, build_eval_transform(SPEC), batch_size=16, **share)
        )
        found = sharding.in_step(found, network, accelerator, image_size=(3, 32, 32))
        result = score(
            network,
            found,
            class_names=CLASS_NAMES,
            num_expected=case.size,
            accelerator=accelerator,
            keep_predictions=True,
        )
        results.append(result)
        return result

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    mixing = PairMixing(seed=0, mixup_alpha=0.8, cutmix_alpha=1.0)
    fit(
        wrapped,
        optimizer,
        accelerator=accelerator,
        plan=plan,
        options=options_of(objective=Objective(label_smoothing=0.1, mixing=mixing)),
        batches=batches(),
        evaluate=evaluate,
        run_dir=folder,
        console=RunConsole(enabled=False),
        average=average,
    )
    state = sharding.whole(optimizer_tensors(optimizer))
    if is_looked_at(case):
        load_optimizer_tensors(optimizer, state)
        again = sharding.whole(optimizer_tensors(optimizer))
        assert all(torch.equal(state[name], again[name]) for name in state), "the optimizer's state does not come back"
    return {
        "seen": sorted(gathered_lists(accelerator, seen)),
        "weights": sharding.whole(model.state_dict()),
        "average": sharding.whole(average.tensors()),
        "moments": state,
        "journal": (folder / "metrics.jsonl").read_text(),
        "results": results,
    }


def parts(accelerator: Accelerator, *, broken: int | None = None) -> Iterator[list[Pictures]]:
    """Yield this process's part of each step, without end; the last process's first picture of one step is broken."""
    world, rank = accelerator.num_processes, accelerator.process_index
    for step in itertools.count():
        batch = pictures(step, dtype=torch.float64).part(slice(rank * 8 // world, (rank + 1) * 8 // world))
        if step == broken and rank == world - 1:
            batch.images[0] = torch.nan
        yield [batch]


def small_fit(
    accelerator: Accelerator,
    name: str,
    batches: Any,
    *,
    strategy: str = "ddp",
    save_every: int | None = 1,
    **options: Any,
) -> None:
    """Run four steps that score nothing, with an average of the weights."""
    case = Case(8, 1, strategy=strategy)
    model = tiny_vit(dtype=torch.float64)
    average = WeightAverage(model, 0.9)
    for network in (model, average.model):
        place(network, case, accelerator)
    optimizer, world, folder = accelerator.prepare(adamw(model)), accelerator.num_processes, FOLDER / name
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    fit(
        accelerator.prepare_model(model, evaluation_mode=strategy == "fsdp"),
        optimizer,
        accelerator=accelerator,
        plan=plan_of(num_steps=4, save_every=save_every, num_processes=world, per_device_batch_size=-(-8 // world)),
        options=options_of(**options),
        batches=batches,
        evaluate=None,
        run_dir=folder,
        console=RunConsole(enabled=False),
        average=average,
    )


def refuses_nan(accelerator: Accelerator) -> str:
    """Return how a sharded run ends whose second step has a broken picture on the last process alone."""
    name, batches = f"nan_{accelerator.num_processes}", parts(accelerator, broken=1)
    try:
        small_fit(accelerator, name, batches, strategy="fsdp", save_every=None)
    except WorkError as error:
        return str(error)
    raise AssertionError("trained on NaN")


def meets_a_full_disk(accelerator: Accelerator) -> list[str]:
    """Return how each process ends where the first one, which writes behind training, finds no room for step 2."""
    save_file = store.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "step-00000002" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    store.save_file = full
    try:
        small_fit(accelerator, "full", parts(accelerator), asynchronous=True)
    except WorkError as error:
        return gathered_lists(accelerator, [str(error)])
    finally:
        store.save_file = save_file
    raise AssertionError("nothing was said")


def whole_run(name: str, *, resume: bool = False, **sections: Any) -> None:
    """Fine-tune from pictures to a model folder."""
    config = tiny_config(FOLDER / "photos", FOLDER / name, **sections)
    config["model"] |= {"patch_drop_rate": 0.25, "overrides": {**config["model"]["overrides"], "patch_size": 8}}
    config["train"] |= {"steps": 6, "ema_decay": 0.8, "mixup_alpha": 0.8, "progressive_sizes": [16]}
    config["evaluation"] = {"every_steps": 2}
    finetune(config, resume=resume)


def cut_back(name: str, accelerator: Accelerator, *, step: int) -> None:
    """Take away every checkpoint after a step, as if the run had been ended then."""
    if accelerator.is_main_process:
        for path in (FOLDER / name / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def world_of_one(accelerator: Accelerator) -> dict[Any, Any]:
    """Return the runs that all others have to equal."""
    done = run_cases(CASES[1], accelerator)
    whole_run("one")
    return done


def world_of_two(accelerator: Accelerator) -> dict[Any, Any]:
    """Return the runs of two processes; one run is sharded, and goes on elsewhere."""
    done = run_cases(CASES[2], accelerator) | {"nan": refuses_nan(accelerator)}
    for strategy in ("ddp", "fsdp"):
        for name in ("at_once", "behind"):
            given = {"strategy": strategy, "asynchronous": name == "behind"}
            small_fit(accelerator, f"{strategy}_{name}", parts(accelerator), **given)
    done["full disk"] = meets_a_full_disk(accelerator)
    whole_run("sharded", run={"strategy": "fsdp"})
    return done


def world_of_three(accelerator: Accelerator) -> dict[Any, Any]:
    """Return the runs of three processes, among them the going on of a run that two had begun in shards."""
    done = run_cases(CASES[3], accelerator) | {"nan": refuses_nan(accelerator)}
    whole_run("three")
    for name, strategy in (("sharded_then_ddp", "ddp"), ("sharded_then_fsdp", "fsdp")):
        if accelerator.is_main_process:
            shutil.copytree(FOLDER / "sharded", FOLDER / name)
        cut_back(name, accelerator, step=2)
        whole_run(name, resume=True, run={"strategy": strategy})
    return done


def run_cases(cases: list[Case], accelerator: Accelerator) -> dict[Any, Any]:
    """Run cases one after another."""
    folder = FOLDER / f"fit_{accelerator.num_processes}"
    images = {size: picture_set(FOLDER / "pictures" / str(size), size) for size in (1, 7, 64, 65)}
    return {
        tuple(case): run_case(case, images[case.size], accelerator, folder / str(number))
        for number, case in enumerate(cases)
    }


def process(rank: int, world: int, port: int, work: Callable[[Accelerator], dict[Any, Any]]) -> None:
    """Be one of the processes of a world."""
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    sharding._DEVICES = ("cuda", "cpu")  # refused for users, who would gain nothing; the way to it is tested apart
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    done = work(accelerator)
    if rank == 0:
        torch.save(done, FOLDER / f"{world}.pt")
    if world > 1:
        accelerator.wait_for_everyone()
        torch.distributed.destroy_process_group()


def main() -> None:
    """Run all worlds."""
    make_pictures(FOLDER / "photos", train=7, val=3)
    for size in (1, 7, 64, 65):
        picture_set(FOLDER / "pictures" / str(size), size)
    fork = multiprocessing.get_context("fork")
    for world, work in enumerate((world_of_one, world_of_two, world_of_three), start=1):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        started = [fork.Process(target=process, args=(rank, world, port, work)) for rank in range(world)]
        for each in started:
            each.start()
        for each in started:
            each.join()
        if any(each.exitcode for each in started):
            sys.exit(f"{world} processes ended with {[each.exitcode for each in started]}")


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    main()
