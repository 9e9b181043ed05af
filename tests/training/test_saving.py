"""Checkpoints written behind training: the same files, never a mixture of two steps, and errors that surface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import everything
from training_helpers import Run, options_of, plan_of, scorer, steps_of

from vit_finetune.common.errors import RunStopped, WorkError
from vit_finetune.training import checkpoint as store
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.saving import Saver
from vit_finetune.training.stopping import StopRequest


def saver(root: Path, stop: StopRequest | None = None) -> Saver:
    return Saver(root, options_of(asynchronous=True, keep_last=9), stop or StopRequest())


def save(found: Saver, step: int, model: dict[str, torch.Tensor]) -> None:
    found.save(step=step, best_step=None, model=model, optimizer={"m": model["w"]}, average=None, state={})


class Gate:
    """Lets nothing be written until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        save_file = store.save_file

        def waiting(tensors: Any, path: Path, metadata: Any) -> None:
            assert self.opened.wait(60)
            save_file(tensors, path, metadata=metadata)

        monkeypatch.setattr(store, "save_file", waiting)


def test_fit__asynchronous_writes_the_same_files(tmp_path: Path) -> None:
    """Written behind training or at once, a run's checkpoints, pointers and rows are byte for byte the same."""
    for name in ("at_once", "behind"):
        run = Run.start(tmp_path / name)
        average = WeightAverage(run.model, 0.9)
        run.fit(options=options_of(asynchronous=name == "behind"), evaluate=scorer(), average=average)
    found = [everything(tmp_path / name) for name in ("at_once", "behind")]
    for files in found:
        del files["timing.jsonl"]
    assert found[0] == found[1]
    assert len(found[0]) == 3 * 5 + 3


def test_saver__keeps_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training changes while the files are written is not in them, and nothing is pointed to before they are."""
    gate, model = Gate(monkeypatch), {"w": torch.zeros(4)}
    with saver(tmp_path) as found:
        save(found, 1, model)
        model["w"].fill_(7)
        assert store.newest_whole(tmp_path) == (None, [])
        assert store.pointed_step(tmp_path, "LATEST") is None
        gate.opened.set()
    loaded = store.load_checkpoint(tmp_path, 1)
    assert loaded.model["w"].tolist() == loaded.optimizer["m"].tolist() == [0, 0, 0, 0]
    assert store.pointed_step(tmp_path, "LATEST") == 1


def test_saver__one_save_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that comes while one is under way waits for it, so that no two write at once and their order stays."""
    gate, under_way, most = Gate(monkeypatch), [0], [0]
    save_checkpoint = store.save_checkpoint

    def counted(*arguments: Any, **options: Any) -> Path:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        try:
            return save_checkpoint(*arguments, **options)
        finally:
            under_way[0] -= 1

    monkeypatch.setattr(store, "save_checkpoint", counted)
    with saver(tmp_path) as found:
        save(found, 1, {"w": torch.zeros(4)})
        threading.Timer(0.1, gate.opened.set).start()
        save(found, 2, {"w": torch.ones(4)})
        assert store.pointed_step(tmp_path, "LATEST") == 1, "the first is whole when the second begins"
    assert store.saved_steps(tmp_path) == [1, 2]
    assert most == [1]


def test_saver__a_failed_save_asks_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is met behind training: the run is asked to end, and the next save or the end says why."""
    stop = StopRequest()
    found = saver(tmp_path, stop)
    save(found, 1, {"w": torch.zeros(4)})
    found.wait()
    assert not stop.is_wanted()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    save(found, 2, {"w": torch.zeros(4)})
    found.join()
    assert stop.is_wanted()
    with pytest.raises(WorkError, match=r"cannot write the checkpoint .*step-00000002.*No space left on device"):
        found.wait()
    assert store.newest_whole(tmp_path) == (1, [])


def test_fit__asynchronous_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails behind training ends the run after the next step with its own line, on the newest whole one."""
    save_file = store.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(store, "save_file", full)
    stop = StopRequest()

    def batches() -> Iterator[Any]:
        for step, batch in enumerate(steps_of()):
            if step == 4:  # the files take their time
                assert wait_until(stop.is_wanted)
            yield batch

    run = Run.start(tmp_path)
    with pytest.raises(WorkError, match=r"cannot write the checkpoint .*step-00000004.*No space left on device"):
        run.fit(plan_of(num_steps=9), options_of(asynchronous=True), batches=batches(), stop=stop)
    assert run.rows()[-1]["step"] == 5
    assert store.newest_whole(tmp_path / "checkpoints") == (2, [])


def wait_until(true: Any) -> bool:
    """Wait up to a minute until something is true."""
    for _ in range(6000):
        if true():
            return True
        threading.Event().wait(0.01)
    return False


def test_fit__a_stop_waits_for_its_save(tmp_path: Path) -> None:
    """The line that says the last step is saved comes when it is."""
    stop = StopRequest()
    stop.ask("SIGTERM")
    with pytest.raises(RunStopped, match="after step 1, which is saved"):
        Run.start(tmp_path).fit(options=options_of(asynchronous=True), stop=stop)
    assert store.newest_whole(tmp_path / "checkpoints") == (1, [])
    assert store.pointed_step(tmp_path / "checkpoints", "LATEST") == 1


def test_fit__an_error_waits_for_the_save_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails while files are written leaves them whole; a second Ctrl-C leaves at once."""
    for error, step in ((ValueError, 2), (KeyboardInterrupt, None)):
        run_dir = tmp_path / error.__name__
        gate = Gate(monkeypatch)

        def batches(error: type[BaseException] = error, gate: Gate = gate) -> Iterator[Any]:
            for number, batch in enumerate(steps_of()):
                if number == 2:
                    if error is ValueError:
                        threading.Timer(0.1, gate.opened.set).start()
                    raise error
                yield batch

        with pytest.raises(error):
            Run.start(run_dir).fit(options=options_of(asynchronous=True), batches=batches())
        assert store.newest_whole(run_dir / "checkpoints") == (step, [])
        gate.opened.set()
        monkeypatch.undo()
