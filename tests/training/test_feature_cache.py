"""The cache of features: entries appear whole, are found again, go when there is no room, survive kills and crowds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from vit_finetune.common.errors import RequestError
from vit_finetune.training.feature_cache import FeatureCache, cache_key, default_cache_dir, size_of, write_rows

FLOAT = np.dtype("float32")
SHAPES = {"cls": (10, 4), "grid": (10, 2, 4)}
BYTES = size_of(SHAPES, FLOAT)


def fill(cache: FeatureCache, key: str, value: float = 1.0) -> None:
    with cache.writing(key):
        folder = cache.start(key, SHAPES, FLOAT)
        for name, shape in SHAPES.items():
            for start in (0, 5):
                write_rows(folder, name, start, np.full((5, *shape[1:]), value + start, dtype=FLOAT))
        cache.finish(key, folder, {"why": key})


def test_cache__rows_come_back_as_written(tmp_path: Path) -> None:
    """Rows written in parts are one read-only array of the right values; an unknown key finds nothing."""
    cache = FeatureCache(tmp_path / "new", 10**9)
    assert cache.find("a0") is None
    fill(cache, "a0")
    arrays = cache.find("a0")
    assert arrays is not None
    assert arrays["grid"].shape == (10, 2, 4)
    assert not arrays["grid"].flags.writeable
    np.testing.assert_array_equal(arrays["cls"][:, 0], [1.0] * 5 + [6.0] * 5)
    assert json.loads((tmp_path / "new" / "a0" / "meta.json").read_text())["facts"] == {"why": "a0"}


def test_cache__oldest_used_goes_first(tmp_path: Path) -> None:
    """With room for two entries a third evicts the one used longest ago, not the one written first."""
    cache = FeatureCache(tmp_path, 2000)  # an entry takes about 830 bytes with its headers
    fill(cache, "a0")
    fill(cache, "b0")
    for age, key in ((50, "b0"), (100, "a0")):
        os.utime(tmp_path / key, (time.time() - age, time.time() - age))
    assert cache.find("a0") is not None  # used now
    fill(cache, "c0")
    assert cache.find("b0") is None
    assert cache.find("a0") is not None
    assert cache.find("c0") is not None


def test_check_room__refuses_what_does_not_fit(tmp_path: Path) -> None:
    """More bytes than the limit, or than the disk has, are refused with both figures before anything is written."""
    with pytest.raises(RequestError, match=r"take 3\.00 GB, readout\.cache_limit_gb is 2\.00 GB"):
        FeatureCache(tmp_path / "none", 2 * 10**9).check_room([10**9, 2 * 10**9])
    with pytest.raises(RequestError, match=r"the disk of .*none has"):
        FeatureCache(tmp_path / "none", 10**18).check_room([10**17])
    assert not (tmp_path / "none").exists()


def test_cache__a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL while an entry is being filled: nobody finds it, and the next writer sweeps the half-written folder."""
    code = f"""
    import time, numpy as np
    from pathlib import Path
    from vit_finetune.training.feature_cache import FeatureCache
    cache = FeatureCache(Path({str(tmp_path)!r}), 10**9)
    with cache.writing("dead"):
        cache.start("dead", {{"cls": (10, 4)}}, np.dtype("float32"))
        print("filling", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "filling\n"
    cache = FeatureCache(tmp_path, 10**9)
    fill(cache, "a1")
    assert (tmp_path / ".dead.writing").is_dir(), "a living writer's folder was swept"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert cache.find("dead") is None
    fill(cache, "b1")
    assert not (tmp_path / ".dead.writing").exists()


def test_cache__two_writers_of_one_entry_wait_for_each_other(tmp_path: Path) -> None:
    """Two processes that want the same features at once: one computes, the other finds them, both read the same."""
    code = f"""
    import time, numpy as np
    from pathlib import Path
    from vit_finetune.training.feature_cache import FeatureCache, write_rows
    cache = FeatureCache(Path({str(tmp_path)!r}), 10**9)
    with cache.writing("both"):
        found = cache.find("both")
        if found is None:
            folder = cache.start("both", {{"cls": (2, 4)}}, np.dtype("float32"))
            time.sleep(1.0)
            write_rows(folder, "cls", 0, np.ones((2, 4), dtype=np.float32))
            cache.finish("both", folder, {{}})
    print("found" if found else "computed", cache.find("both")["cls"].sum())
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert said == ["computed 8.0", "found 8.0"]


def test_cache_key__every_fact_counts() -> None:
    """A change of any fact, however small, is another key; the order of facts is none."""
    facts = {"weights": "abc", "pictures": "def", "layers": [1, 2], "grid": 7, "dtype": "float32"}
    keys = {cache_key(facts)} | {cache_key({**facts, name: "other"}) for name in facts}
    assert len(keys) == len(facts) + 1
    assert cache_key(dict(reversed(facts.items()))) == cache_key(facts)


def test_default_cache_dir__the_variable_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$VIT_FINETUNE_CACHE names the folder; without it the user's cache folder holds ours."""
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path))
    assert default_cache_dir("features") == tmp_path / "features"
    monkeypatch.delenv("VIT_FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_cache_dir("features") == tmp_path / "cache" / "vit_finetune" / "features"
