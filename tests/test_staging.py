"""Runs in stages and runs with adapters, whole: what trains when, resume at every step, two processes as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from run_helpers import make_pictures, run_module, tiny_config
from safetensors.torch import load_file
from training_helpers import plan_of, tiny_vit

from vit_finetune import Config, Predictor, finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.finetune import RunResult
from vit_finetune.staging import Staging
from vit_finetune.training import Progress, RunConsole, TrainPlan, parameter_groups, plan_stages
from vit_finetune.training.micro_batches import with_micro_batch
from vit_finetune.training.optim import set_lr

NUM_STEPS = 6
MODES: dict[str, dict[str, Any]] = {
    "lp_ft": {"mode": "lp_ft", "probe_steps": 3, "probe_lr": 1e-2},
    "gradual": {"mode": "gradual", "num_stages": 3},
    "lora": {"mode": "lora", "lora": {"rank": 2, "alpha": 4}},
}


def config_of(pictures: Path, run_dir: Path, mode: str, **sections: Any) -> dict[str, dict[str, Any]]:
    """Return a run of six steps that keeps the checkpoint of each."""
    values: dict[str, Any] = {
        "tuning": MODES[mode],
        "train": {"steps": NUM_STEPS, "global_batch_size": 6, "per_device_batch_size": 3},
        "evaluation": {"every_steps": 2},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
    }
    return tiny_config(pictures, run_dir, **(values | sections))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=6, val=2)


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """One whole run of each kind that several tests look at."""
    root = tmp_path_factory.mktemp("runs")
    return {mode: finetune(config_of(pictures, root / mode, mode)) for mode in MODES}


def weights(result: RunResult, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(result.run_dir / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors")


def changed(result: RunResult, step: int) -> set[str]:
    """Return the parameters that the update after `step` done steps changed."""
    before, after = weights(result, step), weights(result, step + 1)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_stages__what_each_update_changes(runs: dict[str, RunResult]) -> None:
    """lp_ft moves the head alone for three steps, then everything; gradual goes down from the head block by block."""
    head, everything = {"head.weight", "head.bias"}, set(weights(runs["lp_ft"], 1))
    for step in (1, 2):
        assert changed(runs["lp_ft"], step) == head
    for step in (3, 4, 5):
        assert changed(runs["lp_ft"], step) == everything
    last_block = {name for name in everything if name.startswith(("blocks.1.", "norm."))}
    for step, expected in ((1, head), (2, head | last_block), (3, head | last_block), (4, everything), (5, everything)):
        assert changed(runs["gradual"], step) == expected, step


def test_stages__are_in_the_plan_and_the_log(runs: dict[str, RunResult]) -> None:
    """plan.json has the stages and how many parameters train in each; the log has both and a table of groups each."""
    plan = json.loads((runs["gradual"].run_dir / "plan.json").read_text())
    assert plan["stages"] == [
        {"first_step": 0, "mode": "linear_probe", "num_blocks": None},
        {"first_step": 2, "mode": "last_n", "num_blocks": 1},
        {"first_step": 4, "mode": "full", "num_blocks": None},
    ]
    total = sum(tensor.numel() for tensor in weights(runs["gradual"], 1).values())
    assert [row["num_trained"] for row in plan["tuned"]] == [3 * 49, 3 * 49 + 12 * 48 * 48 + 13 * 48 + 2 * 48, total]
    assert all(row["num_trained"] + row["num_frozen"] == total for row in plan["tuned"])
    log = (runs["gradual"].run_dir / "run.log").read_text()
    assert "stage    2 of 3, steps 3 to 4: last_n of 1, 28,515 parameters trained, 65,472 frozen" in log
    assert log.count("groups   group ") == 3


def test_stages__state_goes_on_or_starts_afresh(runs: dict[str, RunResult]) -> None:
    """Across a boundary AdamW goes on counting for the head and keeps its moments; a new parameter counts from one."""
    state = weights(runs["lp_ft"], 4, "optimizer")
    assert state["head.weight/step"] == 4
    assert state["blocks.0.mlp.fc1.weight/step"] == 1
    before = weights(runs["lp_ft"], 3, "optimizer")
    assert set(before) == {
        f"head.{own}/{key}" for own in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("mode", ["lp_ft", "gradual"])
def test_staging__equals_one_optimizer_that_sees_some_gradients_later(tmp_path: Path, mode: str) -> None:
    """Oracle: one AdamW of torch's over everything, whose parameters get gradients only once their stage has come."""
    config = Config.load(config_of(tmp_path, tmp_path, mode))
    stages = plan_stages(mode, num_steps=6, depth=2, num_stages=3, probe_steps=3)
    plan = plan_of(stages=stages, num_steps=6, probe_steps=3 if mode == "lp_ft" else 0)
    model, theirs = tiny_vit(), tiny_vit()
    values = {"weight_decay": config.optimizer.weight_decay, "layer_decay": config.optimizer.layer_decay}
    oracle = torch.optim.AdamW(parameter_groups(theirs, **values), fused=True)
    names, later = dict(model.named_parameters()), dict(theirs.named_parameters())

    def train(wrapped: Any, optimizer: torch.optim.Optimizer, *, progress: Progress, until: int) -> Progress:
        for step in range(progress.step, until):
            generator = torch.Generator().manual_seed(step)
            for name, parameter in names.items():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient if parameter.requires_grad else None
                later[name].grad = gradient.clone() if parameter.requires_grad else None
            for one in (optimizer, oracle):
                set_lr(one, plan.lr_at(step))
                one.step()
        return Progress(until)

    staging = Staging(config, model, plan, Accelerator(cpu=True))
    staging.enter(plan.stage_at(0))
    assert staging.run(train, Progress(), RunConsole(enabled=False)).step == 6
    for name, parameter in names.items():
        assert torch.equal(parameter, later[name]), name


