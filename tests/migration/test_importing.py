"""Arguments of other trainers become recipes: what goes over is right, and what does not is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import run_module

from vit_finetune import Config, RequestError
from vit_finetune.migration import ORIGINS, Imported, import_arguments, recipe_text

HERE = Path(__file__).parent
# Written by timm 1.0.31's train.py itself: as it comes, and for a fine-tuning as DeiT III's.
TIMM_DEFAULTS, TIMM_FINETUNE = HERE / "timm_defaults.yaml", HERE / "timm_finetune.yaml"


def from_timm(path: Path, tmp_path: Path, num_processes: int = 1, **changed: Any) -> Imported:
    """Import a file of timm's with some values changed."""
    file = tmp_path / "args.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changed}))
    return import_arguments(file, origin="timm", num_processes=num_processes)


def trainer_file(tmp_path: Path, **options: Any) -> Path:
    """Write the file of transformers' own TrainingArguments."""
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "training_args.json"
    given = {"output_dir": str(tmp_path / "out"), "report_to": "none", "use_cpu": True, **options}
    file.write_text(transformers.TrainingArguments(**given).to_json_string())
    return file


def config_keys() -> set[str]:
    """Return every key of a recipe."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    return {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}


@pytest.mark.parametrize("origin", ORIGINS)
def test_vocabulary__names_keys_that_exist_and_each_option_once(origin: str) -> None:
    """Every key that a table names is a key of a recipe, and no option stands in two of its kinds."""
    vocabulary = ORIGINS[origin][0]
    kinds = [set(vocabulary.copied), set(vocabulary.ruled), set(vocabulary.left)]
    assert len(set().union(*kinds)) == sum(map(len, kinds))
    named = {
        *vocabulary.copied.values(),
        *(key for rule in vocabulary.ruled.values() for key in rule.keys.split(", ") if not key.endswith(".*")),
        *(row.near for row in vocabulary.left.values()),
    } - {""}
    assert named <= config_keys(), named - config_keys()


def test_timm__every_option_of_the_script_is_known() -> None:
    """The file that train.py writes holds no option that the table lacks, and the table none that it lacks."""
    vocabulary = ORIGINS["timm"][0]
    theirs = set(yaml.safe_load(TIMM_DEFAULTS.read_text()))
    assert theirs == {*vocabulary.copied, *vocabulary.ruled, *vocabulary.left}


def test_timm__defaults_ask_for_nothing_without_a_counterpart(tmp_path: Path) -> None:
    """At its defaults train.py asks for nothing that is left out; the pictures are to be filled in."""
    imported = import_arguments(TIMM_DEFAULTS, origin="timm")
    assert imported.notes == ()
    assert imported.missing == ("data.root: PICTURES is a placeholder",)
    assert imported.recipe["model"]["pretrained"] is None
    assert imported.recipe["optimizer"] == {
        "weight_decay": 2e-5, "momentum": 0.9, "name": "sgd", "nesterov": True, "lr": 0.1 * 128 / 256
    }  # fmt: skip


def test_timm__a_finetuning_goes_over(tmp_path: Path) -> None:
    """Weights, size, rate, decay, mixing, precision and batch are those of the file; the rest is named."""
    config = Config.load(import_arguments(TIMM_FINETUNE, origin="timm", num_processes=8).recipe)
    assert (config.model.name, config.model.pretrained) == (
        "vit_base_patch16_224", "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k"
    )  # fmt: skip
    assert (config.model.img_size, config.model.head_init, config.model.drop_path_rate) == ((384, 384), "zeros", 0.1)
    assert (config.train.per_device_batch_size, config.train.global_batch_size) == (64, 64 * 2 * 8)
    assert (config.optimizer.lr, config.optimizer.layer_decay, config.train.ema_decay) == (5e-5, 0.75, 0.9998)
    assert (config.train.mixed_precision, config.train.max_grad_norm) == ("bf16", 1.0)
    assert (config.data.root, config.data.val_split, config.data.color_jitter) == ("photos", "val", 0.0)
    named = {note.name for note in import_arguments(TIMM_FINETUNE, origin="timm").notes}
    assert named == {"aa", "remode", "mixup_mode", "min_lr"}


def test_timm__the_rate_is_scaled_as_train_py_does(tmp_path: Path) -> None:
    """Without lr, the base rate is scaled by the global batch: linearly, by the root for Adam's kin."""
    assert from_timm(TIMM_DEFAULTS, tmp_path, num_processes=4).recipe["optimizer"]["lr"] == 0.1 * 512 / 256
    adam = from_timm(TIMM_DEFAULTS, tmp_path, num_processes=8, opt="adamw", lr_base=1e-3)
    assert adam.recipe["optimizer"]["lr"] == pytest.approx(1e-3 * (1024 / 256) ** 0.5)


