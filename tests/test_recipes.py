"""Every shipped recipe is complete, valid and runs; the schema that editors use is the configuration's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from run_helpers import ROOT, TINY, make_pictures

from vit_finetune import Config, finetune
from vit_finetune.shipped import shipped_recipes

RECIPES = {
    path.relative_to(ROOT / "recipes").with_suffix("").as_posix(): path for path in ROOT.glob("recipes/**/*.yaml")
}
NAMES = {
    *("augreg", "clip_finetune", "deit3_384", "dinov2_linear", "few_shot", "frozen_features", "image_folder"),
    *("linear_probe", "lora", "lp_ft", "mae_finetune", "quickstart", "vit_paper"),
    *("vit_paper/cifar10", "vit_paper/cifar100", "vit_paper/flowers", "vit_paper/imagenet", "vit_paper/imagenet_512"),
    *("vit_paper/pets", "vit_paper/vtab"),
}
# What two steps on tiny pictures need beyond the common overrides.
ALSO = {
    "lp_ft": ["tuning.probe_steps=1"],
    "dinov2_linear": ["readout.cache_dir={tmp_path}/cache", "readout.num_views=2"],
    "few_shot": ["readout.cache_dir={tmp_path}/cache", "readout.num_views=2", "readout.num_folds=2"],
    "frozen_features": ["readout.cache_dir={tmp_path}/cache", "readout.num_folds=2"],
}


def test_recipes__are_the_listed_ones() -> None:
    """The list above names every YAML file of recipes/, and every one of them is found by its name."""
    assert set(RECIPES) == NAMES
    assert len(NAMES) == len(list((ROOT / "recipes").rglob("*.yaml"))) == 20
    assert set(shipped_recipes()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_recipes__are_valid(name: str) -> None:
    """A recipe is a whole configuration as it ships, and its schema line leads to the schema."""
    path = RECIPES[name]
    assert Config.load(name) == Config.load(path)
    assert (
        path.parent / path.read_text().split("$schema=")[1].split("\n")[0]
    ).resolve() == ROOT / "recipes/schema.json"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_recipes__head_comment_is_complete(name: str) -> None:
    """It says in one line what the recipe is, how to start it, one override, and where figures come from."""
    lines = RECIPES[name].read_text().splitlines()
    head = [line.removeprefix("#").strip() for line in lines[1:] if line.startswith("#")]
    assert head[0].endswith(".")
    commands = [line for line in head if line.startswith("vit-finetune train ")]
    if name == "quickstart":  # starts by its script, and is measured in README.md
        return
    if name != "image_folder":  # which is also what a folder alone means
        assert commands[0].split()[2] == name, f"the first command starts {commands[0]}"
    text = " ".join(head)
    assert re.search(r"\w+\.\w+=\S+", text.replace(commands[0], "")), "no override example"
    if name not in {"image_folder", "frozen_features"}:  # ours: their figures are measured
        assert "Published" in text or "recipes/README.md" in text, "no figure, and no word on where there is one"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_recipes__run_two_steps(name: str, tmp_path: Path) -> None:
    """A recipe trains for two steps on tiny pictures with a two-block network in the place of its weights."""
    root = make_pictures(tmp_path / "pictures", train=3, val=2)
    overrides = [
        *(f"data.root={root}", "data.val_split=val", "data.test_split=null", f"run.dir={tmp_path / 'run'}"),
        *("train.steps=2", "train.global_batch_size=4", "train.per_device_batch_size=auto"),
        *("schedule.warmup_steps=null", "schedule.warmup_epochs=null"),
    ]
    also = [text.format(tmp_path=tmp_path) for text in ALSO.get(name, [])]
    config = Config.load(RECIPES[name], overrides=[*TINY, *overrides, *also])
    result = finetune(config)
    assert result.num_steps == (0 if config.tuning.mode == "readout" else 2)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_presets__say_only_what_differs() -> None:
    """A preset repeats nothing of the recipe that it extends."""
    for name, path in RECIPES.items():
        values = yaml.safe_load(path.read_text())
        if "extends" not in values:
            continue
        base = Config.load(values.pop("extends")).model_dump(mode="json")
        for section, keys in values.items():
            for key, value in keys.items():
                assert base[section][key] != value, f"{name}: {section}.{key} is {value} in the recipe below, too"


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


def test_measure_settings__fit_the_recipes() -> None:
    """What measure.json changes are options of recipes that exist, and every recipe that is no preset is measured."""
    settings = json.loads((ROOT / "recipes" / "measure.json").read_text())
    assert set(settings["seeds"]) <= set(settings["recipes"])
    assert set(settings["recipes"]) == {name for name in NAMES if "/" not in name} - {"quickstart"}
    for name, changes in settings["recipes"].items():
        Config.load(name, overrides=[*settings["common"], *changes])
