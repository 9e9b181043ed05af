"""Data sets with one fault each, or with all of them: what the preflight has to find, and nothing beside it.

Run: python tests/faulty_pictures.py FOLDER   (a data set with every fault that can be had together)
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def noise(seed: int, colour: tuple[int, int, int] = (120, 110, 100), size: tuple[int, int] = (50, 40)) -> Image.Image:
    """Return a picture of blotches around a colour, different for each seed."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = np.asarray(blotches, dtype=np.float64) - 128 + rng.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(colour) + 0.5 * grain, 0, 255).astype(np.uint8))


def clean(root: Path, *, train: int = 9, val: int = 4) -> Path:
    """Write root/{train,val}/{blue,green,red}/N.png without a fault."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count in (("train", train), ("val", val)):
            for index in range(count):
                save(
                    noise(1000 * number + 100 * (split == "val") + index, colour), root / split / name / f"{index}.png"
                )
    return root


def save(image: Image.Image, path: Path, **options: object) -> None:
    """Write a picture, and the folder that it goes into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file that claims a size, with chunks of our own before a few bytes of pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def text_bomb(size: int = 100_000_000) -> bytes:
    """Return a small PNG with a comment that unpacks to `size` bytes."""
    return png(20, 20, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 1)))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _new_class(root: Path, name: str, *, train: int, val: int, seed: int) -> None:
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            save(noise(seed + 100 * (split == "val") + index), root / split / name / f"{index}.png")


def _copy(root: Path, target: str) -> None:
    shutil.copyfile(root / "train/red/0.png", root / target)


def _near_copy(root: Path, source: str, target: str) -> None:
    with Image.open(root / source) as image:
        save(image.resize((100, 80), Image.Resampling.BICUBIC), root / target, quality=80)


def _cut(root: Path) -> None:
    save(noise(30_007), root / "train/red/cut.jpg", quality=95)
    data = (root / "train/red/cut.jpg").read_bytes()
    (root / "train/red/cut.jpg").write_bytes(data[: len(data) // 2])


def _turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(noise(30_008), root / "train/red/turned.jpg", exif=exif)


def _hidden(root: Path) -> None:
    _write(root / "train/red/notes.txt", b"words")
    _write(root / "train/red/._0.png", b"a Mac was here")


# What is planted into a clean set, and how many cases of it there then are. Each leaves the others alone.
FAULTS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "bad_name": (1, lambda root: save(noise(30_001), Path(os.fsdecode(bytes(root / "train/red") + b"/\xff.png")))),
    "loose_pictures": (1, lambda root: save(noise(30_002), root / "train/loose.png")),
    "empty_class": (1, lambda root: (root / "train/empty").mkdir()),
    "class_not_in_train": (1, lambda root: save(noise(30_003), root / "val/violet/0.png")),
    "unreadable": (1, lambda root: (root / "train/red/gone.png").symlink_to("nowhere.png")),
    "empty_file": (1, lambda root: _write(root / "train/red/empty.png", b"")),
    "not_a_picture": (1, lambda root: _write(root / "train/red/page.jpg", HTML)),
    "bomb": (1, lambda root: _write(root / "train/red/bomb.png", png(60_000, 60_000))),
    "damaged": (1, _cut),
    "class_not_in_val": (1, lambda root: _new_class(root, "amber", train=2, val=0, seed=20_000)),
    "one_picture_class": (1, lambda root: _new_class(root, "pink", train=1, val=1, seed=21_000)),
    "similar_names": (1, lambda root: _new_class(root, "Green_", train=3, val=1, seed=22_000)),
    "imbalance": (2, lambda root: _new_class(root, "many", train=96, val=1, seed=23_000)),
    "duplicate_across_splits": (1, lambda root: _copy(root, "val/red/copy.png")),
    "duplicate_conflict": (1, lambda root: shutil.copyfile(root / "train/red/1.png", root / "train/blue/copy.png")),
    "duplicate": (1, lambda root: shutil.copyfile(root / "train/red/2.png", root / "train/red/copy.png")),
    "near_duplicate_across_splits": (1, lambda root: _near_copy(root, "train/red/3.png", "val/red/near.jpg")),
    "near_duplicate_conflict": (1, lambda root: _near_copy(root, "train/red/4.png", "train/blue/near.jpg")),
    "near_duplicate": (1, lambda root: _near_copy(root, "train/red/5.png", "train/red/near.jpg")),
    "animated": (
        1,
        lambda root: save(noise(30_004), root / "train/red/a.png", save_all=True, append_images=[noise(30_005)]),
    ),
    "blank": (1, lambda root: save(Image.new("RGB", (50, 40), (10, 20, 30)), root / "train/red/blank.png")),
    "extreme_aspect": (1, lambda root: save(noise(30_006, size=(200, 20)), root / "train/red/long.png")),
    "link_loop": (1, lambda root: (root / "train/red/loop").symlink_to(root / "train")),
    "wrong_extension": (1, lambda root: save(noise(30_009), root / "train/red/jpeg.png", format="JPEG")),
    "rotated": (1, _turned),
    "colour_modes": (1, lambda root: save(noise(30_010).convert("L"), root / "train/red/grey.png")),
    "extra_files": (2, _hidden),
    "unread_folders": (1, lambda root: save(noise(30_011), root / "more/red/0.png")),
}


def faulty(root: Path) -> dict[str, int]:
    """Write a data set with every fault of the table; return how many cases of each there are."""
    clean(root)
    for _, plant in FAULTS.values():
        plant(root)
    return {code: count for code, (count, _) in FAULTS.items()}


if __name__ == "__main__":
    print(*(f"{code:30} {count}" for code, count in faulty(Path(sys.argv[1])).items()), sep="\n")
