"""The options of transformers' Trainer beside ours, as data.

Those of TrainingArguments, and those of the example run_image_classification.py, which may stand in the same file.

Source: transformers 5.23, training_args.py (with the names that version 4 had), and the example's dataclasses; the
rules are in hf_trainer.py.
"""

from __future__ import annotations

from vit_finetune.migration.vocabulary import Left, Ruled, Vocabulary

_LOADER = "the loader decides it, with the same result"
_SHARDED = "how processes share a network changes no result; on several GPUs it can be set for the run"
_DDP = "DistributedDataParallel's switches are set by what trains"
_PRECISION = "one switch for the whole run"
_HUB = "a run writes to its folder only; a finished one is sent by the verb push"
_LOGS = "figures of every step are written to metrics.jsonl"
_SAVES = "checkpoints are whole, and taken at evaluations and at the end, too"
_TEXT = "it is for models of text"
_COMPILE = "torch.compile's defaults"
_FIXED = "the recipe says the whole batch; it does not change"

_COPIED = {
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "label_smoothing_factor": "train.label_smoothing",
    "gradient_checkpointing": "train.grad_checkpointing",
    "torch_compile": "train.compile",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "dataloader_num_workers": "data.num_workers",
    "seed": "run.seed",
    "full_determinism": "run.deterministic",
    "output_dir": "run.dir",
    "dataset_name": "data.source",
    "image_column_name": "data.image_column",
    "label_column_name": "data.label_column",
    "train_val_split": "data.val_fraction",
}

_RULED = {
    "num_train_epochs": Ruled("train.epochs", "where max_steps is not above 0"),
    "max_steps": Ruled("train.steps", "where it is above 0"),
    "lr_scheduler_type": Ruled("schedule.name", "linear, cosine, constant and constant_with_warmup"),
    "warmup_steps": Ruled("schedule.warmup_steps, schedule.warmup_epochs", "below 1 it is a share of the run"),
    "warmup_ratio": Ruled("schedule.warmup_steps, schedule.warmup_epochs", "a share of the run"),
    "optim": Ruled("optimizer.name, optimizer.momentum", "the AdamWs are adamw; sgd has no momentum there"),
    "adam_beta1": Ruled("optimizer.betas", "with adam_beta2, for AdamW"),
    "adam_beta2": Ruled("optimizer.betas", "with adam_beta1, for AdamW"),
    "adam_epsilon": Ruled("optimizer.eps", "for AdamW"),
    "max_grad_norm": Ruled("train.max_grad_norm", "0 is null"),
    "per_device_train_batch_size": Ruled(
        "train.per_device_batch_size, train.global_batch_size",
        "global: times gradient_accumulation_steps times the processes",
    ),
    "gradient_accumulation_steps": Ruled(
        "train.global_batch_size", "a factor of it; the accumulation follows by itself"
    ),
    "auto_find_batch_size": Ruled("train.per_device_batch_size", "auto, at the same global batch"),
    "bf16": Ruled("train.mixed_precision", "bf16; no where neither is set"),
    "fp16": Ruled("train.mixed_precision", "fp16; no where neither is set"),
    "use_cpu": Ruled("run.device", "cpu"),
    "no_cuda": Ruled("run.device", "version 4's name of use_cpu"),
    "eval_strategy": Ruled("evaluation.every_steps, evaluation.every_epochs", "no is once an epoch"),
    "evaluation_strategy": Ruled(
        "evaluation.every_steps, evaluation.every_epochs", "version 4's name of eval_strategy"
    ),
    "eval_steps": Ruled("evaluation.every_steps", "below 1 it is a share of the run"),
    "save_strategy": Ruled("checkpoint.every_steps", "epoch and best: at evaluations, as without the key"),
    "save_steps": Ruled("checkpoint.every_steps", "with save_strategy steps; below 1 it is a share of the run"),
    "save_total_limit": Ruled("checkpoint.keep_last", "nothing keeps all there, and 3 with the best here"),
    "metric_for_best_model": Ruled("evaluation.metric", "accuracy, loss and f1 (macro), with or without eval_"),
    "greater_is_better": Ruled("", "not needed: it follows from the metric"),
    "load_best_model_at_end": Ruled("", "not needed: the model is always the best checkpoint"),
    "logging_steps": Ruled("run.log_every_steps", "below 1 it is a share of the run"),
    "report_to": Ruled("run.trackers", "tensorboard, wandb, mlflow and trackio"),
    "resume_from_checkpoint": Ruled("", "not a key: vit-finetune train --resume goes on with run.dir"),
    "do_train": Ruled("", "not needed: the verb says it"),
    "do_eval": Ruled("", "not needed: the val split is scored"),
    "do_predict": Ruled("", "not needed: the verb predict"),
    "local_rank": Ruled("", "not a key: the launcher says it"),
    "disable_tqdm": Ruled("", "not needed: the bar is for terminals only"),
    "hub_token": Ruled("", "not needed: huggingface_hub's own"),
    "model_name_or_path": Ruled("model.pretrained", "a path that exists, else hf-hub:NAME"),
    "train_dir": Ruled("data.root, data.train_split", "a folder of class folders"),
    "validation_dir": Ruled("data.root, data.val_split", "a folder of class folders beside train_dir"),
    "accelerator_config": Ruled("", "not needed: loaders and batches are ours, not Accelerate's"),
    "remove_unused_columns": Ruled("", "not needed: only pictures and labels are read"),
}

