"""What there is to know about each picture's file: its header, its hash and, where asked for, its pixels.

The header level reads and hashes the file and opens it; the pixel level decodes it too, JPEG at the smallest scale that
serves, which reads every byte as the full scale does. Threads are enough: reading, hashing and decoding let go of the
interpreter. What is wrong with a file is a fact about it, never an error.
"""

from __future__ import annotations

import hashlib
import io
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vit_finetune.common.errors import RequestError
from vit_finetune.common.machine import num_cores
from vit_finetune.data.audit.memo import Memo
from vit_finetune.data.channels import channels_header, is_tiff, read_channels
from vit_finetune.data.image_set import FileStore, ImageSet
from vit_finetune.data.images import decode_image

THUMB = 16  # rows and columns of the grey thumbnail that near-duplicates are told by
_DRAFT = 256  # pixels of the shorter side that are enough for the mean colour and the thumbnail
_LARGE = 25_000_000  # pixels; such pictures are decoded one at a time
_MAX_BYTES = 2 << 30  # of a file that is read into memory
_CHUNK = 256  # pictures between two looks at the clock and the memo
_KEEP_EXIF = ("JPEG", "MPO", "TIFF")  # formats whose EXIF block is read without decoding the pixels
_BEGINNINGS = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML or SVG"),
    (b"%pdf", "PDF"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not fetched"),
)


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What a picture's file is.

    Attributes:
        num_bytes: of the file.
        sha256: of the file; empty where it cannot be read.
        fault: a code of the findings, or empty.
        reason: why, for people.
        format: as Pillow calls it.
        mode: as Pillow calls it.
        width: as stored, before any rotation, in pixels.
        height: as stored.
        orientation: of EXIF, 1 to 8; 1 is upright.
        animated: it has several frames or pages.
        thumb: 256 grey values, row by row; None where the pixels were not looked at.
        mean: of each colour, of pixels in [0, 1].
        square: mean square of each colour.
    """

    num_bytes: int = 0
    sha256: str = ""
    fault: str = ""
    reason: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    animated: bool = False
    thumb: bytes | None = None
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()

    @property
    def is_turned(self) -> bool:
        """Tell whether EXIF turns or mirrors the picture."""
        return self.orientation in range(2, 9)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PictureFacts:
        """Return the facts that `to_mapping` gave."""
        plain: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in values.items()}
        plain["thumb"] = None if plain["thumb"] is None else bytes.fromhex(plain["thumb"])
        return cls(**plain)

    def to_mapping(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        thumb = None if self.thumb is None else self.thumb.hex()
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "thumb": thumb}


@dataclass
class Pace:
    """How fast the files of a data set were looked at.

    Attributes:
        num_read: pictures whose files were read; the others were known from an earlier check.
        num_known: pictures that were known.
        num_bytes: read.
        seconds: that it took.
        num_threads: that read.
    """

    num_read: int = 0
    num_known: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    num_threads: int = 1

    def line(self) -> str:
        """Return the pace in words."""
        rate = self.num_read / max(self.seconds, 1e-9)
        known = f", {self.num_known:,} known from an earlier check" if self.num_known else ""
        read = f"{self.num_read:,} pictures read ({self.num_bytes / 1e6:,.1f} MB) in {self.seconds:.1f} s"
        return f"{read}: {rate:,.0f} a second on {self.num_threads} threads{known}"


def read_facts(
    pictures: ImageSet, *, pixels: bool, memo: Memo, pace: Pace, tell: Callable[[int], None] | None = None
) -> list[PictureFacts]:
    """Look at every picture's file.

    Args:
        pictures: the pictures.
        pixels: decode them too.
        memo: what earlier checks know; it is added to as the work goes on, so that a killed check goes on from there.
        pace: counts what was read.
        tell: told now and then how many pictures are done.

    Returns:
        The facts, in order.
    """
    started, pace.num_threads = time.perf_counter(), max(2, num_cores())
    facts: list[PictureFacts] = []
    turn = threading.Lock()
    with warnings.catch_warnings(), ThreadPoolExecutor(pace.num_threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about what becomes a finding here
        for chunk in _chunks(len(pictures)):
            stamps = [_stamp(pictures, index) for index in chunk]
            known = [memo.get(stamp, pixels=pixels) for stamp in stamps]
            missing = [index for index, fact in zip(chunk, known, strict=True) if fact is None]
            new = dict(zip(missing, pool.map(lambda index: _look(pictures, index, pixels, turn), missing), strict=True))
            merged = [
                new[index] if fact is None else PictureFacts.of(fact) for index, fact in zip(chunk, known, strict=True)
            ]
            lasting = {index: fact for index, fact in new.items() if fact.fault != "unreadable"}  # rights have no time
            memo.add({stamps[index - chunk.start]: fact.to_mapping() for index, fact in lasting.items()}, pixels=pixels)
            pace.num_read += len(new)
            pace.num_known += len(chunk) - len(new)
            pace.num_bytes += sum(fact.num_bytes for fact in new.values())
            facts += merged
            if tell is not None:
                tell(len(facts))
    pace.seconds += time.perf_counter() - started
    return facts


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _stamp(pictures: ImageSet, index: int) -> str:
    """Return what a file is known by until it changes: path, size and time; empty where there is none."""
    if not isinstance(pictures.store, FileStore):
        return ""
    path = pictures.store.root.absolute() / pictures.store.names[index]
    try:
        about = path.stat()
    except OSError:
        return ""
    return f"{str(path)!a} {about.st_size} {about.st_mtime_ns}"


def _look(pictures: ImageSet, index: int, pixels: bool, turn: threading.Lock) -> PictureFacts:
    """Return the facts of one picture."""
    fault = _no_file(pictures, index)
    if fault is not None:
        return fault
    try:
        data = pictures.store.read(index)
    except RequestError as error:
        return PictureFacts(fault="unreadable", reason=_reason(error.__cause__ or error))
    facts: dict[str, Any] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if not data:
        return PictureFacts(fault="empty_file", reason="0 bytes", **facts)
    try:
        with Image.open(io.BytesIO(data)) as image:
            facts |= _header(image)
            if pixels:
                facts |= _pixels(image, turn)
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        facts |= _channels(data, pixels=pixels) or dict(zip(("fault", "reason"), _fault(error, data), strict=True))
    return PictureFacts(**facts)


def _channels(data: bytes, *, pixels: bool) -> dict[str, Any] | None:
    """Return what a TIFF of more channels than Pillow knows says; None for anything else."""
    if not is_tiff(data):
        return None
    try:
        width, height, mode = channels_header(data)
        if pixels:
            read_channels(data)
    except Exception:  # as Pillow's plugins; what that said about the file is told
        return None
    return {"format": "TIFF", "mode": mode, "width": width, "height": height}


def _fault(error: Exception, data: bytes) -> tuple[str, str]:
    """Return the code and the words of what Pillow said about the bytes of a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not_a_picture", _looks_like(data)
    # At twice the number of pixels that it warns about, Pillow refuses.
    code = "bomb" if isinstance(error, Image.DecompressionBombError) else "damaged"
    return code, _reason(error.__cause__ or error)