def test_staging__a_stage_that_stops_early_ends_the_run(tmp_path: Path) -> None:
    """Where training stops before its stage is over, no later stage begins."""
    plan = plan_of(stages=plan_stages("lp_ft", num_steps=6, depth=2, probe_steps=3), probe_steps=3)
    staging = Staging(Config.load(config_of(tmp_path, tmp_path, "lp_ft")), tiny_vit(), plan, Accelerator(cpu=True))
    staging.enter(plan.stage_at(0))
    done = staging.run(lambda *parts, **where: Progress(2), Progress(), RunConsole(enabled=False))
    assert done == Progress(2)


def test_staging__refuses_what_it_cannot_unwrap(tmp_path: Path) -> None:
    """Stages are refused where wrapping changes the parameters for good; a single stage needs no unwrapping."""
    config = Config.load(config_of(tmp_path, tmp_path, "lp_ft"))
    sharded: Any = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"))
    plan = plan_of(stages=plan_stages("lp_ft", num_steps=6, depth=2, probe_steps=3), probe_steps=3)
    with pytest.raises(RequestError, match="tuning.mode lp_ft has stages, which FSDP does not allow; use full"):
        Staging(config, tiny_vit(), plan, sharded)
    assert len(Staging(config, tiny_vit(), plan_of(), sharded).tuned) == 1


def test_stages__rates_are_the_plans(runs: dict[str, RunResult]) -> None:
    """The rates in metrics.jsonl: a cosine of the probe from its own rate, then warm-up and cosine of fine-tuning."""
    lines = map(json.loads, (runs["lp_ft"].run_dir / "metrics.jsonl").read_text().splitlines())
    rates = [row["lr"] for row in lines if row["split"] == "train"]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.25e-2, 0.5e-3, 1e-3, 1e-3], rel=1e-9)


@pytest.mark.parametrize("mode", list(MODES))
def test_stages__resume_at_any_step_is_bit_identical(
    runs: dict[str, RunResult], pictures: Path, tmp_path: Path, mode: str
) -> None:
    """A run that was killed after any step, at a boundary too, ends byte for byte as the undisturbed one."""
    whole = runs[mode].run_dir
    for killed_after in range(1, NUM_STEPS):
        run_dir = tmp_path / f"{killed_after}"
        shutil.copytree(whole, run_dir, ignore=shutil.ignore_patterns("model", "adapter", "metrics.json", "*.parquet"))
        for step in range(killed_after + 1, NUM_STEPS + 1):
            shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}")
        finetune(config_of(pictures, run_dir, mode), resume=True)
        assert f"going on after step {killed_after}" in (run_dir / "run.log").read_text()
        last = f"checkpoints/step-{NUM_STEPS:08d}"
        names = ["metrics.jsonl", "metrics.json", "model/model.safetensors", f"{last}/SHA256SUMS"]
        for name in [*names, *(["adapter/adapter_model.safetensors"] if mode == "lora" else [])]:
            assert (run_dir / name).read_bytes() == (whole / name).read_bytes(), (killed_after, name)


def test_lora__run_leaves_an_adapter_and_a_plain_model(runs: dict[str, RunResult], pictures: Path) -> None:
    """adapter/ put by peft onto the network that the run began with, model/ opened by timm, and the result in memory
    have the same logits; model/ has timm's names alone, and only adapters and head were trained.
    """
    import timm
    from peft import PeftModel

    result = runs["lora"]
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    base = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=48, img_size=32, num_classes=3).eval()
    plain = timm.create_model(f"local-dir:{result.run_dir / 'model'}", pretrained=True).eval()
    assert set(load_file(result.run_dir / "model" / "model.safetensors")) == set(base.state_dict())
    first = {name.replace(".base_layer", ""): tensor for name, tensor in weights(result, 1).items()}
    base.load_state_dict({name: first[name] for name in base.state_dict()})
    adapted = PeftModel.from_pretrained(base, str(result.run_dir / "adapter")).eval()
    with torch.no_grad():
        ours = result.model(images)
        torch.testing.assert_close(plain(images), ours, atol=1e-5, rtol=0)
        torch.testing.assert_close(adapted(images), ours, atol=1e-5, rtol=0)
    moved = {name for step in range(1, NUM_STEPS) for name in changed(result, step)}
    assert moved == {name for name in weights(result, 1) if ".lora_" in name or name.startswith("head.")}


