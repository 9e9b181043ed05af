"""transformers' Trainer as documented, `save_strategy="steps"` and `resume_from_checkpoint=True`; for exactness.py."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.few_pictures import BATCH, COLOURS, EPOCHS, IMG_SIZE, NUM_PROCESSES, SAVE_EVERY, Photos
from peers.lives import Watch, scored_on
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed


class TrainerSide:
    """Trainer with its defaults, but where it writes and when it saves.

    Args:
        data: folder of the pictures.
    """

    name, keeps, saves = "transformers' Trainer", (None, 1), "checkpoint-*"

    def __init__(self, data: Path) -> None:
        self.data = data

    def train(self, run_dir: Path, watch: Watch, *, resume: bool, keep: int | None) -> None:
        """Train; Trainer finds the newest checkpoint itself."""
        trainer = self._trainer(run_dir, watch, save_total_limit=keep)
        trainer.train(resume_from_checkpoint=True if resume else None)
        torch.save(trainer.model.state_dict(), run_dir / "final.pt")

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Return what the end of training left."""
        found: dict[str, Tensor] = torch.load(run_dir / "final.pt", weights_only=True)
        return found

    def scored(self, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Evaluate an untrained network."""
        return scored_on((NUM_PROCESSES, 1), partial(self._score, folder), folder, "trainer")

    def _score(self, folder: Path, file: Path) -> None:
        trainer = self._trainer(folder / "trainer", None)
        told = trainer.evaluate(Photos(self.data, "val"))
        figures = {name: told[f"eval_{name}"] for name in ("accuracy", "loss", "num_counted")}
        if trainer.is_world_process_zero():
            file.write_text(json.dumps(figures), encoding="utf-8")

    def _trainer(self, folder: Path, watch: Watch | None, **options: Any) -> Trainer:
        set_seed(0)
        model = ViTForImageClassification(
            ViTConfig(
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=192,
                image_size=IMG_SIZE,
                num_labels=len(COLOURS),
            )
        )
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            save_strategy="steps",
            save_steps=SAVE_EVERY,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
            **options,
        )
        kind = Trainer if watch is None else partial(_Told, watch)
        return kind(
            model=model,
            args=arguments,
            data_collator=partial(_collate, with_index=watch is not None),
            train_dataset=Photos(self.data, "train"),
            compute_metrics=_metrics,
        )


class _Told(Trainer):
    """A Trainer that tells the samples of each step."""

    def __init__(self, watch: Watch, **options: Any) -> None:
        super().__init__(**options)
        self._watch = watch

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        """Tell, then do what Trainer does."""
        self._watch.step(inputs.pop("index").tolist())
        return super().training_step(model, inputs, *arguments, **options)


def _collate(rows: list[dict[str, Any]], *, with_index: bool) -> dict[str, Tensor]:
    batch = {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
    return batch | ({"index": torch.tensor([row["index"] for row in rows])} if with_index else {})


def _metrics(told: Any) -> dict[str, float]:
    guesses = np.argmax(told.predictions, axis=1)
    return {"accuracy": float((guesses == told.label_ids).mean()), "num_counted": len(guesses)}
