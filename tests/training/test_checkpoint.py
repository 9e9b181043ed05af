"""Checkpoints: whole or not there, verified, plain files; the newest whole one is found and old ones go."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import everything
from safetensors import SafetensorError

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.training import checkpoint as store

STATE = {"best_step": 2, "best_value": 0.5, "names": ["kauz"]}


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(4, 6, generator=generator),
        "transposed": torch.randn(4, 6, generator=generator).T,  # not contiguous
        "half": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(step),
    }


def save(root: Path, step: int) -> Path:
    model, optimizer = tensors(step), {"weight/exp_avg": torch.full((4, 6), float(step))}
    return store.save_checkpoint(root, step=step, model=model, optimizer=optimizer, state=STATE)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_save_checkpoint__round_trip(tmp_path: Path) -> None:
    """Tensors of any type and layout come back bit for bit, with the plain state and the step."""
    assert save(tmp_path, 1000) == tmp_path / "step-00001000"
    loaded = store.load_checkpoint(tmp_path, 1000)
    assert loaded.model.keys() == tensors(1000).keys()
    for name, tensor in tensors(1000).items():
        assert loaded.model[name].dtype == tensor.dtype
        assert torch.equal(loaded.model[name], tensor)
    assert torch.equal(loaded.optimizer["weight/exp_avg"], torch.full((4, 6), 1000.0))
    assert loaded.state == {"step": 1000, **STATE}


def test_save_checkpoint__plain_files_only(tmp_path: Path) -> None:
    """A checkpoint holds safetensors, JSON and a text file, nothing that could run code, and nothing beside it."""
    save(tmp_path, 7)
    assert everything(tmp_path).keys() == {
        f"step-00000007/{name}" for name in ("model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS")
    }


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not on this machine")
def test_save_checkpoint__sums_are_what_sha256sum_reads(tmp_path: Path) -> None:
    """`sha256sum --check` verifies a checkpoint, and finds a changed one, without us."""
    folder = save(tmp_path, 7)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 3)
    flip_a_bit(folder / "model.safetensors")
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip_a_bit, "{} has another content than when it was written"),
        (truncate, "{} has another content than when it was written"),
        (Path.unlink, "{} is missing"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_damage__is_found_and_named(tmp_path: Path, name: str, harm: Any, problem: str) -> None:
    """One bit, one byte or one file less in any file is found, and the file is named."""
    folder = save(tmp_path, 7)
    assert store.damage(folder) is None
    harm(folder / name)
    assert store.damage(folder) == problem.format(name)
    with pytest.raises(RequestError) as error:
        store.load_checkpoint(tmp_path, 7)
    assert str(error.value) == f"cannot read the checkpoint {folder}: {problem.format(name)}"


@pytest.mark.parametrize("text", [b"", b"nonsense\n", b"\xff\x00"])
def test_damage__of_the_sums_themselves(tmp_path: Path, text: bytes) -> None:
    """A missing, empty or foreign SHA256SUMS proves nothing, so the folder counts as damaged."""
    folder = save(tmp_path, 7)
    (folder / "SHA256SUMS").write_bytes(text)
    assert store.damage(folder) == "SHA256SUMS does not list model.safetensors, optimizer.safetensors, state.json"
    (folder / "SHA256SUMS").unlink()
    assert store.damage(folder) == "SHA256SUMS is missing"


def test_load_checkpoint__missing(tmp_path: Path) -> None:
    """A checkpoint that is not there is named."""
    with pytest.raises(RequestError) as error:
        store.load_checkpoint(tmp_path, 7)
    assert str(error.value) == f"cannot read the checkpoint {tmp_path / 'step-00000007'}: the folder is missing"


def test_newest_whole__passes_over_damaged_ones(tmp_path: Path) -> None:
    """The newest checkpoint whose hashes agree is found; each damaged one on the way is told."""
    for step in (2, 10, 100):
        save(tmp_path, step)
    assert store.newest_whole(tmp_path) == (100, [])
    flip_a_bit(tmp_path / "step-00000100" / "model.safetensors")
    (tmp_path / "step-00000010" / "state.json").unlink()
    assert store.newest_whole(tmp_path) == (
        2,
        [
            "step-00000100 is damaged (model.safetensors has another content than when it was written) "
            "and was passed over",
            "step-00000010 is damaged (state.json is missing) and was passed over",
        ],
    )
    for name in ("model", "optimizer"):
        truncate(tmp_path / "step-00000002" / f"{name}.safetensors")
    step, notes = store.newest_whole(tmp_path)
    assert step is None
    assert notes[-1] == (
        "step-00000002 is damaged (model.safetensors has another content than when it was written, "
        "optimizer.safetensors has another content than when it was written) and was passed over"
    )


def test_newest_whole__nothing_there(tmp_path: Path) -> None:
    """An empty or missing folder has no checkpoint, and other names in it are no checkpoints."""
    assert store.newest_whole(tmp_path / "nowhere") == (None, [])
    for name in ("step-", "step-x", "other", ".step-00000003.abc.tmp"):
        (tmp_path / name).mkdir()
    assert store.newest_whole(tmp_path) == (None, [])
    assert store.saved_steps(tmp_path) == []


def test_pointers__round_trip(tmp_path: Path) -> None:
    """A pointer is a text file with a folder's name, replaced by rename; a missing one points nowhere."""
    assert store.pointed_step(tmp_path, "BEST") is None
    store.point_to(tmp_path, "BEST", 12)
    assert (tmp_path / "BEST").read_text() == "step-00000012\n"
    with (tmp_path / "BEST").open() as reader:
        store.point_to(tmp_path, "BEST", 13)
        assert reader.read() == "step-00000012\n"
    assert store.pointed_step(tmp_path, "BEST") == 13
    assert [path.name for path in tmp_path.iterdir()] == ["BEST"]


