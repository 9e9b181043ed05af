"""The cache of decoded pictures: the pixels that would have been made, found again, whole or not at all."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_helpers import encode, photo
from PIL import Image

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import ImageSet
from vit_finetune.data.cache import CachedImages, PictureCache, expected_bytes, write_part
from vit_finetune.data.image_set import FileStore, Picture
from vit_finetune.data.prepared import EvalPreparation, Preparation, PreparedImages, TrainPreparation

GRAY = PreprocessSpec(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,))
PREPARATIONS: dict[str, Preparation] = {
    "plain": TrainPreparation(),
    "torch": TrainPreparation(resizer="torch"),
    "reduced": TrainPreparation(working_size=20),
    "reduced by torch": TrainPreparation(working_size=20, resizer="torch"),
    "draft": TrainPreparation(working_size=20, draft=True),
    "evaluation": EvalPreparation(PreprocessSpec(input_size=(3, 16, 16))),
    "gray evaluation": EvalPreparation(GRAY),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Return JPEG and PNG files of several sizes, one turned by its tag, one gray."""
    root = tmp_path_factory.mktemp("pictures")
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "a.jpg": encode(photo(0, 120, 90), "JPEG", quality=90),
        "b.png": encode(photo(1, 33, 21)),
        "c.jpg": encode(photo(2, 90, 200), "JPEG", exif=turned),
        "d.jpg": encode(photo(3, 50, 40).convert("L"), "JPEG"),
        "e.jpg": encode(photo(4, 17, 90), "JPEG"),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    return ImageSet(FileStore(root, tuple(files)), np.arange(len(files), dtype=np.int64))


