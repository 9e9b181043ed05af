"""The configuration of a run: frozen, strict, one place for every option with its unit and default.

A recipe is this, as YAML. "auto" stays "auto" here: what it resolved to is in the run's `plan.json`.
It is read by the assembly level only and passed down as plain values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vit_finetune.recipe import Section, apply_override, plain, read_recipe, write_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


def _pair(value: object) -> object:
    """Read one number as (number, number): sizes may be given as 224 or [224, 320]."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]


class ModelConfig(Section):
    """Which network, and which weights it starts from."""

    pretrained: str | None
    """Where the weights come from: a file or folder, `hf-hub:owner/name`, `timm:name.tag`, `demo` (the quickstart's),
    or null for random weights. No default, so that nothing is random by accident."""
    name: str | None = None
    """Architecture in timm's spelling; null where the source tells it."""
    img_size: Size | None = None
    """Picture size in pixels, one number or [height, width]; null keeps the checkpoint's."""
    in_chans: PositiveInt | None = None
    """Picture channels; null keeps the checkpoint's."""
    global_pool: Literal["token", "avg", "map"] | None = None
    """How tokens become one vector; null keeps the checkpoint's."""
    pos_embed: Literal["bicubic", "bilinear"] = "bicubic"
    """How position embeddings are resampled to another grid: timm's rule, or the ViT paper's."""
    head_init: Literal["zeros", "trunc_normal"] | PositiveFloat = "zeros"
    """The new head: zeros (ViT paper), truncated normal of 0.02, or a standard deviation."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth, rising linearly from 0 at the first block to this at the last; probability."""
    drop_rate: Rate = 0.0
    """Dropout before the head; probability."""
    pos_drop_rate: Rate = 0.0
    """Dropout after the position embedding; probability."""
    patch_drop_rate: Rate = 0.0
    """Share of the patch tokens dropped in training."""
    proj_drop_rate: Rate = 0.0
    """Dropout after attention's and the MLP's projections; probability."""
    attn_drop_rate: Rate = 0.0
    """Dropout of the attention weights; probability."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Further ViTConfig fields, such as {depth: 2, embed_dim: 64} for a small network."""

    @model_validator(mode="after")
    def _needs_a_name(self) -> ModelConfig:
        if self.pretrained is None and self.name is None:
            raise ValueError("random weights (pretrained: null) need model.name, one of `vit-finetune models`")
        return self


class DataConfig(Section):
    """Which pictures, how they are split and how training varies them."""

    root: str | None = None
    """Folder of pictures: root/train/CLASS/..., or root/CLASS/... which is split for you."""
    source: str | None = None
    """Instead of root: a data set name on the Hub, a saved data set, or a parquet/arrow file or folder."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str | None = "val"
    """Name of the split that selects the best checkpoint; null trains without one."""
    test_split: str | None = None
    """Name of a split that is opened once, at the end."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class held out where the data has no val split."""
    image_column: str | None = None
    """Column of the pictures in a `source`; null finds the only one."""
    label_column: str | None = None
    """Column of the labels in a `source`; null finds the only one."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of the random crop as a share of the picture: [least, most]."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Aspect ratio of the random crop, width / height: [least, most]."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vflip: Fraction = 0.0
    """Probability of a vertical flip."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of random brightness, contrast and saturation; 0.4 is usual, 0 is off."""
    auto_augment: Literal["randaugment", "trivialaugment"] | None = None
    """A torchvision policy of random operations."""
    random_erasing: Fraction = 0.0
    """Probability that a random rectangle is erased."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = None
    """How pictures are resized; null takes the checkpoint's."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the resized picture that evaluation's centre crop keeps; null takes the checkpoint's."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """Evaluation: centre crop, resize both sides freely, or pad; null takes the checkpoint's."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels in [0, 1]; null takes the checkpoint's."""
    std: tuple[PositiveFloat, ...] | None = None
    """Per channel, of pixels in [0, 1]; null takes the checkpoint's."""
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that decode pictures, per training process; auto: none on a CPU, up to 8 for an accelerator."""

    @model_validator(mode="after")
    def _one_place(self) -> DataConfig:
        if (self.root is None) == (self.source is None):
            raise ValueError("give exactly one of data.root (a folder) and data.source (a data set)")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or low == 0:
                raise ValueError(f"data.{name} is [{low}, {high}]; give [least, most] with 0 < least <= most")
        return self


class TuningConfig(Section):
    """Which parameters train."""

    mode: Literal["full", "linear_probe", "last_n"] = "full"
    """full: all; linear_probe: the head; last_n: the head, the final norm and the last `num_blocks` blocks."""
    num_blocks: PositiveInt | None = None
    """For last_n: how many blocks train, counted from the head."""

    @model_validator(mode="after")
    def _blocks_for_last_n(self) -> TuningConfig:
        if (self.mode == "last_n") != (self.num_blocks is not None):
            raise ValueError("tuning.num_blocks and tuning.mode: last_n go together; give both or neither")
        return self


class TrainConfig(Section):
    """How long, in which batches, at which precision."""

    task: Literal["multiclass"] = "multiclass"
    """One class per picture, softmax cross-entropy."""
    imbalance: Literal["none"] = "none"
    """How skewed class counts are met."""
    epochs: PositiveFloat | None = None
    """Passes over the training pictures; may be a fraction. Give epochs or steps."""
    steps: PositiveInt | None = None
    """Optimizer steps. Give epochs or steps."""
    global_batch_size: PositiveInt = 64
    """Pictures per optimizer step over all processes; the same on any number of them."""
    per_device_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Pictures that one process takes at once; the rest of its share is accumulated."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """auto: bf16 (else fp16) on CUDA, full precision elsewhere."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Global norm to which gradients are clipped; null does not clip."""
    label_smoothing: Rate = 0.0
    """Share of the target spread over all classes."""
    grad_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, more time, same numbers."""
    compile: bool = False
    """torch.compile the network; needs a compiler that torch finds."""

    @model_validator(mode="after")
    def _one_clock(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of train.epochs and train.steps")
        return self


class OptimizerConfig(Section):
    """The optimizer and its parameter groups."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    lr: PositiveFloat = 5e-4
    """Peak learning rate of the head's group, for the global batch as it is (never rescaled)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of matrices; biases, norms, tokens, position embeddings and LayerScale have none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate per depth below the head: 0.75 is usual for fine-tuning, 1 is off."""
    momentum: Rate = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Of SGD."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Of AdamW."""
    eps: PositiveFloat = 1e-8
    """Of AdamW."""


