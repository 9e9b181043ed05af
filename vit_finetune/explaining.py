"""What a finished model looks at in pictures, as arrays and as files: the assembly of the explanations.

The arithmetic is `evaluation/explain.py`'s and `evaluation/explain_gradients.py`'s; here pictures are opened as the
model sees them, and what comes out is drawn. Every picture is shown after the crop: what was cut off had no say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.evaluation.explain import (
    attention_distances,
    attention_rollout,
    colourise,
    overlay,
    patch_filters,
    position_similarity,
)
from vit_finetune.evaluation.explain_gradients import grad_cam, require_grad_cam
from vit_finetune.models import attention_maps
from vit_finetune.pictures import pictures_in
from vit_finetune.predictor import Predictor, batched

if TYPE_CHECKING:
    from vit_finetune.pictures import Picture
    from vit_finetune.predictor import Model

_TILE = 96  # pixels of a small picture in a sheet
_FILTER_TILE = 64
_GAP = 4


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model looks at in one picture.

    Attributes:
        path: the picture's file; None for one from memory.
        label: the class that the gradients are of: the one asked for, else the first guess.
        probability: of that class, as `Predictor` gives it.
        image: the picture as the network sees it, mode RGB, after resizing and cropping.
        attention: [layers, heads, gh, gw], how much the class token (without one: the mean patch) looks at each patch.
        rollout: [gh, gw], how much of each patch could reach it over all layers; adds up to 1.
        grad_cam: [H, W], which parts speak for `label`, in [0, 1].
        distances: [layers, heads], the mean distance that patches look over, in patches.
    """

    path: str | None
    label: str
    probability: float
    image: Image.Image
    attention: np.ndarray
    rollout: np.ndarray
    grad_cam: np.ndarray
    distances: np.ndarray


def explain(
    run_or_model: Model | Predictor, images: Picture | Iterable[Picture], *, label: str | None = None
) -> Iterator[Explanation]:
    """Yield for each picture what a finished model looks at.

    Args:
        run_or_model: what `Predictor` takes, or a Predictor.
        images: what a Predictor is called with; one picture is in memory at a time.
        label: the class that Grad-CAM is of; None takes each picture's first guess.

    Raises:
        RequestError: grad-cam is missing, the model does not know the class, or a picture cannot be read.
    """
    require_grad_cam()
    predictor = run_or_model if isinstance(run_or_model, Predictor) else Predictor(run_or_model)
    if label is not None and label not in predictor.class_names:
        raise RequestError(f"the model does not know the class {label!r}; it knows {', '.join(predictor.class_names)}")
    for (picture,) in batched(pictures_in(images), 1):
        yield _explained(predictor, picture, label)


def _explained(predictor: Predictor, picture: Path | Image.Image, label: str | None) -> Explanation:
    """Look at one picture."""
    model, x = predictor.model, predictor.pixels([picture])
    found = predictor(picture)
    label = label or found.labels[0]
    column = predictor.class_names.index(label)
    with torch.inference_mode():
        maps = attention_maps(model, x)
    grid, prefix = model.patch_embed.grid_of(x), model.num_prefix_tokens
    layers = [item[0, :, 0, prefix:] if prefix else item[0].mean(dim=1) for item in maps]
    return Explanation(
        path=str(picture) if isinstance(picture, Path) else None,
        label=label,
        probability=float(found.probabilities[0, column]),
        image=_as_seen(x[0].cpu(), predictor),
        attention=rearrange(torch.stack(layers), "l h (r c) -> l h r c", r=grid[0]).float().cpu().numpy(),
        rollout=rearrange(attention_rollout(maps, num_prefix_tokens=prefix)[0], "(r c) -> r c", r=grid[0])
        .float()
        .cpu()
        .numpy(),
        grad_cam=grad_cam(model, x, classes=[column])[0],
        distances=attention_distances(maps, grid_size=grid, num_prefix_tokens=prefix).numpy(),
    )


def _as_seen(pixels: Tensor, predictor: Predictor) -> Image.Image:
    """Return normalised pixels [C, H, W] as a picture again; of other than three channels the first, in grey."""
    spec = predictor.preprocess
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (spec.mean, spec.std))
    values = (pixels * std + mean).clamp(0, 1).mul(255).round().byte()
    shown = values if len(values) == 3 else values[:1].expand(3, -1, -1)
    return Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())


