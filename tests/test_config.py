"""The configuration: every mistake in its exact words, overrides, YAML both ways, documentation of every field."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config, DataConfig

LEAST: dict[str, dict[str, Any]] = {
    "model": {"pretrained": None, "name": "vit_tiny_patch16_224"},
    "data": {"root": "photos"},
    "train": {"epochs": 5},
}


def least(**sections: Any) -> dict[str, Any]:
    """Return the smallest configuration, with keys laid over its sections; None takes a section away."""
    values: dict[str, Any] = copy.deepcopy(LEAST)
    for section, keys in sections.items():
        if keys is None:
            del values[section]
        else:
            values[section] = {**values.get(section, {}), **keys}
    return values


def mistakes(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(RequestError) as error:
        Config.load(values, overrides=overrides)
    assert error.value.exit_code == 2
    return str(error.value)


PRETRAINED = (
    "Where the weights come from: a file or folder, `hf-hub:owner/name`, `timm:name.tag`, `demo` (the quickstart's), "
    "or null for random weights. No default, so that nothing is random by accident."
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        # keys
        (least(train={"epoch": 5}), "train.epoch: no such key; did you mean 'epochs'?"),
        (least(train={"batch-size": 5}), "train.batch-size: no such key; did you mean 'global_batch_size'?"),
        (
            least(tuning={"zzz": 1}),
            "tuning.zzz: no such key; known are mode, num_blocks, num_stages, probe_steps, probe_epochs, probe_lr, "
            "lora, cache_prefix, train, freeze",
        ),
        (least(trian={}), "trian: no such key; did you mean 'train'?"),
        ({**least(), "model": {}}, f"model.pretrained: is required ({PRETRAINED})"),
        (least(train=None), "train: is required"),
        # sections that contradict themselves
        (least(train={"steps": 3}), "train: give exactly one of train.epochs, train.steps and train.budget"),
        (
            {**least(), "train": {"budget": 600}},
            "train.budget: a duration is hours, minutes and seconds above 0, such as 10m, 90s or 1h30m; got '600'",
        ),
        ({**least(), "train": {}}, "train: give exactly one of train.epochs, train.steps and train.budget"),
        (
            {**least(), "data": {}},
            "data: give exactly one of data.root (a folder) and data.source (a data set)",
        ),
        (
            least(data={"source": "beans"}),
            "data: give exactly one of data.root (a folder) and data.source (a data set)",
        ),
        (
            least(data={"scale": [0.9, 0.5]}),
            "data: data.scale is [0.9, 0.5]; give [least, most] with 0 < least <= most",
        ),
        (
            least(data={"scale": [0, 0.5]}),
            "data: data.scale is [0.0, 0.5]; give [least, most] with 0 < least <= most",
        ),
        (
            {**least(), "model": {"pretrained": None}},
            "model: random weights (pretrained: null) need model.name, one of `vit-finetune models`",
        ),
        (
            least(tuning={"mode": "last_n"}),
            "tuning: tuning.num_blocks and tuning.mode: last_n go together; give both or neither",
        ),
        (
            least(tuning={"num_blocks": 2}),
            "tuning: tuning.num_blocks and tuning.mode: last_n go together; give both or neither",
        ),
        (
            least(train={"max_memory": "6GB", "per_device_batch_size": 4}),
            "train: train.max_memory finds the micro-batch; give it or train.per_device_batch_size, not both",
        ),
        (
            least(train={"max_memory": "6 gigs"}),
            "train: train.max_memory='6 gigs' is no size; write a whole number and KB, MB or GB, such as 5GB",
        ),
        (
            least(schedule={"warmup_steps": 1, "warmup_epochs": 1}),
            "schedule: give schedule.warmup_steps or schedule.warmup_epochs, not both",
        ),
        (
            least(checkpoint={"every_steps": 1, "every_epochs": 1}),
            "checkpoint: give checkpoint.every_steps or checkpoint.every_epochs, not both",
        ),
        (
            least(evaluation={"every_steps": 1, "every_epochs": 1}),
            "evaluation: give evaluation.every_steps or evaluation.every_epochs, not both",
        ),
        # types: nothing is converted silently
        (least(train={"epochs": True}), "train.epochs: got True; input should be a valid number"),
        (least(train={"epochs": "5"}), "train.epochs: got '5'; input should be a valid number"),
        (least(run={"seed": True}), "run.seed: got True; input should be a valid integer"),
        (least(run={"seed": 1.5}), "run.seed: got 1.5; input should be a valid integer"),
        (least(train={"compile": "yes"}), "train.compile: got 'yes'; input should be a valid boolean"),
        (least(data={"root": 5}), "data.root: got 5; input should be a valid string"),
        (least(data={"scale": 0.5}), "data.scale: got 0.5; input should be a valid list"),
        (least(data={"scale": [0.5]}), "data.scale.1: is required"),
        (least(data={"mean": [0.5, "x", 0.5]}), "data.mean.1: got 'x'; input should be a valid number"),
        (least(run={"trackers": "wandb"}), "run.trackers: got 'wandb'; input should be a valid list"),
        ({**least(), "tuning": None}, "tuning: got None; input should be a valid mapping of keys"),
        # unions are one mistake, not one per branch
        (
            least(train={"per_device_batch_size": "many"}),
            "train.per_device_batch_size: got 'many'; input should be a valid integer or 'auto'",
        ),
        (
            least(train={"per_device_batch_size": 0}),
            "train.per_device_batch_size: got 0; input should be greater than or equal to 1 or 'auto'",
        ),
        (
            least(model={"head_init": -0.1}),
            "model.head_init: got -0.1; input should be 'zeros', 'trunc_normal' or 'pretrained' or greater than 0",
        ),
        (least(model={"img_size": "big"}), "model.img_size: got 'big'; input should be a valid list"),
        (
            least(model={"img_size": [1, 2, 3]}),
            "model.img_size: got [1, 2, 3]; list should have at most 2 items, not 3",
        ),
        # ranges
        (least(data={"hflip": 1.5}), "data.hflip: got 1.5; input should be less than or equal to 1"),
        (least(model={"drop_path_rate": 1.0}), "model.drop_path_rate: got 1.0; input should be less than 1"),
        (least(optimizer={"lr": 0}), "optimizer.lr: got 0; input should be greater than 0"),
        (
            least(optimizer={"weight_decay": float("inf")}),
            "optimizer.weight_decay: got inf; input should be a finite number",
        ),
        (
            least(schedule={"warmup_epochs": float("nan")}),
            "schedule.warmup_epochs: got nan; input should be a finite number",
        ),
        (
            least(tuning={"mode": "adapter"}),
            "tuning.mode: got 'adapter'; input should be 'full', 'linear_probe', 'last_n', 'bias', 'norm', "
            "'attention', 'lora', 'lp_ft', 'gradual' or 'readout'",
        ),
        (
            least(tuning={"mode": "gradual"}),
            "tuning: tuning.num_stages and tuning.mode: gradual go together; give both or neither",
        ),
        (
            least(tuning={"mode": "full", "lora": {"rank": 4}}),
            "tuning: tuning.lora and tuning.mode: lora go together; give both or neither",
        ),
        (least(tuning={"mode": "lora", "lora": {"rnk": 4}}), "tuning.lora.rnk: no such key; did you mean 'rank'?"),
        (
            least(tuning={"mode": "lora", "lora": {"rank": 0}}),
            "tuning.lora.rank: got 0; input should be greater than or equal to 1",
        ),
        (
            least(tuning={"mode": "lora", "lora": {"target_modules": []}}),
            "tuning.lora.target_modules: got []; list should have at least 1 item, not 0",
        ),
        (
            least(tuning={"mode": "lp_ft"}),
            "tuning: tuning.mode lp_ft needs exactly one of tuning.probe_steps and tuning.probe_epochs",
        ),
        (
            least(tuning={"mode": "lp_ft", "probe_steps": 3, "probe_epochs": 0.5}),
            "tuning: tuning.mode lp_ft needs exactly one of tuning.probe_steps and tuning.probe_epochs",
        ),
        (
            least(tuning={"mode": "gradual", "num_stages": 3, "probe_lr": 0.1}),
            "tuning: tuning.probe_lr is for tuning.mode: lp_ft; the mode is gradual",
        ),
    ],
)
def test_config__mistake(values: dict[str, Any], message: str) -> None:
    """A mistake is told by its path, with what was got, what is allowed, and the closest known key."""
    assert mistakes(values) == message


def test_config__several_mistakes_at_once() -> None:
    """All mistakes of all sections are listed in one message, a line each."""
    values = least(train={"steps": 3}, data={"hflip": 2, "rooot": "x"}, optimizer={"lr": "big"})
    assert mistakes(values).splitlines() == [
        "4 mistakes in the configuration:",
        "  data.hflip: got 2; input should be less than or equal to 1",
        "  data.rooot: no such key; did you mean 'root'?",
        "  train: give exactly one of train.epochs, train.steps and train.budget",
        "  optimizer.lr: got 'big'; input should be a valid number",
    ]


def test_config__a_section_alone() -> None:
    """A section that is checked alone tells its keys without the section's name before them."""
    with pytest.raises(RequestError) as error:
        DataConfig.parse({"root": "x", "hflipp": 1})
    assert str(error.value) == "hflipp: no such key; did you mean 'hflip' or 'vflip'?"


