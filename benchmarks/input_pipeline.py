"""Pictures per second and core of input pipelines: timm's loader, torchvision, Hugging Face datasets, and ours.

    taskset -c 0 python benchmarks/input_pipeline.py FOLDER [--rounds 5] [--size 224]

FOLDER holds pictures at any depth. Everybody reads the same files, crops at random (bicubic), flips, normalises and
makes batches of float32 in this process, one thread, no worker: what a core does. The contenders take turns; what
counts is the processor's time (not the clock's: other programs share the machine) of the best of the rounds. Files lie
in the system's page cache.
A second table compares decoders, a third what decoding at a reduced scale costs and changes.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets as tv_datasets
from torchvision import transforms as tv_transforms

from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import find_images
from vit_finetune.data.cache import PictureCache, expected_bytes, write_part
from vit_finetune.data.decode import decode_jpeg, draft_jpeg
from vit_finetune.data.image_set import FileStore, ImageSet
from vit_finetune.data.images import decode_image
from vit_finetune.data.loader import train_batches
from vit_finetune.data.prepared import PreparedImages, TrainPreparation
from vit_finetune.data.transforms import build_train_transform

BATCH = 32
TIMM = "timm's loader"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Contender = Callable[[], Iterable[Any]]


def class_folder(files: list[Path], root: Path) -> Path:
    """Lay links to the pictures into one class folder, as the others' folder readers want it."""
    (root / "class").mkdir(parents=True)
    for number, path in enumerate(files):
        (root / "class" / f"{number:06d}{path.suffix.lower()}").symlink_to(path.resolve())
    return root


def usual_transform(size: int) -> Any:
    """Return torchvision's reference transform."""
    return tv_transforms.Compose(
        [
            tv_transforms.RandomResizedCrop(size, interpolation=tv_transforms.InterpolationMode.BICUBIC),
            tv_transforms.RandomHorizontalFlip(),
            tv_transforms.ToTensor(),
            tv_transforms.Normalize(MEAN, STD),
        ]
    )


def timm_loader(root: Path, size: int) -> Contender:
    """Return timm's loader."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(root)),
        input_size=(3, size, size),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=False,
        color_jitter=None,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
    )
    return lambda: loader


def timm_bytes(root: Path, size: int) -> Contender:
    """Return what timm's prefetcher takes from its workers: bytes, which it normalises on the GPU."""
    from timm.data import create_dataset, create_transform
    from timm.data.loader import fast_collate

    transform = create_transform(
        size, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bicubic"
    )
    dataset = create_dataset("", root=str(root), transform=transform)
    return lambda: DataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=fast_collate)


def image_folder(root: Path, size: int) -> Contender:
    """Return torchvision's folder."""
    dataset = tv_datasets.ImageFolder(str(root), usual_transform(size))
    return lambda: DataLoader(dataset, batch_size=BATCH, shuffle=True)


def hf_datasets(root: Path, size: int) -> Contender:
    """Return a Hugging Face data set with torchvision's transform."""
    import datasets

    paths = sorted(str(path) for path in (root / "class").iterdir())
    table = datasets.Dataset.from_dict({"image": paths, "label": [0] * len(paths)})
    table = table.cast_column("image", datasets.Image())
    transform = usual_transform(size)

    def apply(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [transform(image.convert("RGB")) for image in rows["image"]], "label": rows["label"]}

    return lambda: DataLoader(table.with_transform(apply), batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]