_LEFT = {
    "lr_scheduler_kwargs": Left("the shapes have no options", "schedule.name"),
    "optim_args": Left("an optimizer's further options stay at timm's defaults", "optimizer.name"),
    "optim_target_modules": Left("it is GaLore's", "tuning.mode"),
    "average_tokens_across_devices": Left("a loss is divided by the pictures of the whole batch", "", True),
    "bf16_full_eval": Left(_PRECISION, "train.mixed_precision"),
    "fp16_full_eval": Left(_PRECISION, "train.mixed_precision"),
    "tf32": Left(_PRECISION, "train.mixed_precision"),
    "half_precision_backend": Left(_PRECISION, "train.mixed_precision", "auto"),
    "activation_checkpointing": Left("blocks are recomputed by one switch", "train.grad_checkpointing"),
    "activation_checkpointing_kwargs": Left("it has no options", "train.grad_checkpointing"),
    "gradient_checkpointing_kwargs": Left("it has no options", "train.grad_checkpointing"),
    "torch_compile_backend": Left(_COMPILE, "train.compile"),
    "torch_compile_mode": Left(_COMPILE, "train.compile"),
    "use_liger_kernel": Left(_TEXT),
    "liger_kernel_config": Left(_TEXT),
    "use_cache": Left(_TEXT),
    "neftune_noise_alpha": Left(_TEXT),
    "torch_empty_cache_steps": Left("torch's memory is not emptied by hand", "train.max_memory"),
    "logging_strategy": Left(_LOGS, "run.log_every_steps", "steps"),
    "logging_first_step": Left(_LOGS, "run.log_every_steps"),
    "logging_dir": Left(_LOGS, "run.dir"),
    "log_on_each_node": Left("the first process writes", "", True),
    "logging_nan_inf_filter": Left("a loss that is no number stops the run, and names the first bad batch", "", True),
    "include_num_input_tokens_seen": Left(_TEXT, "", "no"),
    "log_level": Left("there are no levels; errors and figures are told", "", "passive"),
    "log_level_replica": Left("the first process speaks", "", "warning"),
    "run_name": Left("the folder is the name", "run.dir"),
    "project": Left("set by the tracker's own environment variables", "run.trackers", "huggingface"),
    "trackio_space_id": Left("set by the tracker's own environment variables", "run.trackers"),
    "trackio_bucket_id": Left("set by the tracker's own environment variables", "run.trackers"),
    "trackio_static_space_id": Left("set by the tracker's own environment variables", "run.trackers"),
    "eval_delay": Left("evaluations begin with the first interval", "evaluation.every_steps"),
    "prediction_loss_only": Left("every figure is counted", "evaluation.metric"),
    "eval_on_start": Left("the first evaluation is after the first interval", "evaluation.every_steps"),
    "eval_do_concat_batches": Left("figures are counted batch by batch", "", True),
    "eval_use_gather_object": Left("counts are added over the processes"),
    "eval_accumulation_steps": Left("counts are added batch by batch", "evaluation.batch_size"),
    "include_for_metrics": Left("the figures are fixed", "evaluation.metric"),
    "batch_eval_metrics": Left("figures are counted batch by batch"),
    "save_only_model": Left(_SAVES, "checkpoint.keep_last"),
    "save_on_each_node": Left("processes share run.dir", "run.dir"),
    "save_safetensors": Left("checkpoints are safetensors", "", True),
    "enable_jit_checkpoint": Left("SIGTERM saves and stops anyway"),
    "push_to_hub": Left(_HUB),
    "hub_private_repo": Left(_HUB),
    "hub_model_id": Left(_HUB),
    "hub_strategy": Left(_HUB, "", "every_save"),
    "hub_always_push": Left(_HUB),
    "hub_revision": Left(_HUB),
    "ignore_data_skip": Left("resuming starts at the step's own pictures, at once"),
    "restore_callback_states_from_checkpoint": Left("there are no callbacks"),
    "data_seed": Left("one seed for the whole run", "run.seed"),
    "parallelism_config": Left(_SHARDED),
    "fsdp": Left(_SHARDED, "run.strategy"),
    "fsdp_config": Left(_SHARDED, "run.strategy"),
    "deepspeed": Left(_SHARDED),
    "ddp_find_unused_parameters": Left(_DDP),
    "ddp_bucket_cap_mb": Left(_DDP),
    "ddp_broadcast_buffers": Left(_DDP),
    "ddp_static_graph": Left(_DDP),
    "ddp_backend": Left(_DDP),
    "ddp_timeout": Left(_DDP, "", 1800),
    "debug": Left("there is no such mode"),
    "skip_memory_metrics": Left("peak memory is written to timing.jsonl", "", True),
    "dataloader_drop_last": Left("every picture is trained on", "train.global_batch_size"),
    "dataloader_pin_memory": Left(_LOADER, "", True),
    "dataloader_persistent_workers": Left(_LOADER),
    "dataloader_prefetch_factor": Left(_LOADER),
    "dataloader_multiprocessing_context": Left(_LOADER),
    "dataloader_in_order": Left(_LOADER, "", True),
    "group_by_length": Left(_TEXT),
    "length_column_name": Left(_TEXT, "", "length"),
    "train_sampling_strategy": Left("pictures come in a seeded random order", "train.imbalance", "random"),
    "label_names": Left("the label column says it", "data.label_column"),
    "dataset_config_name": Left("the data set's default part is read", "data.source"),
    "max_train_samples": Left("all pictures are used", "train.steps"),
    "max_eval_samples": Left("all pictures are scored", "evaluation.every_steps"),
    "model_type": Left("the checkpoint tells it", "model.name"),
    "config_name": Left("the checkpoint tells it", "model.name"),
    "cache_dir": Left("huggingface_hub's own, HF_HOME"),
    "model_revision": Left("written behind the name, hf-hub:NAME@REVISION", "model.pretrained", "main"),
    "image_processor_name": Left("preprocessing comes with the checkpoint", "data.mean"),
    "token": Left("huggingface_hub's own, HF_TOKEN"),
    "trust_remote_code": Left("no code of a checkpoint or data set is run"),
    "ignore_mismatched_sizes": Left("the head is always replaced, and everything else is strict", "model.head_init"),
}

HF = Vocabulary(
    trainer="transformers' Trainer",
    copied=_COPIED,
    ruled=_RULED,
    left=_LEFT,
    differs=(
        "the model is the best checkpoint by evaluation.metric, not the last, whatever load_best_model_at_end says",
        "the global batch is the recipe's at any number of processes; the Trainer's grows with them",
        "tokens and position embeddings have no weight decay; the Trainer exempts norms and biases only",
        "evaluation resizes and cuts as the checkpoint's preprocessing says",
        "every figure counts each picture once, the loss too",
    ),
)
