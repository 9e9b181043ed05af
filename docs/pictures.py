"""The pictures of docs/concepts.md, made from the demo weights and a photograph that scikit-learn carries.

Run: python docs/pictures.py (needs the demo weights, scikit-learn and matplotlib; writes docs/pictures/*.png)
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vit_finetune import attention_maps, from_pretrained
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.models import VisionTransformer

SIZE = 224


def photograph() -> Image.Image:
    """Return the middle of scikit-learn's flower (by dany13, CC BY 2.0), SIZE pixels a side."""
    from sklearn.datasets import load_sample_image

    whole = Image.fromarray(load_sample_image("flower.jpg"))
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    return whole.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def cut_into_patches(picture: Image.Image, model: VisionTransformer, *, gap: int = 2) -> Image.Image:
    """Return the picture as the patches that the network makes tokens of, with gaps between them."""
    (rows, columns), (height, width) = model.config.grid_size, model.config.patch_size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for row in range(rows):
        for column in range(columns):
            box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
            sheet.paste(picture.crop(box), (column * (width + gap), row * (height + gap)))
    return sheet


def coloured(values: Tensor | np.ndarray, *, scale: int) -> Image.Image:
    """Return numbers [h, w] as a picture, the lowest dark, the highest bright, `scale` pixels a number."""
    array = np.asarray(values, dtype=np.float64)
    array = (array - array.min()) / (np.ptp(array) or 1.0)
    pixels = (mpl.colormaps["viridis"](array)[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((array.shape[1] * scale, array.shape[0] * scale), Image.Resampling.NEAREST)


def position_similarity(model: VisionTransformer, *, every: int = 4) -> Image.Image:
    """Return how alike a position is to all others: a small map for every fourth place of the grid, where it lies."""
    rows, columns = model.config.grid_size
    table = functional.normalize(model.pos_embed[0, -rows * columns :].detach(), dim=1)
    alike = (table @ table.T).reshape(rows, columns, rows, columns)
    places = range(every // 2, rows, every)
    maps = [[coloured(alike[row, column], scale=3) for column in places] for row in places]
    side, gap = maps[0][0].width, 4
    sheet = Image.new("RGB", (len(places) * (side + gap) - gap,) * 2, "white")
    for row, line in enumerate(maps):
        for column, one in enumerate(line):
            sheet.paste(one, (column * (side + gap), row * (side + gap)))
    return sheet


def attention_of_class_token(picture: Image.Image, model: VisionTransformer, x: Tensor) -> Image.Image:
    """Return the picture beside what the class token of the last block looks at, the mean of its heads."""
    with torch.inference_mode():
        maps = attention_maps(model, x)
    rows, columns = model.config.grid_size
    looked_at = maps[-1][0].mean(dim=0)[0, -rows * columns :].reshape(rows, columns)
    sheet = Image.new("RGB", (2 * SIZE + 4, SIZE), "white")
    sheet.paste(picture, (0, 0))
    sheet.paste(coloured(looked_at, scale=model.config.patch_size[0]), (SIZE + 4, 0))
    return sheet


def main(folder: Path) -> None:
    """Write the pictures."""
    model, report = from_pretrained("demo", num_classes=0, img_size=SIZE)
    assert isinstance(model, VisionTransformer)
    assert report.preprocess is not None
    model.eval()
    picture = photograph()
    x = build_eval_transform(report.preprocess.with_size(SIZE, SIZE))(picture)[None]
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "patches": cut_into_patches(picture, model),
        "positions": position_similarity(model),
        "attention": attention_of_class_token(picture, model, x),
    }
    for name, image in made.items():
        image.quantize(128).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
