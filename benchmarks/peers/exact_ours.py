"""vit_finetune as its guide says: `train` and `train --resume`; see exactness.py."""

from __future__ import annotations

import gc
import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from peers.few_pictures import BATCH, EPOCHS, IMG_SIZE, NUM_PROCESSES, SAVE_EVERY
from peers.lives import Watch, in_processes
from safetensors.torch import load_file
from torch import Tensor

from vit_finetune import evaluate, finetune
from vit_finetune.training.objective import Objective

# What a life imports on its way: here once, not in every life.
_LAZY = ("torch._dynamo", "pandas", "jinja2", "rich.progress", "rich.table", "vit_finetune.evaluation.explain")


def warm_up() -> None:
    """Import what runs import late, and let what is there stay as it is: lives are forked from it."""
    for name in _LAZY:
        importlib.import_module(name)
    gc.freeze()


class OurSide:
    """A recipe with its defaults, but where it writes and when it saves.

    Args:
        data: folder of the pictures.
    """

    name, keeps, saves = "vit_finetune", (None, 1), "checkpoints/step-*"

    def __init__(self, data: Path) -> None:
        self.data = data

    def train(self, run_dir: Path, watch: Watch, *, resume: bool, keep: int | None) -> None:
        """Train; `resume` finds the newest whole checkpoint itself."""
        _tell(watch)
        finetune(self._config(run_dir, keep), resume=resume)

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Return those of the model that the run leaves."""
        return load_file(run_dir / "model" / "model.safetensors")

    def scored(self, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Train on three processes; what the run tells, and the finished model scored in one process."""
        run_dir, file = folder / "ours", folder / "ours.json"
        in_processes(NUM_PROCESSES, partial(finetune, self._config(run_dir, None)), folder / "ours.log")

        def again() -> None:
            found = evaluate(run_dir / "model", self.data / "val")
            file.write_text(json.dumps({**found.metrics, "num_samples": found.num_samples}), encoding="utf-8")

        in_processes(1, again, folder / "ours.log")
        told, exact = (json.loads(path.read_text(encoding="utf-8")) for path in (run_dir / "metrics.json", file))
        names = {"accuracy": "accuracy", "loss": "loss", "num_counted": "num_samples"}
        return tuple({name: found[key] for name, key in names.items()} for found in (told, exact))  # type: ignore[return-value]

    def _config(self, run_dir: Path, keep: int | None) -> dict[str, Any]:
        return {
            "model": {
                "name": "vit_tiny_patch16_224",
                "pretrained": None,
                "img_size": IMG_SIZE,
                "overrides": {"depth": 2, "embed_dim": 48},
            },
            "data": {"root": str(self.data), "num_workers": 0},
            "train": {"epochs": EPOCHS, "global_batch_size": BATCH},
            "checkpoint": {"every_steps": SAVE_EVERY, **({} if keep is None else {"keep_last": keep})},
            "run": {"dir": str(run_dir), "num_threads": 1, "device": "cpu"},
        }


def _tell(watch: Watch) -> None:
    """Let the loss tell the samples of each step; a step has one micro-batch here."""
    losses = Objective.losses

    def telling(self: Objective, model: Any, batch: Any, **options: Any) -> Tensor:
        watch.step(batch.indices.tolist())
        return losses(self, model, batch, **options)

    Objective.losses = telling  # type: ignore[method-assign]
