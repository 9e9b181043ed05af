"""Fine-tune on pictures that Python holds: a torch data set, a list, anything with a length and items.

Run: python recipes/custom_dataset.py FOLDER [KEY=VALUE]...
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from vit_finetune import Config, RequestError, WorkError, finetune, splits_from


class Photos(Dataset):
    """Put yours in its place: item i is (PIL image, class name), without transforms; the recipe has its own."""

    def __init__(self, root: str | Path) -> None:
        self.files = sorted(path for path in Path(root).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """Return a picture and its class: here, the folder that it lies in."""
        return Image.open(self.files[index]), self.files[index].parent.name


def main(arguments: list[str]) -> None:
    """Train on the data set, a fifth of each class held out, and say how good the model is."""
    if not arguments or "=" in arguments[0]:
        raise RequestError("give a folder of class folders: custom_dataset.py FOLDER [KEY=VALUE]...")
    folder, *overrides = arguments
    pictures = splits_from(Photos(folder), val_fraction=0.2)
    overrides = ["data.source=python", "run.dir=runs/custom_dataset", *overrides]
    result = finetune(Config.load("linear_probe", overrides=overrides), data=pictures)
    print(f"accuracy on the held-out pictures: {result.metrics['accuracy']:.1%}; the model: {result.run_dir / 'model'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