def test_remove_old__keeps_the_best_and_the_last(tmp_path: Path) -> None:
    """The newest N, the best and the one that LATEST names stay; others go, and so do leftovers of killed writes."""
    for step in range(1, 8):
        save(tmp_path, step)
    store.point_to(tmp_path, "BEST", 2)
    store.point_to(tmp_path, "LATEST", 7)
    (tmp_path / ".step-00000008.abc.tmp").mkdir()
    (tmp_path / ".step-00000008.abc.tmp" / "model.safetensors").write_bytes(b"half")
    store.remove_old(tmp_path, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("BEST", "LATEST", "step-00000002", "step-00000006", "step-00000007")
    ]
    assert store.newest_whole(tmp_path) == (7, [])


def test_remove_old__fewer_than_asked_for(tmp_path: Path) -> None:
    """Nothing goes while there are no more than may stay."""
    save(tmp_path, 1)
    store.remove_old(tmp_path, keep_last=3)
    assert store.saved_steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: disk full")], ids=repr
)
def test_save_checkpoint__failing_write_leaves_the_others_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A disk that fills up half-way is one clear error; older checkpoints are byte for byte what they were."""
    save(tmp_path, 5)
    store.point_to(tmp_path, "LATEST", 5)
    before = everything(tmp_path)
    save_file = store.save_file
    calls = 0

    def full_at_the_second_file(values: Any, path: Path, metadata: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(b"torn")
            raise error
        save_file(values, path, metadata)

    monkeypatch.setattr(store, "save_file", full_at_the_second_file)
    with pytest.raises(WorkError) as told:
        save(tmp_path, 6)
    assert str(told.value) == (
        f"cannot write the checkpoint {tmp_path / 'step-00000006'}: {error}; earlier checkpoints are untouched"
    )
    assert everything(tmp_path) == before
    assert store.newest_whole(tmp_path) == (5, [])


def test_point_to__failing_write_keeps_the_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pointer that cannot be written is one clear error, and names what it named before."""
    store.point_to(tmp_path, "LATEST", 5)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WorkError, match=r"cannot write .*LATEST: .*No space left on device; earlier checkpoints"):
        store.point_to(tmp_path, "LATEST", 6)
    monkeypatch.undo()
    assert store.pointed_step(tmp_path, "LATEST") == 5


def test_save_checkpoint__replaces_a_damaged_one_of_the_same_step(tmp_path: Path) -> None:
    """A run that went back behind a damaged checkpoint writes that step anew."""
    flip_a_bit(save(tmp_path, 5) / "model.safetensors")
    save(tmp_path, 5)
    assert store.newest_whole(tmp_path) == (5, [])
