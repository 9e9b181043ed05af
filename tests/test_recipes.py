"""Every shipped recipe is complete, valid and runs; the schema that editors use is the configuration's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_helpers import ROOT, make_pictures

from vit_finetune import Config, finetune
from vit_finetune.recipe import shipped_recipes

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
NAMES = {"frozen_features", "image_folder", "quickstart"}


def test_recipes__are_the_listed_ones() -> None:
    """The list above names every YAML file of recipes/, and every one of them is found by its name."""
    assert {path.stem for path in RECIPES} == NAMES
    assert set(shipped_recipes()) == NAMES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes__run_two_steps(path: Path, tmp_path: Path) -> None:
    """A recipe trains for two steps on tiny pictures with a two-block network in the place of its weights."""
    root = make_pictures(tmp_path / "pictures", train=3, val=2)
    overrides = [
        *("model.pretrained=null", "model.name=vit_tiny_patch16_224", "model.img_size=32"),
        *("model.overrides.depth=2", "model.overrides.embed_dim=48"),
        *(f"data.root={root}", "train.steps=2", "train.global_batch_size=4", f"run.dir={tmp_path / 'run'}"),
        *("schedule.warmup_steps=null", "schedule.warmup_epochs=null", "train.per_device_batch_size=auto"),
        "run.num_threads=1",
    ]
    config = Config.load(path, overrides=overrides)
    result = finetune(config)
    assert result.num_steps == (0 if config.tuning.mode == "readout" else 2)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_schema__is_the_configurations() -> None:
    """recipes/schema.json is what the configuration says of itself; the message gives the command that renews it."""
    stored = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))
    assert stored == Config.model_json_schema(), "renew it: json.dumps(Config.model_json_schema(), indent=2)"


def test_schema__describes_every_key() -> None:
    """Every key of every section has a description in the schema, so editors can show it."""
    schema = Config.model_json_schema()
    for section in schema["$defs"].values():
        for name, entry in section["properties"].items():
            assert entry.get("description"), f"{section['title']}.{name}"
