"""timm's train.py, as its authors publish it beside the package: see exactness.py, which is given its path.

Workers are none (its default is 4), so that what is read can be noted. Its way to resume within an epoch is
`--recovery-interval` and `--resume RECOVERY_FILE`.
"""

from __future__ import annotations

import json
import runpy
import sys
from argparse import Namespace
from collections import deque
from pathlib import Path
from typing import Any

import timm
import torch
from peers.few_pictures import BATCH, COLOURS, EPOCHS, IMG_SIZE, NUM_PROCESSES, SAVE_EVERY
from peers.lives import Watch, scored_on
from timm.data import ImageDataset, create_dataset, create_loader, resolve_data_config
from timm.task import ClassificationTask
from timm.utils import init_distributed_device
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
        self._run(run_dir, *(["--resume", str(files[-1])] if resume else []))

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Return those of the last epoch."""
        found = torch.load(run_dir / "run" / "last.pth.tar", weights_only=False)
        weights: dict[str, Tensor] = found["state_dict"]
        return weights

    def scored(self, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Score an untrained network by the script's validate(): on a CPU the script itself wraps no network in DDP."""
        return scored_on((NUM_PROCESSES, 1), self._score, folder, "timm")

    def _run(self, run_dir: Path, *flags: str) -> None:
        sys.argv = [
            *(str(self.script), "--data-dir", str(self.data), "--model", "vit_tiny_patch16_224", "--img-size"),
            *(str(IMG_SIZE), "--model-kwargs", *(f"{name}={value}" for name, value in _NETWORK.items())),
            *("--num-classes", str(len(COLOURS)), "--batch-size", str(BATCH), "--epochs", str(EPOCHS)),
            *("--val-split", "val", "--device", "cpu", "--workers", "0", "--recovery-interval", str(SAVE_EVERY)),
            *("--output", str(run_dir), "--experiment", "run", *flags),
        ]
        runpy.run_path(str(self.script), run_name="__main__")

    def _score(self, file: Path) -> None:
        arguments = Namespace(device="cpu", prefetcher=False, channels_last=False, tta=0, log_interval=50)
        device = init_distributed_device(arguments)
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=len(COLOURS), **_NETWORK)
        config = resolve_data_config({"img_size": IMG_SIZE}, model=model)
        names = ("interpolation", "mean", "std", "crop_pct")
        loader = create_loader(
            create_dataset("", root=str(self.data), split="val"),
            input_size=(3, IMG_SIZE, IMG_SIZE),
            batch_size=BATCH,
            use_prefetcher=False,
            num_workers=0,
            distributed=arguments.distributed,
            device=device,
            **{name: config[name] for name in names},
        )
        validate = runpy.run_path(str(self.script), run_name="train")["validate"]
        found = validate(model, loader, nn.CrossEntropyLoss(), arguments, device=device, model_dtype=torch.float32)
        if arguments.rank == 0:
            file.write_text(json.dumps({"accuracy": found["top1"] / 100, "loss": found["loss"]}), encoding="utf-8")


def _tell(watch: Watch) -> None:
    """Let the data set note what is read of the training split, and the task tell it as it trains on it.

    timm's loader reads a batch while the one before is trained on.
    """
    read, train, samples = ImageDataset.__getitem__, ClassificationTask.forward, deque[int]()

    def reading(self: Any, index: int) -> Any:
        if "train" in Path(self.reader.filename(index, absolute=True)).parts[-3:]:
            samples.append(index)
        return read(self, index)

    def training(self: Any, images: Tensor, *arguments: Any) -> Any:
        watch.step([samples.popleft() for _ in range(len(images))])
        return train(self, images, *arguments)

    ImageDataset.__getitem__, ClassificationTask.forward = reading, training