def ours(root: Path, size: int, cache: Path | None, *, as_bytes: bool = False, **options: Any) -> Contender:
    """Return our loader, from the files or from a cache that is filled here."""
    names = tuple(sorted(f"class/{path.name}" for path in (root / "class").iterdir()))
    plain = ImageSet(FileStore(root, names), np.zeros(len(names), dtype=np.int64))
    images: ImageSet = PreparedImages.of(plain, TrainPreparation(**options))
    if cache is not None:
        images = filled(PictureCache(cache, 10**12), PreparedImages.of(plain, TrainPreparation(**options)))
    spec = PreprocessSpec(input_size=(3, size, size), mean=MEAN, std=STD)
    transform = build_train_transform(spec, resizer=options.get("resizer", "pil"), as_bytes=as_bytes)
    sizes = {"global_batch_size": BATCH, "per_device_batch_size": BATCH}
    return lambda: train_batches(images, transform, seed=0, start_step=0, num_steps=-(-len(names) // BATCH), **sizes)


def filled(cache: PictureCache, images: PreparedImages) -> ImageSet:
    """Return the pictures, read from a new entry."""
    key = f"a{len(list(cache.root.glob('a*')))}"
    with cache.writing(key):
        folder = cache.begin(key, expected_bytes(images))
        write_part(folder, 0, images, range(len(images)), num_workers=0, skip_bad=False)
        cache.finish(key, folder, len(images), {})
    found = cache.find(key, images)
    assert found is not None
    return found


def number_in(batch: Any) -> int:
    """Return the pictures of what a contender yields."""
    if isinstance(batch, list) and not isinstance(batch[0], torch.Tensor):
        return sum(len(part) for part in batch)
    return len(batch["label"] if isinstance(batch, dict) else batch[0])


def measured(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Return the best pictures per second of each."""
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(rounds):
        for name, batches in contenders.items():
            started = time.process_time()
            count = sum(number_in(batch) for batch in batches())
            best[name] = max(best[name], count / (time.process_time() - started))
    return best


def pipelines(files: list[Path], size: int, rounds: int) -> None:
    """Print the first table."""
    with tempfile.TemporaryDirectory() as temporary:
        root = class_folder(files, Path(temporary) / "pictures")
        cache = Path(temporary) / "cache"
        quick = {"resizer": "torch"}
        small = {**quick, "working_size": -(-size * 8 // 7)}
        contenders = {
            TIMM: timm_loader(root, size),
            "timm's loader, bytes for a GPU": timm_bytes(root, size),
            "torchvision ImageFolder": image_folder(root, size),
            "HF datasets + torchvision": hf_datasets(root, size),
            "ours": ours(root, size, None),
            "ours, resizer torch": ours(root, size, None, **quick),
            "ours, resizer torch, bytes for a GPU": ours(root, size, None, **quick, as_bytes=True),
            "ours, cached": ours(root, size, cache),
            "ours, resizer torch, cached": ours(root, size, cache, **quick),
            "ours, resizer torch, cached, bytes for a GPU": ours(root, size, cache, **quick, as_bytes=True),
            f"ours, resizer torch, working_size {small['working_size']}, cached": ours(root, size, cache, **small),
            f"ours, resizer torch, working_size {small['working_size']}, cached, bytes for a GPU": ours(
                root, size, cache, **small, as_bytes=True
            ),
        }
        rates = measured(contenders, rounds)
    print("| pipeline | images/s a core | times timm |\n| --- | ---: | ---: |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / rates[TIMM]:.1f} |")


def decoders(data: list[bytes], rounds: int) -> None:
    """Print the second table: whole colour JPEG files to arrays."""
    ways: dict[str, Callable[[bytes], Any]] = {"Pillow": lambda one: np.asarray(decode_image(one))}
    ways["simplejpeg, as we call it"] = decode_jpeg
    try:
        from torchvision.io import ImageReadMode
        from torchvision.io import decode_jpeg as tv_decode

        ways["torchvision.io (deprecated)"] = lambda one: tv_decode(
            torch.frombuffer(bytearray(one), dtype=torch.uint8), mode=ImageReadMode.RGB
        ).permute(1, 2, 0)
    except ImportError:
        pass
    try:
        import cv2

        cv2.setNumThreads(1)
        ways["cv2"] = lambda one: cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    except ImportError:
        pass
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            for one in data:
                way(one)
            best[name] = max(best[name], len(data) / (time.process_time() - started))
    print("\n| decoder | images/s a core | largest difference from Pillow | a file cut off |")
    print("| --- | ---: | ---: | --- |")
    for name, way in ways.items():
        differences = [np.abs(np.asarray(way(one)).astype(int) - ways["Pillow"](one)).max() for one in data[:40]]
        print(f"| {name} | {best[name]:.0f} | {max(differences)} | {fate(way, data[0])} |")


def fate(way: Callable[[bytes], Any], data: bytes) -> str:
    """Say what a decoder makes of a file that lacks its last tenth."""
    try:
        return "left to Pillow" if way(data[: len(data) * 9 // 10]) is None else "decoded, the rest made up"
    except Exception:
        return "refused"


def reduced(data: list[bytes], size: int, rounds: int) -> None:
    """Print the third table: mosaics of 16 photographs, about as large as a camera's, to a working size."""
    pictures = [decode_image(one).resize((500, 375)) for one in data[:64]]
    mosaics = []
    for first in range(0, len(pictures) - 15, 16):
        sheet = Image.new("RGB", (2000, 1500))
        for place, picture in enumerate(pictures[first : first + 16]):
            sheet.paste(picture, (place % 4 * 500, place // 4 * 375))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=92)
        mosaics.append(buffer.getvalue())
    print(
        "\n| pictures of 2000x1500 to a shorter side of | full, images/s | draft, images/s | mean difference | PSNR |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for least in (size // 2, size, -(-size * 8 // 7)):
        ways = {"full": decode_image, "draft": lambda one, least=least: draft_jpeg(one, least) or decode_image(one)}
        small: dict[str, list[Any]] = {}
        best = dict.fromkeys(ways, 0.0)
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.process_time()
                small[name] = [way(one).resize((least * 4 // 3, least), Image.Resampling.BICUBIC) for one in mosaics]
                best[name] = max(best[name], len(mosaics) / (time.process_time() - started))
        pairs = zip(small["full"], small["draft"], strict=True)
        errors = np.stack([np.asarray(a, dtype=float) - np.asarray(b, dtype=float) for a, b in pairs])
        psnr = 10 * np.log10(255**2 / (errors**2).mean()) if errors.any() else np.inf
        print(f"| {least} | {best['full']:.0f} | {best['draft']:.0f} | {np.abs(errors).mean():.2f} | {psnr:.1f} dB |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = list(find_images([arguments.folder]))
    pixels = [decode_image(path).size for path in files]
    print(f"{len(files)} pictures of {np.mean([w * h for w, h in pixels]) ** 0.5:.0f}^2 pixels on average\n")
    pipelines(files, arguments.size, arguments.rounds)
    data = [data for path in files if decode_jpeg(data := path.read_bytes()) is not None]
    decoders(data, arguments.rounds)
    reduced(data, arguments.size, arguments.rounds)


if __name__ == "__main__":
    main()