def test_config__sizes() -> None:
    """A picture size is one number or [height, width], and becomes a pair; null stays null."""
    assert Config.load(least(model={"img_size": 224})).model.img_size == (224, 224)
    assert Config.load(least(model={"img_size": [192, 256]})).model.img_size == (192, 256)
    assert Config.load(least()).model.img_size is None


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.steps=7", "train", "steps", 7),
        ("train.epochs=0.5", "train", "epochs", 0.5),
        ("optimizer.lr=5e-4", "optimizer", "lr", 5e-4),
        ("optimizer.lr=1E-5", "optimizer", "lr", 1e-5),
        ("train.mixed_precision=no", "train", "mixed_precision", "no"),
        ("model.pretrained=null", "model", "pretrained", None),
        ("model.pretrained=", "model", "pretrained", None),
        ("data.scale=[0.5, 1]", "data", "scale", (0.5, 1.0)),
        ("run.dir=runs/a=b", "run", "dir", "runs/a=b"),
        ("model.overrides={depth: 2}", "model", "overrides", {"depth": 2}),
        ("model.overrides.depth=2", "model", "overrides", {"depth": 2}),
        ("train.compile=true", "train", "compile", True),
    ],
)
def test_override__value(override: str, section: str, key: str, value: object) -> None:
    """An override is read as YAML and lands at its key, also where the source has no such section."""
    got = getattr(getattr(Config.load(least(), overrides=[override]), section), key)
    assert got == value
    assert type(got) is type(value)


