"""timm's train.py, as its authors publish it beside the package: see exactness.py, which is given its path.

Workers are none (its default is 4), so that the pictures of a step are read in that step and can be noted. The
documented way to resume within an epoch is `--recovery-interval` and `--resume RECOVERY_FILE`.
"""

from __future__ import annotations

import csv
import runpy
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import timm.data.dataset
import torch
from peers.few_pictures import BATCH, COLOURS, EPOCHS, IMG_SIZE, NUM_PROCESSES, SAVE_EVERY
from peers.lives import Watch, in_processes
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import Tensor, nn

_NETWORK = {"img_size": IMG_SIZE, "depth": 2, "embed_dim": 48}


class TimmSide:
    """The script with its defaults, but the number of workers.

    Args:
        data: folder of the pictures.
        script: timm's train.py.
    """

    name, keeps, saves = "timm's train.py", (None,), "run/recovery-*.pth.tar"

    def __init__(self, data: Path, script: Path) -> None:
        self.data, self.script = data, script

    def train(self, run_dir: Path, watch: Watch, *, resume: bool, keep: int | None) -> None:
        """Train; resume from the newest recovery file (the script keeps two, and no option changes that)."""
        assert keep is None
        _tell(watch)
        files = sorted((run_dir / "run").glob("recovery-*.pth.tar"), key=lambda path: path.stat().st_mtime)
        self._run(run_dir, *(["--resume", str(files[-1])] if resume else []), epochs=EPOCHS)

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Return those of the last epoch."""
        found = torch.load(run_dir / "run" / "last.pth.tar", weights_only=False)
        weights: dict[str, Tensor] = found["state_dict"]
        return weights

    def scored(self, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Train for an epoch on three processes; what its summary tells, and its own validate() in one process."""
        run_dir = folder / "timm"
        in_processes(NUM_PROCESSES, partial(self._run, run_dir, epochs=1), folder / "timm.log")
        with (run_dir / "run" / "summary.csv").open(encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        told = {"accuracy": float(last["eval_top1"]) / 100, "loss": float(last["eval_loss"])}
        exact = self._validated(run_dir / "run" / "last.pth.tar")
        return told, {"accuracy": exact["top1"] / 100, "loss": exact["loss"]}

    def _run(self, run_dir: Path, *flags: str, epochs: int) -> None:
        sys.argv = [
            *(str(self.script), "--data-dir", str(self.data), "--model", "vit_tiny_patch16_224", "--img-size"),
            *(str(IMG_SIZE), "--model-kwargs", *(f"{name}={value}" for name, value in _NETWORK.items())),
            *("--num-classes", str(len(COLOURS)), "--batch-size", str(BATCH), "--epochs", str(epochs)),
            *("--val-split", "val", "--device", "cpu", "--workers", "0", "--recovery-interval", str(SAVE_EVERY)),
            *("--output", str(run_dir), "--experiment", "run", *flags),
        ]
        runpy.run_path(str(self.script), run_name="__main__")

    def _validated(self, checkpoint: Path) -> dict[str, float]:
        options: dict[str, Any] = {"num_classes": len(COLOURS), **_NETWORK}
        model = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(checkpoint), **options)
        config = resolve_data_config({"img_size": IMG_SIZE}, model=model)
        loader = create_loader(
            create_dataset("", root=str(self.data), split="val"),
            input_size=(3, IMG_SIZE, IMG_SIZE),
            batch_size=BATCH,
            use_prefetcher=False,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            num_workers=0,
            device=torch.device("cpu"),
        )
        arguments = Namespace(
            prefetcher=False, channels_last=False, tta=0, distributed=False, log_interval=50, rank=0, local_rank=0
        )
        validate = runpy.run_path(str(self.script), run_name="train")["validate"]
        found: dict[str, float] = validate(
            model, loader, nn.CrossEntropyLoss(), arguments, device=torch.device("cpu"), model_dtype=torch.float32
        )
        return found


def _tell(watch: Watch) -> None:
    """Let the data set tell each batch of the training split once it is read."""
    read, batch = timm.data.dataset.ImageDataset.__getitem__, []

    def reading(self: Any, index: int) -> Any:
        if "train" in Path(self.reader.filename(index, absolute=True)).parts[-3:]:
            batch.append(index)
            if len(batch) == BATCH:
                watch.step(batch)
                batch.clear()
        return read(self, index)

    timm.data.dataset.ImageDataset.__getitem__ = reading
