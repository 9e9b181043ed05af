"""The same bytes through ours, timm's folder, transformers' folders and ONNX Runtime: how often do they agree?

    python benchmarks/export_agreement.py MODEL PHOTOS WORK [--count 1000]

MODEL is a run or a model folder. From the photographs below PHOTOS the script makes `--count` files in WORK/pictures: a
random crop each, of every second proportion, saved by turns as a plain JPEG, a JPEG turned by EXIF, a CMYK JPEG, a gray
JPEG, a 16-bit gray PNG, a PNG with alpha and a palette PNG. Each side then prepares them itself. Where the side is not
said to open files its own way, pictures come from our decoder; `Image.open` is timm's folder fed by
`Image.open(...).convert("RGB")`, as timm's own data sets do, and `load_image` what transformers' pipelines do.
Probabilities are softmax without temperature. Results: WORK/agreement.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from vit_finetune import RequestError, export_model, from_pretrained
from vit_finetune.data import decode_image, find_images
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.export.onnx_session import OnnxNetwork
from vit_finetune.predict import model_source

KINDS = ("plain", "turned", "cmyk", "gray", "deep", "alpha", "palette")
ORIENTATION = 0x0112
Reader = Callable[[Path], Tensor]


def make_pictures(photos: Path, folder: Path, count: int) -> list[Path]:
    """Write `count` awkward files, the same at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = find_images([photos])
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        photo = decode_image(sources[index % len(sources)])
        width = int(rng.integers(max(photo.width // 3, 1), photo.width + 1))
        height = int(rng.integers(max(photo.height // 3, 1), photo.height + 1))
        left, top = int(rng.integers(0, photo.width - width + 1)), int(rng.integers(0, photo.height - height + 1))
        crop = photo.crop((left, top, left + width, top + height))
        made.append(save(crop, folder / f"{index:05d}", KINDS[index % len(KINDS)], int(rng.integers(2, 9))))
    return made


def save(picture: Image.Image, stem: Path, kind: str, orientation: int) -> Path:
    """Save a picture as one kind of file."""
    jpeg, png = stem.with_suffix(f".{kind}.jpg"), stem.with_suffix(f".{kind}.png")
    if kind == "deep":
        gray = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        Image.fromarray(gray).save(png)
    elif kind == "alpha":
        picture.putalpha(picture.convert("L"))
        picture.save(png)
    elif kind == "palette":
        picture.quantize(64).save(png)
    elif kind == "turned":
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.save(jpeg, quality=90, exif=exif)
    else:
        picture.convert({"plain": "RGB", "cmyk": "CMYK", "gray": "L"}[kind]).save(jpeg, quality=90)
    return jpeg if jpeg.exists() else png


def readers(model: str, work: Path) -> Iterator[tuple[str, Reader]]:
    """Yield each side's name and its way from a path to logits [1, K]."""
    for target, name in (("timm", "timm"), ("transformers", "hf"), ("onnx", "onnx")):
        try:
            export_model(model, work / name, to=target, overwrite=True)
        except RequestError as error:
            print(f"{target}: {error}")
    network = timm.create_model(f"local-dir:{work / 'timm'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    yield "timm folder, timm", lambda path: network(transform(decode_image(path))[None])
    yield "timm folder, timm, Image.open", lambda path: network(transform(Image.open(path).convert("RGB"))[None])
    yield "timm folder, transformers", transformers_reader(work / "timm", decode_image)
    if (work / "hf").exists():
        yield "native folder, transformers", transformers_reader(work / "hf", decode_image)
        from transformers.image_utils import load_image

        yield "native folder, load_image", transformers_reader(work / "hf", lambda path: load_image(str(path)))
    session = OnnxNetwork(work / "onnx" / "model.onnx")
    yield (
        "ONNX Runtime",
        lambda path: session(torch.from_numpy(np.array(decode_image(path))).permute(2, 0, 1)[None]),
    )


def transformers_reader(folder: Path, opened: Callable[[Path], Image.Image]) -> Reader:
    """Return what transformers makes of a picture."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)

    def read(path: Path) -> Tensor:
        logits: Tensor = model(**processor(images=opened(path), return_tensors="pt")).logits
        return logits

    return read


@torch.inference_mode()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    paths = make_pictures(arguments.photos, arguments.work / "pictures", arguments.count)
    ours, report = from_pretrained(model_source(arguments.model))
    ours.eval()
    transform = build_eval_transform(report.preprocess)
    expected = torch.cat([ours(transform(decode_image(path))[None]) for path in paths]).softmax(1)
    rows = []
    for name, read in readers(arguments.model, arguments.work):
        found = torch.cat([read(path) for path in paths]).softmax(1)
        off = (found - expected).abs().amax(1)
        agree = found.argmax(1) == expected.argmax(1)
        kinds = {
            kind: int((~agree)[index :: len(KINDS)].sum()) for index, kind in enumerate(KINDS)
        }  # disagreements of each kind
        rows.append(
            {
                "side": name,
                "top1_agrees": int(agree.sum()),
                "num_pictures": len(paths),
                "within_1e-3": int((off <= 1e-3).sum()),
                "median_difference": float(off.median()),
                "largest_difference": float(off.max()),
                "disagreements": {kind: number for kind, number in kinds.items() if number},
                "beyond_1e-3": {kind: int((off[index :: len(KINDS)] > 1e-3).sum()) for index, kind in enumerate(KINDS)},
            }
        )
        row = rows[-1]
        print(
            f"{name:<32} top-1 {row['top1_agrees']} of {len(paths)}  within 1e-3 {row['within_1e-3']}  median "
            f"{row['median_difference']:.1e}  largest {row['largest_difference']:.1e}  beyond: {row['beyond_1e-3']}",
            flush=True,
        )
    (arguments.work / "agreement.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
