"""The configuration of a run: frozen, strict, one place for every option with its unit and default.

A recipe is this, as YAML. "auto" stays "auto" here: what it resolved to is in the run's `plan.json`.
It is read by the assembly level only and passed down as plain values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from vit_finetune.config.data import DataConfig
from vit_finetune.config.model import ModelConfig
from vit_finetune.config.readout import ReadoutConfig
from vit_finetune.config.running import CheckpointConfig, EvaluationConfig, RunConfig
from vit_finetune.config.training import (
    FOR_NETWORKS,
    LoraConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TuningConfig,
)
from vit_finetune.recipe import Section, apply_override, plain, read_recipe, write_yaml

__all__ = [
    "FOR_NETWORKS",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ReadoutConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "TuningConfig",
]


class Config(Section):
    """A whole run; see each section. `Config.load` reads YAML, a mapping, or takes a Config as it is."""

    model: ModelConfig
    data: DataConfig
    tuning: TuningConfig = TuningConfig()
    readout: ReadoutConfig = ReadoutConfig()
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _what_goes_together(self) -> Config:
        if self.data.on_bad_image != "error" and (self.tuning.mode == "readout" or self.train.budget is not None):
            what = "tuning.mode readout" if self.tuning.mode == "readout" else "train.budget"
            raise ValueError(f"data.on_bad_image {self.data.on_bad_image} does not work with {what}; give error")
        if self.tuning.mode == "readout" and (self.data.cache != "off" or self.data.working_size is not None):
            raise ValueError("tuning.mode readout keeps features; leave data.cache and data.working_size out")
        if self.tuning.mode == "readout" and self.data.weight_column is not None:
            raise ValueError("tuning.mode readout weighs all pictures alike; leave data.weight_column out")
        if isinstance(self.tuning.cache_prefix, int) and (self.train.mixes or self.data.on_bad_image != "error"):
            what = "train.mixup_alpha and cutmix_alpha, which mix pixels" if self.train.mixes else "bad images left out"
            raise ValueError(f"tuning.cache_prefix keeps what the network makes of whole pictures, not {what}; use off")
        return self

    @model_validator(mode="after")
    def _what_merges(self) -> Config:
        for what, is_asked in {
            "tuning.mode readout": self.tuning.mode == "readout",
            "train.budget": self.train.budget is not None,
        }.items():
            if self.evaluation.merge_tokens and is_asked:
                raise ValueError(f"evaluation.merge_tokens scores a network that was trained, not {what}; leave it out")
        return self

    @model_validator(mode="after")
    def _what_changes_size(self) -> Config:
        reasons = {
            "train.budget, some of whose rungs may have no step for each; give auto": self.train.budget is not None,
            "train.compile, which compiles the network for one size": self.train.compile,
            "tuning.cache_prefix, which keeps what pictures of one size give": isinstance(
                self.tuning.cache_prefix, int
            ),
        }
        for what, is_asked in reasons.items():
            if self.train.progressive_sizes not in ((), "auto") and is_asked:
                raise ValueError(f"train.progressive_sizes does not work with {what}")
        return self

    @model_validator(mode="after")
    def _what_can_be_sharded(self) -> Config:
        if self.run.strategy != "fsdp":
            return self
        tuning, train = self.tuning, self.train
        reasons = {
            f"tuning.mode {tuning.mode}, whose network is rebuilt or does not train": tuning.mode
            in ("readout", "lp_ft", "gradual", "lora"),
            "train.budget": train.budget is not None,
            "train.compile": train.compile,
            "train.max_memory, since no process can try a sharded network's pass alone": train.max_memory is not None,
            f"optimizer.name {self.optimizer.name}; use adamw or sgd": self.optimizer.name not in ("adamw", "sgd"),
        }
        for what, is_asked in reasons.items():
            if is_asked:
                raise ValueError(f"run.strategy fsdp does not work with {what}")
        return self

    @model_validator(mode="after")
    def _readouts_train_nothing(self) -> Config:
        defaults = {key: TrainConfig.model_fields[key].default for key in FOR_NETWORKS}
        given = [key for key, value in defaults.items() if getattr(self.train, key) not in (value, "auto")]
        if self.tuning.mode == "readout" and given:
            raise ValueError(
                f"train.{given[0]} does nothing with tuning.mode readout, which fits a readout of frozen features for "
                "one class per picture; take it out, or use linear_probe"
            )
        return self

    @classmethod
    def load(cls, source: Config | Mapping[str, Any] | str | Path, *, overrides: Iterable[str] = ()) -> Config:
        """Read and check a configuration.

        Args:
            source: a YAML file, the name of a shipped recipe, a run's folder, a mapping of sections, or a Config.
            overrides: `section.key=value` texts, the values in YAML; see `recipe.apply_override`.

        Returns:
            The configuration, frozen.

        Raises:
            RequestError: the file cannot be read, or some keys or values are wrong; all are listed.
        """
        if isinstance(source, Config):
            source = source.model_dump()
        values: dict[str, Any] = plain(source) if isinstance(source, Mapping) else read_recipe(source)
        for text in overrides:
            apply_override(values, text)
        return cls.parse(values)

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema of a recipe as a file: `extends` joins, and whatever it may bring is not required."""
        schema = super().model_json_schema(*args, **kwargs)
        about = "A shipped recipe, or a file beside this one, that this recipe is laid over, key by key."
        schema["properties"] = {"extends": {"type": "string", "description": about}, **schema["properties"]}
        for part in (schema, *schema["$defs"].values()):
            part.pop("required", None)
        return schema

    def to_yaml(self) -> str:
        """Return the whole configuration as YAML that `load` reads back equal."""
        return write_yaml(self.model_dump(mode="json"))
