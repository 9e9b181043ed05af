"""Runs on small pictures first: which step sees which size, resumed, cached and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import make_pictures, tiny_config
from torch import Tensor
from training_helpers import plan_of

from vit_finetune import create_model, finetune, load_splits
from vit_finetune.assembly import FrozenWork, make_plan
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.finetune import RunResult
from vit_finetune.models import variant_config
from vit_finetune.models.layers import PatchEmbed
from vit_finetune.training import RunConsole
from vit_finetune.training.stages import plan_sizes

SIZES = {"progressive_sizes": [16, [24, 16]], "progressive_until": 0.75}
MODEL = {"drop_path_rate": 0.2, "patch_drop_rate": 0.25, "overrides": {"depth": 2, "embed_dim": 48, "patch_size": 8}}


def config_of(pictures: Path, run_dir: Path, **sections: Any) -> dict[str, Any]:
    """Return a run of eight steps: three at 16 pixels, three at 24 x 16, two at 32."""
    config = tiny_config(pictures, run_dir, checkpoint={"every_steps": 1, "keep_last": 99}, model=MODEL, **sections)
    config["train"] |= {**SIZES, "mixup_alpha": 0.8, "ema_decay": 0.5}
    return config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=7, val=2)


@pytest.fixture(scope="module")
def seen(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[tuple[bool, Any]]]:
    """One run, and for each forward pass whether it had a gradient, and the size of its pictures."""
    passes: list[tuple[bool, Any]] = []
    forward = PatchEmbed.forward

    def watched(self: PatchEmbed, x: Tensor) -> Tensor:
        passes.append((torch.is_grad_enabled(), tuple(x.shape[2:])))
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchEmbed, "forward", watched)
        return finetune(config_of(pictures, tmp_path_factory.mktemp("runs") / "run")), passes


def test_progressive__steps_have_their_size_and_evaluation_the_target(
    seen: tuple[RunResult, list[tuple[bool, Any]]], pictures: Path
) -> None:
    """Three micro-batches of each step have the size of the step, every scored picture has the target's; the plan and
    the log say so, and the finished network takes the target alone, with a table of its grid.
    """
    result, passes = seen
    trained = [size for has_gradient, size in passes if has_gradient]
    assert trained == [(16, 16)] * 9 + [(24, 16)] * 9 + [(32, 32)] * 6
    scored = {size for has_gradient, size in passes if not has_gradient}
    assert scored == {(32, 32)}
    log = (result.run_dir / "run.log").read_text()
    assert "sizes    16x16 to step 3, 24x16 to step 6, 32x32 to step 8; val is scored at the last" in log
    assert result.model.get_parameter("pos_embed").shape[1] == 17
    with pytest.raises(RequestError, match="images are 16 x 16 pixels, the model takes 32 x 32"):
        result.model(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("step", [2, 3, 6])
def test_progressive__resumes_bit_for_bit_across_a_boundary(
    seen: tuple[RunResult, list[tuple[bool, Any]]], pictures: Path, tmp_path: Path, step: int
) -> None:
    """Ended before, at and after a boundary, a run goes on to the same journal and checkpoint, byte for byte."""
    whole, resumed = seen[0].run_dir, tmp_path / "resumed"
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("model", "metrics.json", "predictions.parquet"))
    for later in range(step + 1, 9):
        shutil.rmtree(resumed / "checkpoints" / f"step-{later:08d}")
    finetune(config_of(pictures, resumed), resume=True)
    assert f"resume: going on after step {step}" in (resumed / "run.log").read_text()
    for name in ("metrics.jsonl", "checkpoints/step-00000008/SHA256SUMS", "model/model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def test_progressive__kept_pictures_change_nothing(
    seen: tuple[RunResult, list[tuple[bool, Any]]], pictures: Path, tmp_path: Path
) -> None:
    """Decoded pictures from the cache, varied by worker processes, give the same run at every size."""
    data = {"root": str(pictures), "cache": "decoded", "cache_dir": str(tmp_path / "cache"), "num_workers": 1}
    again = finetune(config_of(pictures, tmp_path / "cached", data={**config_of(pictures, tmp_path)["data"], **data}))
    assert "train pictures decoded in" in (again.run_dir / "run.log").read_text()
    assert (again.run_dir / "metrics.jsonl").read_bytes() == (seen[0].run_dir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"budget": "1m", "steps": None}}, "does not work with train.budget, some of whose rungs"),
        ({"train": {"compile": True}}, "does not work with train.compile, which compiles"),
        ({"tuning": {"mode": "last_n", "num_blocks": 1, "cache_prefix": 1}}, "does not work with tuning.cache_prefix"),
        ({"tuning": {"mode": "readout"}}, "train.progressive_sizes does nothing with tuning.mode readout"),
        ({"train": {"progressive_sizes": []}}, "train.progressive_until does nothing without train.progressive_sizes"),
        ({"train": {"progressive_until": 1.0}}, "train.progressive_until: got 1.0; input should be less than 1"),
    ],
)
def test_progressive__config_refuses(sections: dict[str, dict[str, Any]], message: str) -> None:
    """What keeps, compiles or times pictures of one size is refused when the recipe is read, in one line."""
    config = tiny_config(Path("photos"), Path("run"), train=SIZES)
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    with pytest.raises(RequestError, match=message):
        Config.load(config)


@pytest.mark.parametrize(
    ("name", "device", "run", "message"),
    [
        ("beit_base_patch16_224", "cpu", {}, "which a ViT with relative positions has not; leave it out"),
        ("vit_tiny_patch16_224", "cuda", {"deterministic": True}, "leave it or run.deterministic out"),
        ("vit_tiny_patch14_224", "cpu", {}, "patches of 14x14 have to divide it"),
    ],
)
def test_progressive__plan_refuses(pictures: Path, name: str, device: str, run: dict[str, Any], message: str) -> None:
    """A network with a table for one grid, a GPU that has to repeat, and sizes that its patches do not divide."""
    patch = 14 if "patch14" in name else 16
    network = variant_config(name.replace("patch14", "patch16")).updated({"patch_size": (patch, patch)})
    config = Config.load(tiny_config(pictures, Path("run"), train={"progressive_sizes": [112]}, run=run))
    if patch == 14:
        config = Config.load(config, overrides=["train.progressive_sizes=[100]"])
    accelerator: Any = SimpleNamespace(num_processes=1, mixed_precision="no", device=SimpleNamespace(type=device))
    with pytest.raises(RequestError, match=message):
        make_plan(config, load_splits(root=pictures), accelerator, network=network)


@pytest.mark.parametrize(
    ("name", "device", "sections", "sizes"),
    [
        ("vit_tiny_patch16_224", "cpu", {}, [128, 160, 224]),
        ("vit_tiny_patch16_224", "cuda", {}, [128, 160, 224]),
        ("vit_tiny_patch16_224", "cuda", {"run": {"deterministic": True}}, []),
        ("vit_tiny_patch16_224", "cpu", {"train": {"compile": True}}, []),
        ("vit_tiny_patch16_224", "cpu", {"tuning": {"mode": "lora"}}, []),
        ("vit_tiny_patch16_224", "cpu", {"tuning": {"mode": "last_n", "num_blocks": 1, "cache_prefix": 1}}, []),
        ("beit_base_patch16_224", "cpu", {}, []),
    ],
)
def test_progressive__auto_yields(
    pictures: Path, name: str, device: str, sections: dict[str, dict[str, Any]], sizes: list[int]
) -> None:
    """Where sizes asked for would be refused, auto keeps to one; so it does where less than the network trains."""
    config = tiny_config(pictures, Path("run"), train={"progressive_sizes": "auto"})
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    accelerator: Any = SimpleNamespace(num_processes=1, mixed_precision="no", device=SimpleNamespace(type=device))
    network, splits = variant_config(name), load_splits(root=pictures)
    plan = make_plan(Config.load(config), splits, accelerator, network=network)
    assert [size.height for size in plan.sizes] == sizes


def test_progressive__auto_keeps_no_prefix(pictures: Path) -> None:
    """tuning.cache_prefix auto keeps a view where nothing varies, and none where the size does."""
    still = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0, "color_jitter": 0, "auto_augment": None, "random_erasing": 0}
    tuning = {"mode": "last_n", "num_blocks": 1, "cache_prefix": "auto"}
    config = Config.load(tiny_config(pictures, Path("run"), tuning=tuning, data={"root": str(pictures), **still}))
    kept = []
    for sizes in ((), plan_sizes([(16, 16)], until=0.5, num_steps=6, target=(32, 32), patch_size=(16, 16))):
        feeder: Any = SimpleNamespace(plan=plan_of(sizes=sizes))
        console, model = RunConsole(enabled=False), create_model("vit_tiny_patch16_224", depth=1)
        kept.append(FrozenWork(config, model, [1], feeder, console)._num_views(feeder.plan.stages[0]))
    assert kept == [1, 0]
