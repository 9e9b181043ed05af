"""Options of the sections `tuning`, `train`, `optimizer` and `schedule`: what trains, how long and at which rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vit_finetune.common.sizes import parse_size
from vit_finetune.config.kinds import AS_TEXT, OR_ADDED_MODE, Duration, Fraction, PositiveFloat, PositiveInt, Rate, Size
from vit_finetune.recipe import Section


class LoraConfig(Section):
    """Low-rank adapters beside frozen matrices (LoRA, arXiv 2106.09685); needs the extra `lora`."""

    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: PositiveInt = 16
    """The adapter's output is multiplied by alpha / rank."""
    dropout: Rate = 0.0
    """Share of an adapter's inputs dropped in training."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of linear layers in the blocks, such as [qkv, proj] or [mlp.fc1]; null: all of them."""
    dora: bool = False
    """Learn the length of each weight column apart from its direction (DoRA, arXiv 2402.09353)."""


class TuningConfig(Section):
    """Which parameters train."""

    mode: Annotated[
        Literal["full", "linear_probe", "last_n", "bias", "norm", "attention", "lora", "lp_ft", "gradual", "readout"],
        OR_ADDED_MODE,
        AS_TEXT,
    ] = "full"
    """full: all; linear_probe: the head; last_n: the head, the final norm and the last `num_blocks` blocks; bias, norm:
    the head and all biases or norms; attention: the head, attention and positions; lora: the head and adapters;
    lp_ft: the head, then all; gradual: from the head down to all in `num_stages` stages; readout: nothing in the
    network, a readout of its frozen features is fitted (section readout)."""
    num_blocks: PositiveInt | None = None
    """For last_n: how many blocks train, counted from the head."""
    num_stages: Annotated[int, Field(ge=2)] | None = None
    """For gradual: equally long stages; the first trains the head, the last everything."""
    probe_steps: PositiveInt | None = None
    """For lp_ft: steps of the run in which only the head trains. Give steps or epochs."""
    probe_epochs: PositiveFloat | None = None
    """For lp_ft: the same in passes over the training pictures."""
    probe_lr: PositiveFloat | None = None
    """For lp_ft: peak learning rate while only the head trains; null takes optimizer.lr."""
    lora: LoraConfig | None = None
    """For lora: the adapters; null with another mode."""
    cache_prefix: PositiveInt | Literal["off", "auto"] = "off"
    """Compute what comes before the first block that trains once, and keep it (readout.cache_dir, .cache_limit_gb). N
    keeps N views of each training picture: epoch e sees the view that it would see without this in epoch e modulo N,
    so N >= epochs repeats none. auto: one view where the data section varies nothing, the same result; else off."""
    train: tuple[str, ...] = ()
    """Patterns of parameter names that train, too, such as [norm.*, blocks.0.*]; * stands for anything."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that do not train, whatever the mode says."""

    @model_validator(mode="before")
    @classmethod
    def _lora_by_default(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("mode") == "lora" and values.get("lora") is None:
            return {**values, "lora": {}}
        return values

    @model_validator(mode="after")
    def _options_of_the_mode(self) -> TuningConfig:
        for key, mode in (("num_blocks", "last_n"), ("num_stages", "gradual"), ("lora", "lora")):
            if (self.mode == mode) != (getattr(self, key) is not None):
                raise ValueError(f"tuning.{key} and tuning.mode: {mode} go together; give both or neither")
        given = [key for key in ("probe_steps", "probe_epochs", "probe_lr") if getattr(self, key) is not None]
        if self.mode != "lp_ft" and given:
            raise ValueError(f"tuning.{given[0]} is for tuning.mode: lp_ft; the mode is {self.mode}")
        if self.mode == "lp_ft" and (self.probe_steps is None) == (self.probe_epochs is None):
            raise ValueError("tuning.mode lp_ft needs exactly one of tuning.probe_steps and tuning.probe_epochs")
        return self


# Of TrainConfig: what only the training of a network reads. At their defaults they say nothing to a readout.
FOR_NETWORKS = (
    *("task", "imbalance", "mixup_alpha", "cutmix_alpha", "mixup_prob", "mixup_switch_prob", "mixup_off_epoch"),
    *("ema_decay", "early_stopping_patience", "progressive_sizes", "progressive_until"),
)


class TrainConfig(Section):
    """How long, in which batches, at which precision."""

    task: Literal["multiclass", "multilabel"] = "multiclass"
    """multiclass: one class per picture, softmax cross-entropy; multilabel: any number of them, a sigmoid each."""
    imbalance: Literal["none", "loss_weights", "balanced_sampler", "logit_adjustment"] = "none"
    """How skewed class counts are met, counted from the training split. loss_weights: a class weighs as the inverse of
    its count; balanced_sampler: classes are seen equally often; logit_adjustment: the logarithms of the shares are
    added to the logits in training (arXiv 2007.07314)."""
    epochs: PositiveFloat | None = None
    """Passes over the training pictures; may be a fraction. Give epochs, steps or a budget."""
    steps: PositiveInt | None = None
    """Optimizer steps. Give epochs, steps or a budget."""
    budget: Duration | None = None
    """Time for the whole run, such as 90s, 10m or 1h30m: from frozen features up to fine-tuning, what fits is tried and
    the best on val is kept. Give epochs, steps or a budget."""
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
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Mixup: neighbours are blended with a share from Beta(alpha, alpha); 0 is off, 0.8 is usual."""
    cutmix_alpha: Annotated[float, Field(ge=0)] = 0.0
    """CutMix: neighbours swap a box whose area is drawn from Beta(alpha, alpha); 0 is off, 1 is usual."""
    mixup_prob: Fraction = 1.0
    """Probability that a pair is mixed at all."""
    mixup_switch_prob: Fraction = 0.5
    """Probability of CutMix instead of Mixup where both are on."""
    mixup_off_epoch: PositiveFloat | None = None
    """Passes over the training pictures after which nothing is mixed; null mixes to the end."""
    ema_decay: Rate | None = None
    """Keep an average of the weights that moves by 1 - ema_decay of the way to them at each step (EMA, Polyak), score
    it beside them, and take whichever is better on val; without a val split, take it. null keeps none."""
    early_stopping_patience: PositiveInt | None = None
    """End the run after so many evaluations in a row without a better one, in the last stage; null never does."""
    grad_checkpointing: bool | Literal["elementwise", "blocks"] = "elementwise"
    """What is computed again in the backward pass instead of being kept. elementwise: norms and activations, whose
    inputs are kept anyway, and no product; LayerScale is multiplied into weights. blocks, or true: everything between
    the inputs of blocks: least memory, a third more time. false: nothing. The same numbers up to rounding."""
    compile: bool = False
    """torch.compile the network; needs a compiler that torch finds."""
    max_memory: str | None = None
    """Memory for one process, such as 6GB (10^9 bytes): the largest micro-batch that stays below it is found at the
    start. null: all there is on a GPU, no limit on a CPU. Needs per_device_batch_size: auto."""
    progressive_sizes: tuple[Size, ...] | Literal["auto"] = ()
    """Train on smaller pictures first: sizes in pixels, such as [56, 77], each for an equal part of the steps up to
    progressive_until, then model.img_size. Patches divide each. Evaluation is always at model.img_size. [] is off.
    auto: four and five sevenths of model.img_size in whole patches, those of four a side or more, where the whole
    network trains, is not compiled and places any grid; else one size."""
    progressive_until: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """With progressive_sizes: share of the steps before model.img_size is reached."""
    wise_ft: bool | tuple[Fraction, ...] = False
    """At the end, score points between the weights before and after fine-tuning on val and keep the best (WiSE-FT): the
    shares of the fine-tuned weights, or true for 0, 0.1, ..., 1. Never worse on val than without."""

    @property
    def mixes(self) -> bool:
        """Tell whether neighbours are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @model_validator(mode="after")
    def _mixing(self) -> TrainConfig:
        changed = [
            key for key in ("mixup_prob", "mixup_switch_prob", "mixup_off_epoch") if key in self.model_fields_set
        ]
        given = [key for key in changed if getattr(self, key) != type(self).model_fields[key].default]
        if given and not self.mixes:
            raise ValueError(f"train.{given[0]} does nothing without train.mixup_alpha or train.cutmix_alpha above 0")
        if self.mixes and self.global_batch_size % 2:
            raise ValueError(
                f"mixing pairs the pictures of a batch, and train.global_batch_size {self.global_batch_size} is odd; "
                "give an even one"
            )
        if self.mixes and isinstance(self.per_device_batch_size, int) and self.per_device_batch_size % 2:
            raise ValueError(
                f"mixing keeps pairs together, and train.per_device_batch_size {self.per_device_batch_size} is odd; "
                "give an even one, or auto"
            )
        return self

    @model_validator(mode="after")
    def _sizes(self) -> TrainConfig:
        default = type(self).model_fields["progressive_until"].default
        if self.progressive_until != default and not self.progressive_sizes:
            raise ValueError("train.progressive_until does nothing without train.progressive_sizes")
        return self

    @model_validator(mode="after")
    def _balances(self) -> TrainConfig:
        if self.task == "multilabel" and self.imbalance not in ("none", "loss_weights"):
            raise ValueError(
                f"train.imbalance {self.imbalance} needs one class per picture; with train.task multilabel use "
                "loss_weights"
            )
        if self.task == "multilabel" and self.budget is not None:
            raise ValueError(
                "train.budget begins with readouts of frozen features, which are for one class per picture; with "
                "train.task multilabel give train.epochs or train.steps"
            )
        return self

    @model_validator(mode="after")
    def _one_clock(self) -> TrainConfig:
        if sum(value is not None for value in (self.epochs, self.steps, self.budget)) != 1:
            raise ValueError("give exactly one of train.epochs, train.steps and train.budget")
        return self

    @model_validator(mode="after")
    def _memory_decides(self) -> TrainConfig:
        if self.max_memory is not None and self.per_device_batch_size != "auto":
            raise ValueError("train.max_memory finds the micro-batch; give it or train.per_device_batch_size, not both")
        if self.max_memory is not None:
            parse_size(self.max_memory, "train.max_memory")
        return self


class OptimizerConfig(Section):
    """The optimizer and its parameter groups."""

    name: str = "adamw"
    """adamw, sgd (torch's), or any of timm's optimizers by timm's name: lion, lamb, adopt, muon..."""
    lr: PositiveFloat = 5e-4
    """Peak learning rate, for the global batch as it is (never rescaled)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of matrices; biases, norms, tokens, position embeddings and LayerScale have none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate per depth below the head: 0.75 is usual for fine-tuning, 1 is off."""
    head_lr_scale: PositiveFloat = 1.0
    """Factor of the learning rate of the head alone: 10 lets a new head catch up with pretrained blocks."""
    momentum: Rate = 0.9
    """Of SGD and of timm's optimizers that have it."""
    nesterov: bool = False
    """Of SGD."""
    betas: Annotated[tuple[Rate, ...], Field(min_length=2, max_length=3)] | None = None
    """Of optimizers that have them; null: the optimizer's own, (0.9, 0.999) of AdamW."""
    eps: PositiveFloat | None = None
    """Of optimizers that have it; null: the optimizer's own, 1e-8 of AdamW."""


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