class ScheduleConfig(Section):
    """The learning rate as a function of the step."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear reach 0 at the end."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up. Give steps, epochs or neither (no warm-up)."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Warm-up in passes over the training pictures."""

    @model_validator(mode="after")
    def _one_warmup(self) -> ScheduleConfig:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError("give schedule.warmup_steps or schedule.warmup_epochs, not both")
        return self


class EvaluationConfig(Section):
    """When the val split is scored, and what decides."""

    every_steps: PositiveInt | None = None
    """Evaluate every so many steps. Give steps, epochs or neither (once an epoch)."""
    every_epochs: PositiveFloat | None = None
    """Evaluate every so many passes over the training pictures."""
    metric: Literal["accuracy", "macro_accuracy", "top5", "loss"] = "accuracy"
    """The figure of the val split that chooses the best checkpoint."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Pictures that one process scores at once; auto: as many as in training."""

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluationConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("give evaluation.every_steps or evaluation.every_epochs, not both")
        return self


class CheckpointConfig(Section):
    """When the state of the run is saved. It is also saved at each new best and at the end."""

    every_steps: PositiveInt | None = None
    """Save every so many steps; null saves at every evaluation."""
    every_minutes: PositiveFloat | None = None
    """Save, too, when so many minutes have passed since the last save."""
    keep_last: PositiveInt = 3
    """How many of the newest checkpoints are kept, besides the best."""


class RunConfig(Section):
    """Where the run lives and what it runs on."""

    dir: str = "runs/default"
    """Folder of the run; it must not exist yet."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random decision is a function of this and of its place in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: the accelerator that torch finds, else the CPU."""
    num_threads: PositiveInt | Literal["auto"] = "auto"
    """CPU threads per process; auto: the cores shared out among the processes of this machine."""
    deterministic: bool = False
    """On a GPU: only algorithms whose results repeat bit for bit (slower). A CPU repeats anyway."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Experiment trackers that get the figures of metrics.jsonl, through Accelerate."""
    log_every_steps: PositiveInt = 1
    """Training figures are written to metrics.jsonl every so many steps."""


class Config(Section):
    """A whole run; see each section. `Config.load` reads YAML, a mapping, or takes a Config as it is."""

    model: ModelConfig
    data: DataConfig
    tuning: TuningConfig = TuningConfig()
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig = RunConfig()

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

    def to_yaml(self) -> str:
        """Return the whole configuration as YAML that `load` reads back equal."""
        return write_yaml(self.model_dump(mode="json"))