def _no_file(pictures: ImageSet, index: int) -> PictureFacts | None:
    """Return what is wrong with a path that must not even be opened: a pipe would never end, a huge file not fit."""
    if not isinstance(pictures.store, FileStore):
        return None
    try:
        about = (pictures.store.root / pictures.store.names[index]).stat()
    except OSError as error:
        return PictureFacts(fault="unreadable", reason=_reason(error))
    if not stat.S_ISREG(about.st_mode):
        return PictureFacts(fault="unreadable", reason="it is no regular file")
    if about.st_size > _MAX_BYTES:
        return PictureFacts(num_bytes=about.st_size, fault="not_a_picture", reason=f"{about.st_size / 1e9:.1f} GB")
    return None


def _header(image: Image.Image) -> dict[str, Any]:
    """Return what the header of an opened picture says."""
    kind = str(image.format)
    orientation = 1
    if kind in _KEEP_EXIF or "exif" in image.info:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return {
        "format": kind,
        "mode": image.mode,
        "width": image.width,
        "height": image.height,
        "orientation": orientation,
        # MPO is a photograph with a preview or a second view behind it, as telephones write.
        "animated": kind != "MPO" and bool(getattr(image, "is_animated", False)),
    }


def _pixels(image: Image.Image, turn: threading.Lock) -> dict[str, Any]:
    """Decode an opened picture and return its thumbnail and its mean colours."""
    image.draft(None, (_DRAFT, _DRAFT))
    if image.width * image.height > _LARGE:
        with turn:
            return _colours(decode_image(image))
    return _colours(decode_image(image))


def _colours(image: Image.Image) -> dict[str, Any]:
    histogram = np.asarray(image.histogram(), dtype=np.float64).reshape(3, 256) / (image.width * image.height)
    levels = np.arange(256) / 255
    thumb = image.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
    return {
        "thumb": thumb.tobytes(),
        "mean": tuple((histogram @ levels).tolist()),
        "square": tuple((histogram @ levels**2).tolist()),
    }


def _looks_like(data: bytes) -> str:
    """Return what the bytes of a file that is no picture look like."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in _BEGINNINGS:
        if start.startswith(beginning):
            return f"it looks like {kind}"
    return "no format that Pillow knows"


def _reason(error: BaseException) -> str:
    """Return the words of an error on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