def write_explanations(
    run_or_model: Model | Predictor,
    images: Picture | Iterable[Picture],
    dst: str | Path,
    *,
    label: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write explanations as pictures and arrays: a folder a picture, and what is the model's own beside them.

    Args:
        run_or_model: what `explain` takes.
        images: what `explain` takes.
        dst: the folder to make.
        label: the class that Grad-CAM is of; None takes each picture's first guess.
        overwrite: replace an older folder.

    Returns:
        `dst`.

    Raises:
        RequestError: as `explain`, or `dst` exists.
    """
    dst = Path(dst)
    if dst.exists() and not overwrite:
        raise RequestError(f"{dst} exists already; give another name or --overwrite")
    if overwrite and dst.exists() and not (dst / "explanations.json").is_file():
        raise RequestError(f"{dst} does not hold explanations; remove it yourself")
    predictor = run_or_model if isinstance(run_or_model, Predictor) else Predictor(run_or_model)
    with atomic_folder(dst, replace=overwrite) as folder:
        told, distances = [], []
        for place, item in enumerate(explain(predictor, images, label=label)):
            name = f"{place + 1:04d}-{'picture' if item.path is None else Path(item.path).stem}"
            _write_one(folder / name, item)
            told.append({"folder": name, "path": item.path, "label": item.label, "probability": item.probability})
            distances.append(item.distances)
        if not told:
            raise RequestError("there are no pictures to explain")
        notes = _write_model(folder, predictor, np.mean(distances, axis=0))
        write_json(folder / "explanations.json", {"pictures": told, "notes": notes})
    return dst


def _write_one(folder: Path, item: Explanation) -> None:
    """Write the pictures and arrays of one picture."""
    folder.mkdir()
    item.image.save(folder / "picture.png")
    overlay(item.image, item.rollout).save(folder / "rollout.png")
    overlay(item.image, item.grad_cam).save(folder / "grad_cam.png")
    small = item.image.resize((_TILE, round(_TILE * item.image.height / item.image.width)))
    sheet([[overlay(small, head, strength=0.7) for head in layer] for layer in item.attention]).save(
        folder / "attention.png"
    )
    arrays: dict[str, Any] = {"attention": item.attention, "rollout": item.rollout, "grad_cam": item.grad_cam}
    np.savez_compressed(folder / "arrays.npz", **arrays, distances=item.distances)


def _write_model(folder: Path, predictor: Predictor, distances: np.ndarray) -> list[str]:
    """Write what does not depend on a picture, or is a mean over them; return what could not be drawn and why."""
    notes: list[str] = []
    filters = patch_filters(predictor.model).numpy()
    sheet(list(_in_rows([_filter_picture(item) for item in filters], 7))).save(folder / "patch_filters.png")
    arrays: dict[str, Any] = {"patch_filters": filters, "attention_distances": distances}
    try:
        similar = position_similarity(predictor.model).numpy()
        rows = [[_map_picture(cell) for cell in row] for row in similar]
        sheet(rows).save(folder / "position_similarity.png")
        arrays["position_similarity"] = similar
    except RequestError as error:
        notes.append(str(error))
    np.savez_compressed(folder / "model.npz", **arrays)
    _draw_distances(folder / "attention_distance.png", distances, predictor.model.config.grid_size)
    return notes


def _filter_picture(item: np.ndarray) -> Image.Image:
    """Return a filter [C, p, p] as a picture, grey where its weight is zero."""
    shown = item if item.shape[0] == 3 else np.repeat(item[:1], 3, axis=0)
    scaled = 127.5 + 127.5 * shown / max(1e-12, float(np.abs(shown).max()))
    picture = Image.fromarray(scaled.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8))
    return picture.resize((_FILTER_TILE, _FILTER_TILE), Image.Resampling.NEAREST)


def _map_picture(cell: np.ndarray) -> Image.Image:
    """Return cosines [gh, gw] as a small picture; -1 is darkest and 1 brightest."""
    scale = max(1, 42 // max(cell.shape))
    picture = Image.fromarray(colourise((cell + 1) / 2))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _in_rows(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut items into rows."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return pictures of one size side by side, row below row, on white.

    Args:
        rows: at least one picture; the last rows may be shorter.
    """
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    size = columns * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _GAP
    paper = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            paper.paste(picture, (_GAP + x * (width + _GAP), _GAP + y * (height + _GAP)))
    return paper


def _draw_distances(path: Path, distances: np.ndarray, grid_size: tuple[int, int]) -> None:
    """Draw the distance of every head over the layers, as the right part of figure 7 of the ViT paper."""
    from matplotlib.figure import Figure  # comes with grad-cam; a Figure of its own needs no display

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for layer, heads in enumerate(distances):
        axes.scatter([layer + 1] * len(heads), heads, s=14, color="tab:blue")
    axes.set(xlabel="layer", ylabel=f"mean distance (patches, of {grid_size[0]}x{grid_size[1]})")
    axes.set_title("How far each head looks")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(1, len(distances) + 1))
    figure.savefig(path, dpi=120)