@pytest.mark.parametrize(
    ("changed", "section", "expected"),
    [
        ({"dataset": "hfds/food101"}, "data", {"source": "food101"}),
        ({"dataset": "hfids/food101"}, "data", {"source": "food101", "streaming": True}),
        ({"dataset": "wds/mine", "data_dir": "shards"}, "data", {"source": "shards"}),
        ({"val_split": ""}, "data", {"val_split": None}),
        ({"sched": "poly", "decay_rate": 1.0}, "schedule", {"name": "linear"}),
        ({"opt": "momentum"}, "optimizer", {"name": "sgd"}),
        ({"model_kwargs": {"patch_drop_rate": 0.5, "reg_tokens": 4}}, "model",
         {"patch_drop_rate": 0.5, "overrides": {"reg_tokens": 4}}),
        ({"input_size": [1, 96, 160]}, "model", {"in_chans": 1, "img_size": [96, 160]}),
        ({"pretrained_path": "w.safetensors"}, "model", {"pretrained": "w.safetensors"}),
        ({"no_aug": True}, "data", {"hflip": 0.0, "scale": [1.0, 1.0], "color_jitter": 0.0}),
        ({"output": "out", "experiment": "a"}, "run", {"dir": "out/a"}),
        ({"recovery_interval": 100, "grad_accum_steps": 4}, "checkpoint", {"every_steps": 25}),
    ],
)  # fmt: skip
def test_timm__options_that_are_ruled(tmp_path: Path, changed: Any, section: str, expected: Any) -> None:
    """An option that is more than a copy becomes the keys that the table says."""
    recipe = from_timm(TIMM_DEFAULTS, tmp_path, **changed).recipe
    assert expected.items() <= recipe[section].items()


@pytest.mark.parametrize(
    ("name", "value"),
    [("kd_model_name", "x"), ("sched", "tanh"), ("clip_mode", "agc"), ("bce_loss", True), ("warmup_lr", 1e-6),
     ("gp", "avgmax"), ("aa", "augmix-m5"), ("brand_new", 3), ("head_init_scale", 0.001), ("eval_metric", "f1")],
)  # fmt: skip
def test_timm__what_has_no_counterpart_is_named(tmp_path: Path, name: str, value: Any) -> None:
    """An option that asks for what is not here is named with its value and the reason."""
    imported = from_timm(
        TIMM_DEFAULTS, tmp_path, **{name: value, "clip_grad": 1.0} if name == "clip_mode" else {name: value}
    )
    (note,) = [note for note in imported.notes if note.name == name]
    assert note.value == value
    assert note.reason


def test_hf__every_option_of_the_installed_trainer_is_known(tmp_path: Path) -> None:
    """The JSON that TrainingArguments writes at its defaults leaves nothing to name but the placeholders."""
    imported = import_arguments(trainer_file(tmp_path), origin="hf")
    assert imported.notes == ()
    assert [text.split(":")[0] for text in imported.missing] == ["model.pretrained", "data.root"]


