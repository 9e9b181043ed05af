"""Tiny runs for tests of the whole: pictures made on the fly, a recipe that trains a two-block network in seconds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from warm_python import warm_python

ROOT = Path(__file__).parent.parent
# Overrides that put a two-block network for 32 pixels in the place of a recipe's weights.
TINY = (
    *("model.pretrained=null", "model.name=vit_tiny_patch16_224", "model.img_size=32"),
    *("model.overrides.depth=2", "model.overrides.embed_dim=48", "run.num_threads=1"),
)
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def make_pictures(root: Path, *, train: int = 14, val: int = 5) -> Path:
    """Write root/{train,val}/{blue,green,red}/N.png: noise around three colours, the same at every call."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for split, count in (("train", train), ("val", val)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 60, (40, 50, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def tiny_config(root: Path, run_dir: Path, **sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a configuration whose sections are laid over a run of a few seconds."""
    config: dict[str, dict[str, Any]] = {
        "model": {
            "name": "vit_tiny_patch16_224",
            "pretrained": None,
            "img_size": 32,
            "drop_path_rate": 0.2,
            "overrides": {"depth": 2, "embed_dim": 48},
        },
        "data": {"root": str(root), "color_jitter": 0.3, "auto_augment": "trivialaugment", "random_erasing": 0.2},
        "train": {"steps": 8, "global_batch_size": 12, "per_device_batch_size": 4},
        "optimizer": {"lr": 1e-3, "layer_decay": 0.8},
        "schedule": {"warmup_steps": 2},
        "evaluation": {"every_steps": 4},
        "run": {"dir": str(run_dir), "num_threads": 1, "report": "off"},  # a page costs more than the run
    }
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    return config


def run_module(arguments: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m vit_finetune ARGUMENTS` in a process of its own and return what it printed."""
    return subprocess.run(
        [warm_python(), "-m", "vit_finetune", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        timeout=300,
        check=False,
    )


def everything(root: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