def test_override__one_clock_replaces_the_other() -> None:
    """train.steps on the command line replaces the recipe's epochs, and the other way round; the last one wins."""
    train = Config.load(least(), overrides=["train.steps=7"]).train
    assert (train.steps, train.epochs) == (7, None)
    train = Config.load(least(), overrides=["train.steps=7", "train.epochs=2"]).train
    assert (train.steps, train.epochs) == (None, 2.0)
    train = Config.load(least(), overrides=["train.steps=7", "train.budget=90s"]).train
    assert (train.steps, train.epochs, train.budget) == (None, None, "90s")
    train = Config.load({**least(), "train": {"budget": "10m"}}, overrides=["train.epochs=2"]).train
    assert (train.epochs, train.budget) == (2.0, None)


def test_override__nested_keeps_its_neighbours() -> None:
    """A nested override changes one key of a mapping and keeps the others."""
    values = least(model={"overrides": {"depth": 2, "embed_dim": 48}})
    model = Config.load(values, overrides=["model.overrides.depth=4"]).model
    assert model.overrides == {"depth": 4, "embed_dim": 48}


def test_override__leaves_the_source_as_it_was() -> None:
    """Neither a mapping nor a Config that overrides are laid over is changed."""
    values = least(model={"overrides": {"depth": 2}})
    before = copy.deepcopy(values)
    config = Config.load(values)
    dumped = config.model_dump()
    for source in (values, config):
        assert Config.load(source, overrides=["model.overrides.depth=9"]).model.overrides == {"depth": 9}
    assert values == before
    assert config.model_dump() == dumped


