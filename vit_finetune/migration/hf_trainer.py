"""The JSON of transformers' TrainingArguments -> our keys, where one option alone does not say it.

Source: transformers 5.23, training_args.py and optimization.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vit_finetune.migration.hf_options import HF
from vit_finetune.migration.vocabulary import Reading

__all__ = ["HF", "read_hf"]

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
_METRICS = {"accuracy": "accuracy", "loss": "loss", "f1": "macro_f1"}
_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def read_hf(reading: Reading, num_processes: int) -> None:
    """Lay the Trainer's options over the recipe of a reading.

    Args:
        reading: what the file says; the plain options are there already.
        num_processes: how many processes the run had.
    """
    _model_and_data(reading)
    _clock(reading)
    _training(reading, num_processes)
    _optimizer(reading)
    _evaluation(reading)
    _saving(reading)
    _run(reading)


def _model_and_data(reading: Reading) -> None:
    get, put = reading.get, reading.put
    name = get("model_name_or_path")
    if name:
        put("model.pretrained", name if Path(name).exists() else f"hf-hub:{name}")
    put("model.head_init", "trunc_normal")  # as transformers makes a new classifier: normal, standard deviation 0.02
    train, val = get("train_dir"), get("validation_dir")
    if train and val and Path(train).parent != Path(val).parent:
        put("data.root", train)
        reading.note("validation_dir", "both splits are folders of one root", "data.root")
    elif train and val:
        put("data.root", str(Path(train).parent))
        put("data.train_split", Path(train).name)
        put("data.val_split", Path(val).name)
    elif train:
        put("data.root", train)


def _steps(reading: Reading, name: str) -> int | None:
    """Return an interval in steps: a share of the run where it is below 1, None where steps are not known."""
    value = float(reading.get(name, 0))
    if value >= 1:
        return int(value)
    total = int(reading.get("max_steps", -1))
    return math.ceil(value * total) if value > 0 and total > 0 else None


def _epochs(reading: Reading, name: str) -> float | None:
    """Return an interval in epochs, where it is a share of a run that is counted in them."""
    value = float(reading.get(name, 0))
    counted = int(reading.get("max_steps", -1)) <= 0
    return value * float(reading.get("num_train_epochs", 3.0)) if 0 < value < 1 and counted else None


def _clock(reading: Reading) -> None:
    get, put = reading.get, reading.put
    steps = int(get("max_steps", -1))
    put("train.steps" if steps > 0 else "train.epochs", steps if steps > 0 else get("num_train_epochs", 3.0))
    kind = str(get("lr_scheduler_type", "linear"))
    put("schedule.name", _SCHEDULES.get(kind, "cosine"))
    if kind not in _SCHEDULES:
        reading.note(
            "lr_scheduler_type", "the rate follows a line, a cosine or stays; cosine stands in", "schedule.name"
        )
    if kind != "constant":  # transformers' constant has no warm-up
        name = "warmup_steps" if get("warmup_steps") else "warmup_ratio"
        put("schedule.warmup_steps", _steps(reading, name))
        put("schedule.warmup_epochs", _epochs(reading, name))


def _training(reading: Reading, num_processes: int) -> None:
    get, put = reading.get, reading.put
    size = int(get("per_device_train_batch_size", 8))
    put("train.per_device_batch_size", "auto" if get("auto_find_batch_size") else size)
    put("train.global_batch_size", size * int(get("gradient_accumulation_steps", 1)) * num_processes)
    put("train.mixed_precision", "bf16" if get("bf16") else "fp16" if get("fp16") else "no")
    reading.recipe["train"]["max_grad_norm"] = get("max_grad_norm", 1.0) or None


def _optimizer(reading: Reading) -> None:
    get, put = reading.get, reading.put
    name = str(get("optim", "adamw_torch"))
    if name in ("sgd", "adafactor", "adagrad", "rmsprop"):
        put("optimizer.name", name)
        if name == "sgd":
            put("optimizer.momentum", 0.0)
        else:
            reading.note("optim", "becomes timm's optimizer of that name, with timm's options", "optimizer.name")
        return
    put("optimizer.name", "adamw")
    put("optimizer.betas", [get("adam_beta1", 0.9), get("adam_beta2", 0.999)])
    put("optimizer.eps", get("adam_epsilon"))
    if not name.startswith("adamw") or "bit" in name:
        reading.note("optim", "adamw stands in; timm's optimizers go by timm's names", "optimizer.name")


def _evaluation(reading: Reading) -> None:
    get, put = reading.get, reading.put
    strategy = str(get("eval_strategy", get("evaluation_strategy", "no")))
    if strategy == "steps":
        name = "eval_steps" if get("eval_steps") else "logging_steps"
        put("evaluation.every_steps", _steps(reading, name))
        put("evaluation.every_epochs", _epochs(reading, name))
    elif strategy == "epoch":
        put("evaluation.every_epochs", 1.0)
    metric = get("metric_for_best_model")
    plain = str(metric).removeprefix("eval_")
    put("evaluation.metric", _METRICS.get(plain))
    if metric is not None and plain not in _METRICS:
        reading.note("metric_for_best_model", f"one of {', '.join(_METRICS)} goes over", "evaluation.metric")


def _saving(reading: Reading) -> None:
    if reading.get("save_strategy", "steps") == "steps":
        reading.put("checkpoint.every_steps", _steps(reading, "save_steps"))
    elif reading.get("save_strategy") == "no":
        reading.note("save_strategy", "the best and the last state are saved", "checkpoint.keep_last")
    reading.put("checkpoint.keep_last", reading.get("save_total_limit"))


def _run(reading: Reading) -> None:
    get, put = reading.get, reading.put
    put("run.device", "cpu" if get("use_cpu") or get("no_cuda") else None)
    put("run.log_every_steps", _steps(reading, "logging_steps"))
    asked: Any = get("report_to", [])
    names = [asked] if isinstance(asked, str) else list(asked)
    put("run.trackers", [name for name in names if name in _TRACKERS] or None)
    if [name for name in names if name not in (*_TRACKERS, "none")]:
        reading.note("report_to", f"one of {', '.join(_TRACKERS)} goes over", "run.trackers")
