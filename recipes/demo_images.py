"""The quickstart's pictures: simulated textiles from the installed package `conformal-clip-data` (MIT licence).

They are not photographs: its authors drew grey woven textures of 250 x 250 pixels with the R package spc4sts,
flawless ("nominal"), with one fault of about 10 pixels ("local"), or with another weave ("global").

Source: Megahed et al. 2025, https://arxiv.org/abs/2501.12596.
"""

from __future__ import annotations

import filecmp
import shutil
from importlib.util import find_spec
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder
from vit_finetune.common.seeding import derive_seed


def write_textiles(dst: Path, num_train_per_class: int, num_val_per_class: int, seed: int) -> Path:
    """Copy a seeded choice of the textiles to `dst/train/CLASS` and `dst/val/CLASS`, whole or not at all.

    A `dst` that holds exactly these pictures is left as it is. Those of val do not depend on the number to train on.

    Raises:
        RequestError: the package is missing, a class has too few pictures, or `dst` holds something else.
    """
    plan: dict[Path, Path] = {}  # file below dst -> file of the package
    for folder in sorted(path for path in _textiles().iterdir() if path.is_dir()):
        # A picture's place in the queue follows from the seed and its own name: no generator, no order of files.
        queue = sorted(folder.glob("*.jpg"), key=lambda path: derive_seed(seed, path.parent.name, path.name))
        if min(num_train_per_class, num_val_per_class) < 1 or len(queue) < num_train_per_class + num_val_per_class:
            wanted = f"{num_train_per_class} to train on and {num_val_per_class} to validate on"
            raise RequestError(f"class {folder.name} has {len(queue)} pictures; got {wanted}, give at least 1 of each")
        val, train = queue[:num_val_per_class], queue[num_val_per_class:][:num_train_per_class]
        plan |= {Path("val", folder.name, path.name): path for path in val}
        plan |= {Path("train", folder.name, path.name): path for path in train}
    if dst.exists():
        found = {path.relative_to(dst) for path in dst.rglob("*") if path.is_file()}
        if found == set(plan) and all(filecmp.cmp(dst / name, path, shallow=False) for name, path in plan.items()):
            return dst
        raise RequestError(
            f"{dst} exists and holds something else than these pictures; choose another place or remove it"
        )
    with atomic_folder(dst) as temporary:
        for name, path in plan.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
    return dst


def _textiles() -> Path:
    """Return the picture folder of the installed package, which is not imported."""
    spec = find_spec("conformal_clip_data")
    if spec is None or not spec.submodule_search_locations:
        raise RequestError("the demo pictures are not installed; run: pip install conformal-clip-data==0.1.4")
    return Path(spec.submodule_search_locations[0], "data", "textile_images", "simulated")