@pytest.mark.parametrize("text", ["epochs=5", "train.epochs", "train", "=5", ".epochs=5", "train.=5", "train..x=5", ""])
def test_override__malformed(text: str) -> None:
    """What is no section.key=value is refused with the form and an example."""
    message = mistakes(least(), text)
    assert message == f"override {text!r} is not of the form section.key=value, such as train.epochs=5"


def test_override__other_mistakes() -> None:
    """A value that is no YAML, a key below a plain value and an unknown key are told in the override's words."""
    assert mistakes(least(), "run.seed=[1") == "the value in 'run.seed=[1' is not readable YAML"
    assert mistakes(least(), "run.seed=1", "run.seed.x=5") == "cannot lay 'run.seed.x=5' over 1, which holds no keys"
    assert mistakes(least(), "run.sed=5") == "run.sed: no such key; did you mean 'seed'?"


FULL = least(
    model={"img_size": [192, 256], "head_init": 0.02, "overrides": {"depth": 2, "mlp_ratio": 3.0}},
    data={"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3], "num_workers": 2, "scale": [0.5, 1.0]},
    optimizer={"lr": 3e-5, "betas": [0.9, 0.95]},
    train={"mixed_precision": "no", "per_device_batch_size": 4, "max_grad_norm": None},
    tuning={"mode": "last_n", "num_blocks": 2},
    run={"trackers": ["tensorboard"], "seed": 2**63 - 1, "dir": "1e3"},
)


@pytest.mark.parametrize("values", [least(), FULL], ids=["least", "full"])
def test_yaml__round_trip(tmp_path: Path, values: dict[str, Any]) -> None:
    """A configuration written as YAML reads back equal, by us and by any reader of YAML 1.1, and writes the same."""
    config = Config.load(values)
    text = config.to_yaml()
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    again = Config.load(tmp_path / "a.yaml")
    assert again == config
    assert again.to_yaml() == text
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    assert Config.load(config) == config


def test_yaml__words_people_write(tmp_path: Path) -> None:
    """`no` is the precision of that name and 5e-4 a number, as in YAML 1.2."""
    (tmp_path / "a.yaml").write_text(
        "model: {pretrained: null, name: vit_tiny_patch16_224}\ndata: {root: photos}\n"
        "train: {epochs: 1e1, mixed_precision: no}\noptimizer: {lr: 5e-4}\n"
    )
    config = Config.load(tmp_path / "a.yaml")
    assert (config.train.mixed_precision, config.train.epochs, config.optimizer.lr) == ("no", 10.0, 0.0005)


def test_config__is_frozen() -> None:
    """No field of a configuration can be set after it was read."""
    config = Config.load(least())
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.train = config.train  # type: ignore[misc]


def sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        yield name, field.annotation


def test_config__every_field_is_described() -> None:
    """Every field of every section carries its documentation, which is what messages, help and editors show."""
    names = {name for name, _ in sections(Config)}
    assert names == {
        *("model", "data", "tuning", "readout", "train", "optimizer", "schedule", "evaluation", "checkpoint", "run"),
    }
    silent = [
        f"{name}.{key}"
        for name, section in sections(Config)
        for key, field in section.model_fields.items()
        if not (field.description or "").rstrip().endswith(".")
    ]
    assert not silent


def test_config__lora_says_its_defaults() -> None:
    """A recipe that says only `mode: lora` resolves to the adapters' default numbers, so config.yaml holds them."""
    lora = Config.load(least(tuning={"mode": "lora"})).tuning.lora
    assert lora is not None
    assert lora.model_dump() == {"rank": 16, "alpha": 16, "dropout": 0.0, "target_modules": None, "dora": False}
    assert Config.load(least(tuning={"mode": "full"})).tuning.lora is None


def test_config__json_schema() -> None:
    """The JSON schema for editors builds, holds the descriptions, refuses unknown keys and knows the choices."""
    schema = Config.model_json_schema()
    assert list(schema["properties"])[:3] == ["extends", "model", "data"]
    assert "required" not in schema  # whatever a recipe leaves out may come from the one that it extends
    optimizer = schema["$defs"]["OptimizerConfig"]
    assert optimizer["additionalProperties"] is False
    assert optimizer["properties"]["layer_decay"]["description"].startswith("Factor of the learning rate per depth")
    assert schema["$defs"]["ScheduleConfig"]["properties"]["name"]["enum"] == ["cosine", "linear", "constant"]