def test_lora__figures_are_those_of_the_exported_model(runs: dict[str, RunResult], pictures: Path) -> None:
    """What is scored is what is exported: the accuracy of model/ on the val pictures is the reported one."""
    predicted = Predictor(runs["lora"].run_dir)([pictures / "val" / name for name in ("blue", "green", "red")])
    truth = np.repeat(["blue", "green", "red"], 2)
    assert (np.array(predicted.labels) == truth).mean() == pytest.approx(runs["lora"].metrics["accuracy"])


def test_lora__layer_decay_has_several_rates(runs: dict[str, RunResult]) -> None:
    """Under LoRA the log's table of groups has another rate for each block."""
    log = (runs["lora"].run_dir / "run.log").read_text()
    rows = [line.split("groups   ")[1].split() for line in log.splitlines() if "groups   block" in line]
    assert [(row[:2], row[4]) for row in rows] == [(["block", "0"], "0.64"), (["block", "1"], "0.8")]


def test_finetune__another_optimizer_and_head_rate(pictures: Path, tmp_path: Path) -> None:
    """One of timm's optimizers trains a run, with a faster head; resuming it finds its state."""
    options = {"name": "lamb", "lr": 1e-3, "head_lr_scale": 5.0}
    config = config_of(pictures, tmp_path / "run", "gradual", optimizer=options)
    whole = finetune(config)
    assert "head x5" in (whole.run_dir / "run.log").read_text()
    assert weights(whole, 3, "optimizer")["head x5/step"] == 3
    shutil.copytree(whole.run_dir, tmp_path / "again", ignore=shutil.ignore_patterns("model", "metrics.json"))
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    again = finetune(config_of(pictures, tmp_path / "again", "gradual", optimizer=options), resume=True)
    assert torch.equal(again.model.head.weight, whole.model.head.weight)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"tuning": {"mode": "last_n", "num_blocks": 3}}, "tuning.num_blocks is 3; this network has 2 blocks"),
        ({"tuning": {"mode": "gradual", "num_stages": 4}}, "tuning.num_stages is 4; this network has 2 blocks"),
        ({"tuning": {"mode": "lp_ft", "probe_steps": 6}}, "the linear probe of 6 steps leaves nothing of the run of 6"),
        (
            {"tuning": {"mode": "lora", "lora": {"target_modules": ["query"]}}},
            "names 'query', which is no linear layer",
        ),
        (
            {"tuning": {"mode": "full", "freeze": ["layers.*"]}},
            "pattern 'layers.\\*' of tuning.freeze matches no parameter",
        ),
        ({"optimizer": {"name": "adamm"}}, "optimizer.name 'adamm' is neither adamw, sgd nor one of timm's"),
    ],
)
def test_finetune__refuses_at_the_start(pictures: Path, tmp_path: Path, sections: Any, message: str) -> None:
    """What cannot be tuned so is refused before the run's folder is made."""
    with pytest.raises(RequestError, match=message):
        finetune(config_of(pictures, tmp_path / "runs" / "one", "lp_ft", **sections))
    assert not (tmp_path / "runs" / "one").exists()


def test_finetune__lora_without_the_extra(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without peft a LoRA run ends at once with the extra's name, before a picture is read."""
    monkeypatch.setattr("vit_finetune.tuning.lora.find_spec", lambda name: None)
    config = config_of(pictures, tmp_path / "run", "lora", data={"root": str(tmp_path / "nowhere")})
    with pytest.raises(RequestError, match=r"install it with: pip install 'vit-finetune\[lora\]'"):
        finetune(config)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gradual", "lora"])
def test_stages__two_processes_are_one(runs: dict[str, RunResult], pictures: Path, tmp_path: Path, mode: str) -> None:
    """Two processes train, across every boundary and with adapters, as one: losses to 1e-5, final weights to 1e-4."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config_of(pictures, tmp_path / "two", mode)))
    done = run_module(["train", str(recipe), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    one, two = runs[mode].run_dir, tmp_path / "two"
    for split in ("train", "val"):
        single, double = (
            [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["split"] == split]
            for run in (one, two)
        )
        assert [row["step"] for row in single] == [row["step"] for row in double]
        np.testing.assert_allclose([row["loss"] for row in double], [row["loss"] for row in single], atol=1e-5)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=0, msg=name)


def test_stages__memory_is_measured_with_what_trains_most(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The micro-batch that is found at the start has to fit the last stage, not the first, which trains the head."""
    seen = []

    def find(model: torch.nn.Module, plan: TrainPlan, **options: Any) -> TrainPlan:
        seen.append(all(parameter.requires_grad for parameter in model.parameters()))
        return with_micro_batch(plan, 2)

    monkeypatch.setattr("vit_finetune.assembly.numbers.find_micro_batch", find)
    train = {"steps": NUM_STEPS, "global_batch_size": 6, "per_device_batch_size": "auto"}
    result = finetune(config_of(pictures, tmp_path / "run", "lp_ft", train=train))
    told = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert seen == [True]
    assert (told["per_device_batch_size"], told["gradient_accumulation_steps"]) == (2, 3)
    assert changed(result, 1) == {"head.weight", "head.bias"}