def test_hf__a_finetuning_goes_over(tmp_path: Path) -> None:
    """Rate, schedule, batch, clock, evaluation and seed are those of the file."""
    file = trainer_file(
        tmp_path, learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=0.1, num_train_epochs=4,
        per_device_train_batch_size=16, gradient_accumulation_steps=2, weight_decay=0.01, adam_beta2=0.98,
        eval_strategy="steps", eval_steps=50, save_steps=100, save_total_limit=2, label_smoothing_factor=0.1, seed=7,
        metric_for_best_model="eval_accuracy", max_grad_norm=0.0, fp16_full_eval=True,
    )  # fmt: skip
    imported = import_arguments(
        file, origin="hf", num_processes=2, overrides=["model.pretrained=demo", "data.root=photos"]
    )
    config = Config.load(imported.recipe)
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.weight_decay) == (2e-4, (0.9, 0.98), 0.01)
    assert (config.schedule.name, config.schedule.warmup_epochs, config.train.epochs) == ("cosine", 0.4, 4)
    assert (config.train.global_batch_size, config.train.max_grad_norm) == (64, None)
    assert (config.evaluation.every_steps, config.evaluation.metric) == (50, "accuracy")
    assert (config.checkpoint.every_steps, config.checkpoint.keep_last, config.run.seed) == (100, 2, 7)
    assert imported.missing == ()
    assert [note.name for note in imported.notes] == ["fp16_full_eval"]


def test_hf__the_examples_own_options_go_over(tmp_path: Path) -> None:
    """Model and folders of run_image_classification.py, which may stand in the same file, are read, too."""
    file = trainer_file(tmp_path, max_steps=200, warmup_steps=20)
    values = json.loads(file.read_text())
    values |= {"model_name_or_path": "google/vit-base-patch16-224-in21k", "train_dir": "p/training"}
    values |= {"validation_dir": "p/held_out", "ignore_mismatched_sizes": True}
    file.write_text(json.dumps(values))
    recipe = import_arguments(file, origin="hf").recipe
    assert recipe["model"]["pretrained"] == "hf-hub:google/vit-base-patch16-224-in21k"
    assert {"root": "p", "train_split": "training", "val_split": "held_out"}.items() <= recipe["data"].items()
    assert recipe["train"]["steps"] == 200
    assert recipe["schedule"] == {"name": "linear", "warmup_steps": 20}


def test_text__the_recipe_reads_back_and_carries_what_was_left_out(tmp_path: Path) -> None:
    """The written recipe loads as the configuration that was made, its head names what did not go over."""
    imported = import_arguments(TIMM_FINETUNE, origin="timm")
    file = tmp_path / "mine.yaml"
    file.write_text(recipe_text(imported, source="args.yaml"))
    assert Config.load(file) == Config.load(imported.recipe)
    assert "#   min_lr: 1e-06  cosine and linear end at 0; nearest: schedule.name\n" in file.read_text()


@pytest.mark.parametrize(
    ("text", "origin", "message"),
    [
        ("a: [", "timm", "neither YAML nor JSON"),
        ("- 1", "timm", "holds no options of timm's train.py"),
        ("learning_rate: 1", "timm", "is it the file of another trainer"),
        ("model: vit_tiny_patch16_224\nbatch_size: many", "timm", "is not as timm's train.py writes it"),
        ("model: resnet50", "timm", "unknown model 'resnet50'"),
        ("model: vit_tiny_patch16_224", "jax", "--from 'jax' is not one of timm, hf"),
        ("model: vit_tiny_patch16_224\nmixup: 0.8\nbatch_size: 3", "timm", "is odd"),
    ],
)
def test_import__refusals(tmp_path: Path, text: str, origin: str, message: str) -> None:
    """A file that cannot be used is one clear line."""
    file = tmp_path / "args.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        import_arguments(file, origin=origin)
    with pytest.raises(RequestError, match="cannot read"):
        import_arguments(tmp_path / "none.yaml", origin="timm")


def test_cli__writes_the_recipe_and_says_what_was_left(tmp_path: Path) -> None:
    """The verb writes a recipe with overrides, names the rest on stderr, and replaces nothing unasked."""
    output = tmp_path / "mine.yaml"
    command = [
        "recipes",
        "import",
        str(TIMM_FINETUNE),
        "data.root=elsewhere",
        "--from",
        "timm",
        "--output",
        str(output),
    ]
    done = run_module(command)
    assert done.returncode == 0, done.stderr
    assert "min_lr" in done.stderr
    assert Config.load(output).data.root == "elsewhere"
    again = run_module(command)
    assert again.returncode == 2
    assert "exists already" in again.stderr
