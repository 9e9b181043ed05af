"""Accelerate's documented way to save, resume and score, for exactness.py.

Source: Accelerate's guide "Checkpointing" (save_state, load_state, skip_first_batches, automatic checkpoint naming) and
"Gathering metrics" (gather_for_metrics).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from peers.few_pictures import BATCH, COLOURS, EPOCHS, IMG_SIZE, NUM_PROCESSES, SAVE_EVERY, Photos
from peers.lives import Watch, scored_on
from torch import Tensor, nn
from torch.utils.data import DataLoader


class AccelerateSide:
    """A loop with Accelerate as its guide has it.

    Args:
        data: folder of the pictures.
        seedable: ask for `use_seedable_sampler` and tell the loader its epoch, which the guide on resuming does not.
    """

    saves = "checkpoints/checkpoint_*"

    def __init__(self, data: Path, *, seedable: bool = False) -> None:
        self.data, self.seedable = data, seedable
        self.name = "Accelerate's guide" + (", with use_seedable_sampler and set_epoch" if seedable else "")
        self.keeps = () if seedable else (None, 1)

    def train(self, run_dir: Path, watch: Watch, *, resume: bool, keep: int | None) -> None:
        """Train, saving by automatic names; resume with load_state() and skip_first_batches."""
        set_seed(0)
        saves = run_dir / "checkpoints"
        number = 1 + max((int(path.name.rpartition("_")[2]) for path in saves.glob("*")), default=-1) if resume else 0
        naming = ProjectConfiguration(
            project_dir=str(run_dir), automatic_checkpoint_naming=True, total_limit=keep, iteration=number
        )
        accelerator = Accelerator(
            cpu=True,
            project_config=naming,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=self.seedable),
        )
        loader = DataLoader(Photos(self.data, "train"), BATCH, shuffle=True)
        model, optimizer = network()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
        if resume:
            accelerator.load_state()
        first = number * SAVE_EVERY
        step = first
        for epoch in range(first // len(loader), EPOCHS):
            model.train()
            done = first % len(loader) if epoch == first // len(loader) else 0
            if self.seedable:
                loader.set_epoch(epoch)
            for batch in accelerator.skip_first_batches(loader, done) if done else loader:
                watch.step(batch["index"].tolist())
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"]))
                optimizer.step()
                scheduler.step()
                step += 1
                if step % SAVE_EVERY == 0:
                    accelerator.save_state()
        torch.save(accelerator.unwrap_model(model).state_dict(), run_dir / "final.pt")

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Return what the end of training left."""
        found: dict[str, Tensor] = torch.load(run_dir / "final.pt", weights_only=True)
        return found

    def scored(self, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Score an untrained network; `gather` beside it is what there was before gather_for_metrics."""
        return scored_on((NUM_PROCESSES, 1), self._score, folder, "accelerate")

    def _score(self, file: Path) -> None:
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model, loader = accelerator.prepare(network()[0].eval(), DataLoader(Photos(self.data, "val"), BATCH))
        right: dict[str, list[bool]] = {"gather_for_metrics": [], "gather": []}
        for batch in loader:
            with torch.no_grad():
                guesses = model(batch["pixel_values"]).argmax(dim=1)
            for name, rows in right.items():
                told, labels = getattr(accelerator, name)((guesses, batch["labels"]))
                rows.extend((told == labels).tolist())
        exact, plain = right.values()
        figures = {"accuracy": sum(exact) / len(exact), "num_counted": len(exact)}
        more = {"gather accuracy": sum(plain) / len(plain), "gather num_counted": len(plain)}
        if accelerator.is_main_process:
            file.write_text(json.dumps(figures | more), encoding="utf-8")
        accelerator.end_training()


def network() -> tuple[Any, torch.optim.Optimizer]:
    """Return a two-block network and its optimizer."""
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=48, img_size=IMG_SIZE, num_classes=len(COLOURS)
    )
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)