def kept(cache: PictureCache, images: PreparedImages, *, parts: int = 2, num_workers: int = 0) -> CachedImages:
    """Fill an entry by several parts and return the set that reads from it."""
    with cache.writing("a0"):
        folder = cache.begin("a0", expected_bytes(images))
        for part in range(parts):
            share = range(len(images) * part // parts, len(images) * (part + 1) // parts)
            write_part(folder, part, images, share, num_workers=num_workers, skip_bad=True)
        cache.finish("a0", folder, len(images), {"why": "test"})
    found = cache.find("a0", images)
    assert found is not None
    return found


def bytes_of(picture: Picture) -> np.ndarray:
    """Return a picture as an array with channels."""
    return np.atleast_3d(np.asarray(picture))


@pytest.mark.parametrize("name", PREPARATIONS)
def test_cached_images__are_what_would_have_been_made(tmp_path: Path, pictures: ImageSet, name: str) -> None:
    """Every preparation, from the cache or anew: equal bytes; the size was known from the headers."""
    images = PreparedImages.of(pictures, PREPARATIONS[name])
    cached = kept(PictureCache(tmp_path, 10**9), images)
    for index in range(len(images)):
        np.testing.assert_array_equal(bytes_of(cached.picture(index)), bytes_of(images.picture(index)))
    size = sum(path.stat().st_size for path in (tmp_path / "a0").glob("pixels-*"))
    assert size == expected_bytes(images) - 40 * len(images)
    assert np.array_equal(cached.labels, pictures.labels)


def test_prepared_images__full_size_is_the_plain_picture(pictures: ImageSet) -> None:
    """Without a working size the quick decoder gives `load`'s pixels, so the cache key need not name it."""
    quick = PreparedImages.of(pictures, PREPARATIONS["torch"])
    for index in range(len(pictures)):
        np.testing.assert_array_equal(bytes_of(quick.picture(index)), bytes_of(pictures.load(index)))
    assert PREPARATIONS["torch"].facts() == PREPARATIONS["plain"].facts()
    facts = [str(PREPARATIONS[name].facts()) for name in PREPARATIONS if name != "torch"]
    assert len(set(facts)) == len(facts)


def test_prepared_images__working_size_is_the_shorter_side(pictures: ImageSet) -> None:
    """Larger pictures are reduced with their shape kept, smaller ones stay."""
    images = PreparedImages.of(pictures, PREPARATIONS["reduced"])
    assert [bytes_of(images.picture(index)).shape[:2] for index in range(5)] == [
        *((20, 27), (20, 31), (20, 44), (20, 25), (90, 17)),
    ]


def test_cached_images__workers_and_pickles_see_the_same(tmp_path: Path, pictures: ImageSet) -> None:
    """Decoded in worker processes, or read after a journey to another process: the same pixels, no pixels sent."""
    images = PreparedImages.of(pictures, TrainPreparation())
    alone = kept(PictureCache(tmp_path / "one", 10**9), images, parts=1)
    many = kept(PictureCache(tmp_path / "two", 10**9), images, parts=3, num_workers=1)
    sent = pickle.dumps(many)
    assert len(sent) < 5000
    for index in range(len(images)):
        np.testing.assert_array_equal(alone.picture(index), many.picture(index))
        np.testing.assert_array_equal(alone.picture(index), pickle.loads(sent).picture(index))


def test_cached_images__a_bad_picture_stays_bad(tmp_path: Path, pictures: ImageSet) -> None:
    """What cannot be read is told in the words of its file, from the cache too; or it ends the filling."""
    assert isinstance(pictures.store, FileStore)
    (tmp_path / "bad").mkdir()
    for name in pictures.store.names:
        (tmp_path / "bad" / name).write_bytes((pictures.store.root / name).read_bytes())
    bad = tmp_path / "bad" / "b.png"
    bad.write_bytes(bad.read_bytes()[:300])
    images = PreparedImages.of(
        ImageSet(FileStore(tmp_path / "bad", pictures.store.names), pictures.labels), TrainPreparation()
    )
    cached = kept(PictureCache(tmp_path / "cache", 10**9), images)
    with pytest.raises(RequestError, match=r"cannot read .*b\.png: image file is truncated"):
        cached.picture(1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=r"b\.png"):
        write_part(tmp_path / "folder", 0, images, range(5), num_workers=0, skip_bad=False)


@pytest.mark.parametrize("share", [range(4), [0, 1, 2, 3, 4, 4]], ids=["missing", "twice"])
def test_finish__refuses_what_is_not_whole(tmp_path: Path, pictures: ImageSet, share: Sequence[int]) -> None:
    """An entry in which a picture is missing, or written twice, never appears."""
    images = PreparedImages.of(pictures, TrainPreparation())
    cache = PictureCache(tmp_path, 10**9)
    with cache.writing("a0"):
        folder = cache.begin("a0", 0)
        write_part(folder, 0, images, share, num_workers=0, skip_bad=False)
        with pytest.raises(WorkError, match="pictures"):
            cache.finish("a0", folder, len(images), {})
        cache.discard(folder)
    assert cache.find("a0", images) is None


def test_cached_images__outlive_their_eviction(tmp_path: Path, pictures: ImageSet) -> None:
    """A run that reads keeps its pages when another run needs the room."""
    images = PreparedImages.of(pictures, TrainPreparation())
    cache = PictureCache(tmp_path, expected_bytes(images) + 2000)
    cached = kept(cache, images)
    with cache.writing("b0"):
        cache.discard(cache.begin("b0", expected_bytes(images)))
    assert cache.find("a0", images) is None
    np.testing.assert_array_equal(cached.picture(0), bytes_of(images.picture(0)))


def test_cache__a_killed_writer_leaves_no_entry(tmp_path: Path, pictures: ImageSet) -> None:
    """SIGKILL in the middle of a part: nobody finds the entry, the next writer sweeps it and makes it whole."""
    assert isinstance(pictures.store, FileStore)
    code = f"""
    import time
    from pathlib import Path
    import numpy as np
    from vit_finetune.data.cache import PictureCache, write_part
    from vit_finetune.data.image_set import FileStore, ImageSet
    from vit_finetune.data.prepared import PreparedImages, TrainPreparation
    store = FileStore(Path({str(pictures.store.root)!r}), {pictures.store.names!r})
    images = PreparedImages.of(ImageSet(store, np.zeros(5, dtype=np.int64)), TrainPreparation())
    cache = PictureCache(Path({str(tmp_path)!r}), 10**9)
    with cache.writing("a0"):
        write_part(cache.begin("a0", 0), 0, images, range(3), num_workers=0, skip_bad=False)
        print("filling", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "filling\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    images = PreparedImages.of(pictures, TrainPreparation())
    cache = PictureCache(tmp_path, 10**9)
    assert cache.find("a0", images) is None
    started = time.monotonic()
    np.testing.assert_array_equal(kept(cache, images).picture(4), bytes_of(images.picture(4)))
    assert time.monotonic() - started < 5
