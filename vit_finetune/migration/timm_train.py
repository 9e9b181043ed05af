"""timm's args.yaml -> our keys, where one option alone does not say it.

Source: timm 1.0.31, train.py and optim/_optim_factory.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_finetune.common.preprocess import INTERPOLATIONS
from vit_finetune.config import ModelConfig
from vit_finetune.migration.timm_options import TIMM
from vit_finetune.migration.vocabulary import Reading

__all__ = ["TIMM", "read_timm"]

_SCHEDULES = {"cosine": "cosine", "constant": "constant", "none": "constant"}
_METRICS = {"top1": "accuracy", "top5": "top5", "loss": "loss"}
_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}


def read_timm(reading: Reading, num_processes: int) -> None:
    """Lay timm's options over the recipe of a reading.

    Args:
        reading: what the file says; the plain options are there already.
        num_processes: how many processes the run had.

    Raises:
        RequestError: the architecture is not built here.
    """
    _model(reading)
    _data(reading)
    _augmentation(reading)
    _mixing(reading)
    _training(reading, num_processes)
    _optimizer(reading, num_processes)
    _run(reading)


def _model(reading: Reading) -> None:
    from vit_finetune.models import variant_config

    get, put = reading.get, reading.put
    name = str(get("model", "")).removeprefix("timm/")
    file = get("pretrained_path") or get("initial_checkpoint")
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        scheme, _, place = name.partition(":")
        put("model.pretrained", place if scheme == "local-dir" else f"hf-hub:{place}")
    elif name:
        architecture = name.partition(".")[0]
        variant_config(architecture)
        put("model.name", architecture)
        put("model.pretrained", f"timm:{name}" if get("pretrained") else None)
    if file:
        put("model.pretrained", file)
    elif name and not get("pretrained") and "pretrained" not in reading.recipe["model"]:
        reading.recipe["model"]["pretrained"] = None  # random weights, as there
    scale = get("head_init_scale")
    put("model.head_init", "zeros" if scale == 0 else "trunc_normal")
    if scale:
        reading.note("head_init_scale", "a factor of timm's head; give a standard deviation", "model.head_init")
    _kwargs(reading)
    size = get("input_size")
    put("model.img_size", list(size[1:]) if size else get("img_size"))
    put("model.in_chans", get("in_chans", size[0] if size else None))
    pool = get("gp")
    if pool in ("token", "avg", "map"):
        put("model.global_pool", pool)
    elif pool:
        reading.note("gp", "pooling is token, avg or map", "model.global_pool")


def _kwargs(reading: Reading) -> None:
    """Put what timm hands to the network: our key where the section has it, else a field of the network."""
    own = set(ModelConfig.model_fields) - {"overrides"}
    more: dict[str, Any] = {}
    for key, value in (reading.get("model_kwargs") or {}).items():
        if key in own:
            reading.put(f"model.{key}", value)
        else:
            more[key] = value
    reading.put("model.overrides", more or None)


def _data(reading: Reading) -> None:
    get, put = reading.get, reading.put
    folder = get("data_dir") or get("data")
    kind, _, name = str(get("dataset", "")).partition("/")
    if kind in ("hfds", "hfids"):
        put("data.source", name)
        put("data.streaming", True if kind == "hfids" else None)
    elif kind == "wds":
        put("data.source", folder)
    else:
        if kind and kind != "folder":
            reading.note("dataset", "class folders, the Hub's data sets and WebDataset shards are read", "data.source")
        put("data.root", folder)
    split = get("val_split", "")
    if split in ("", "val", "validation"):
        reading.recipe.setdefault("data", {})["val_split"] = "val" if split else None
    else:
        put("data.val_split", split)
    put("data.image_column", get("input_key"))
    put("data.label_column", get("target_key"))
    interpolation = get("interpolation") or None
    if interpolation in (None, *INTERPOLATIONS):
        put("data.interpolation", interpolation)
    else:
        reading.note("interpolation", f"it is one of {', '.join(INTERPOLATIONS)}", "data.interpolation")


def _augmentation(reading: Reading) -> None:
    get, put = reading.get, reading.put
    policy = str(get("aa", ""))
    put("data.color_jitter", 0.0 if policy and "3a" not in policy else get("color_jitter"))
    if policy.startswith("rand"):
        put("data.auto_augment", "randaugment")
        reading.note("aa", "becomes torchvision's: two operations of magnitude 9, without noise", "data.auto_augment")
    elif policy:
        reading.note("aa", "this policy is not built here", "data.auto_augment")
    put("data.random_erasing", get("reprob"))
    if get("reprob") and get("remode", "pixel") == "pixel":
        reading.note("remode", "a rectangle becomes the mean colour, timm's const", "data.random_erasing")
    if get("no_aug"):
        for key in ("hflip", "vflip", "color_jitter", "random_erasing"):
            put(f"data.{key}", 0.0)
        put("data.scale", [1.0, 1.0])
        put("data.ratio", [1.0, 1.0])
        reading.recipe["data"].pop("auto_augment", None)
        reading.note("no_aug", "becomes the largest square; timm's cuts as evaluation does", "data.scale")


def _mixing(reading: Reading) -> None:
    if not (reading.get("mixup") or reading.get("cutmix")):
        return
    for name in ("mixup_prob", "mixup_switch_prob"):
        reading.put(f"train.{name}", reading.get(name))
    reading.put("train.mixup_off_epoch", reading.get("mixup_off_epoch") or None)
    if reading.get("mixup_mode", "batch") == "batch":
        reading.note(
            "mixup_mode", "each pair of neighbours has its own share, not the whole batch one", "train.mixup_alpha"
        )


def _training(reading: Reading, num_processes: int) -> None:
    get, put = reading.get, reading.put
    put("train.per_device_batch_size", get("batch_size"))
    put("train.global_batch_size", _global_batch(reading, num_processes))
    put("train.mixed_precision", _PRECISIONS.get(get("amp_dtype", "float16"), "auto") if get("amp") else "no")
    clip = get("clip_grad")
    if clip is not None and get("clip_mode", "norm") != "norm":
        reading.note("clip_mode", "gradients are clipped by their norm", "train.max_grad_norm")
        clip = None
    reading.recipe.setdefault("train", {})["max_grad_norm"] = clip
    put("train.ema_decay", get("model_ema_decay") if get("model_ema") else None)
    if get("torchcompile"):
        put("train.compile", True)
        if get("torchcompile") != "inductor":
            reading.note("torchcompile", "the backend is inductor", "train.compile")


def _global_batch(reading: Reading, num_processes: int) -> int:
    return int(reading.get("batch_size", 128)) * max(1, int(reading.get("grad_accum_steps", 1))) * num_processes


def _optimizer(reading: Reading, num_processes: int) -> None:
    get, put = reading.get, reading.put
    name = str(get("opt", "sgd")).lower()
    put("optimizer.name", "sgd" if name == "momentum" else name)
    put("optimizer.nesterov", True if name == "sgd" else None)
    rate = get("lr")
    if not rate:  # as train.py: 0 asks for lr_base, too
        ratio = _global_batch(reading, num_processes) / float(get("lr_base_size", 256))
        scale = get("lr_base_scale") or ("sqrt" if "ada" in name or "lamb" in name else "linear")
        rate = float(get("lr_base", 0.1)) * (ratio**0.5 if scale == "sqrt" else ratio)
    put("optimizer.lr", float(rate))
    schedule = str(get("sched", "cosine"))
    if schedule == "poly" and get("decay_rate") == 1:
        put("schedule.name", "linear")
    elif schedule in _SCHEDULES:
        put("schedule.name", _SCHEDULES[schedule])
    else:
        put("schedule.name", "cosine")
        reading.note("sched", "the rate follows a cosine, a line or stays; cosine stands in", "schedule.name")


def _run(reading: Reading) -> None:
    get, put = reading.get, reading.put
    metric = get("eval_metric", "top1")
    put("evaluation.metric", _METRICS.get(metric))
    if metric not in _METRICS:
        reading.note("eval_metric", f"one of {', '.join(_METRICS)} goes over", "evaluation.metric")
    every = int(get("recovery_interval", 0)) // max(1, int(get("grad_accum_steps", 1)))
    put("checkpoint.every_steps", every or None)
    device = str(get("device", "cuda")).partition(":")[0]
    put("run.device", device if device in ("cpu", "mps") else None)
    put("run.trackers", ["wandb"] if get("log_wandb") else None)
    experiment = get("experiment", "") or str(get("model", "timm")).replace("/", "-").replace(":", "-")
    put("run.dir", str(Path(get("output", "") or "runs", experiment)))
