"""What is wrong with single files, and how the pictures of a data set differ: endings, sizes, modes, colours."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.audit.facts import PictureFacts
from vit_finetune.data.audit.findings import Example, Finding, found, printable
from vit_finetune.data.image_set import Splits

Facts = Mapping[str, Sequence[PictureFacts]]  # of each split, in order
Says = Callable[[PictureFacts, str], str | None]  # what is to be said of a picture with its key, if anything
MAX_ASPECT = 5.0  # longer over shorter side
FAULTS = ("unreadable", "empty_file", "not_a_picture", "bomb", "damaged")  # of single files: what no decoder opens
_SAME_FORMAT = {"MPO": "JPEG", "APNG": "PNG"}
_FLAT = 0.004  # standard deviation of pixels in [0, 1] below which a picture is of one colour: one grey level
_MAX_SHIFT = 1.0  # standard deviations between the data's mean colour and the checkpoint's
_MAX_SPREAD = 3.0  # times between their standard deviations
_SIDES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_ASPECTS = (1.0, 1.1, 1.34, 1.51, 2.0, 3.0, 5.0)


def check_files(splits: Splits, facts: Facts) -> list[Finding]:
    """Return what is wrong with single files.

    Args:
        splits: the data set.
        facts: of each split, in order.
    """
    formats = Image.registered_extensions()  # reads the list of Pillow's plugins, once
    usual = _usual_modes(facts)

    def says_fault(code: str) -> Says:
        return lambda fact, _: printable(fact.reason) if fact.fault == code else None

    def whole(says: Says) -> Says:
        return lambda fact, key: None if fact.fault else says(fact, key)

    checks: dict[str, Says] = {code: says_fault(code) for code in FAULTS}
    checks |= {
        "animated": whole(lambda fact, _: fact.format if fact.animated else None),
        "large_picture": whole(_large),
        "blank": whole(_blank),
        "extreme_aspect": whole(_extreme),
        "wrong_extension": whole(lambda fact, key: _wrong_extension(fact, key, formats)),
        "rotated": whole(lambda fact, _: f"EXIF orientation {fact.orientation}" if fact.is_turned else None),
        "colour_modes": whole(lambda fact, _: None if fact.mode in usual else fact.mode),
    }
    return [finding for code, says in checks.items() for finding in found(code, _cases(splits, facts, says))]


def _cases(splits: Splits, facts: Facts, says: Says) -> list[Example]:
    """Return the pictures that there is something to say of."""
    examples = []
    for split, pictures in splits.named():
        for index, fact in enumerate(facts[split]):
            note = says(fact, pictures.store.key(index))
            if note is not None:
                examples.append(Example(printable(pictures.name(index)), note, ((split, index),)))
    return examples


def _large(fact: PictureFacts, _: str) -> str | None:
    """Pillow's own limit, at which it warns; at twice of it, it refuses."""
    limit = Image.MAX_IMAGE_PIXELS or float("inf")
    return _size(fact) if fact.width * fact.height > limit else None


def _blank(fact: PictureFacts, _: str) -> str | None:
    if not fact.mean:
        return None
    variance = np.asarray(fact.square) - np.square(fact.mean)
    return "one colour" if float(variance.max()) < _FLAT**2 else None


def _extreme(fact: PictureFacts, _: str) -> str | None:
    long, short = max(fact.width, fact.height), min(fact.width, fact.height)
    return _size(fact) if long >= MAX_ASPECT * short else None


def _wrong_extension(fact: PictureFacts, key: str, formats: Mapping[str, str]) -> str | None:
    suffix = PurePosixPath(key).suffix.lower()
    told = formats.get(suffix)
    real = _SAME_FORMAT.get(fact.format, fact.format)
    return f"it is {real}" if told is not None and told != real else None


def _usual_modes(facts: Facts) -> set[str]:
    """Return what is not worth a word: RGB, or where there is none, the mode that most pictures have."""
    modes = Counter(fact.mode for part in facts.values() for fact in part if not fact.fault)
    return {"RGB"} if "RGB" in modes else {mode for mode, _ in modes.most_common(1)}


def _size(fact: PictureFacts) -> str:
    return f"{fact.width:,} x {fact.height:,} pixels"


def histograms(facts: Facts) -> dict[str, dict[str, int]]:
    """Return how many pictures there are of each format, mode, shorter side, aspect ratio and rotation."""
    whole = [fact for part in facts.values() for fact in part if not fact.fault]
    short = np.array([min(fact.width, fact.height) for fact in whole], dtype=np.float64)
    long = np.array([max(fact.width, fact.height) for fact in whole], dtype=np.float64)
    return {
        "format": dict(Counter(fact.format for fact in whole).most_common()),
        "mode": dict(Counter(fact.mode for fact in whole).most_common()),
        "shorter side, pixels": _binned(short, _SIDES),
        "longer / shorter side": _binned(long / np.maximum(short, 1), _ASPECTS),
        "EXIF orientation": {str(key): n for key, n in sorted(Counter(fact.orientation for fact in whole).items())},
    }


def _binned(values: np.ndarray[Any, Any], edges: Sequence[float]) -> dict[str, int]:
    """Count values in [edge, next edge), the last one open; empty bins are left out."""
    places = np.searchsorted(np.asarray(edges, dtype=np.float64), values, side="right") - 1
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]:g} and more"]
    counts = np.bincount(places, minlength=len(edges)) if len(values) else np.zeros(len(edges), dtype=np.int64)
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def colours_of(facts: Sequence[PictureFacts]) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation of each colour over all pixels, every picture counting the same.

    Args:
        facts: of pictures whose pixels were looked at; None is returned where there is none.
    """
    looked = [fact for fact in facts if fact.mean and not fact.fault]
    if not looked:
        return None
    mean = np.mean([fact.mean for fact in looked], axis=0)
    square = np.mean([fact.square for fact in looked], axis=0)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def check_colours(facts: Sequence[PictureFacts], spec: PreprocessSpec) -> list[Finding]:
    """Return whether colours are far from what a checkpoint is normalised for.

    Args:
        facts: of the training pictures.
        spec: of the checkpoint.
    """
    colours = colours_of(facts)
    if colours is None or len(spec.mean) != len(colours[0]):
        return []
    mean, std = np.asarray(colours[0]), np.asarray(colours[1])
    shift = np.abs(mean - spec.mean) / np.asarray(spec.std)
    spread = std / np.asarray(spec.std)
    if shift.max() <= _MAX_SHIFT and spread.max() <= _MAX_SPREAD and spread.min() >= 1 / _MAX_SPREAD:
        return []
    theirs = f"{_in_words(spec.mean)} (std {_in_words(spec.std)}) of {spec.source}"
    ours = f"mean {_in_words(mean)} (std {_in_words(std)})"
    return found("normalisation", [Example(ours, f"the checkpoint: {theirs}")])


def _in_words(values: Sequence[float] | np.ndarray[Any, Any]) -> str:
    return " ".join(f"{float(value):.3f}" for value in values)
