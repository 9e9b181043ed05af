"""Whether a run starts or goes on, and putting back the state it goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_helpers import Run, copied, options_of, plan_of, tiny_vit

from vit_finetune.common.errors import RequestError
from vit_finetune.training import Progress, check_run_folder, find_checkpoint, new_run_folder, restore
from vit_finetune.training.checkpoint import load_checkpoint, save_checkpoint
from vit_finetune.training.resume import Found

CONFIG: dict[str, Any] = {
    "train": {"epochs": 5.0, "global_batch_size": 64},
    "optimizer": {"betas": [0.9, 0.999]},
    "checkpoint": {"keep_last": 3},
    "data": {"root": "photos", "num_workers": "auto"},
    "run": {"dir": "runs/a", "trackers": [], "seed": 0},
}


def started(tmp_path: Path, config: dict[str, Any] = CONFIG) -> Path:
    """Return the folder of a run that has begun."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return run_dir


def check(run_dir: Path, config: dict[str, Any] = CONFIG, *, resume: bool = False, overwrite: bool = False) -> bool:
    return check_run_folder(run_dir, config, resume=resume, overwrite=overwrite)


def refusal(run_dir: Path, config: dict[str, Any] = CONFIG, *, resume: bool = False, overwrite: bool = False) -> str:
    before = sorted(run_dir.rglob("*")) if run_dir.is_dir() else []
    with pytest.raises(RequestError) as error:
        check(run_dir, config, resume=resume, overwrite=overwrite)
    assert (sorted(run_dir.rglob("*")) if run_dir.is_dir() else []) == before
    return str(error.value)


@pytest.mark.parametrize("resume", [False, True])
def test_check_run_folder__nothing_there(tmp_path: Path, resume: bool) -> None:
    """A missing or empty folder is a fresh start, with and without --resume; nothing is made."""
    assert check(tmp_path / "run", resume=resume) is False
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty", resume=resume) is False


def test_check_run_folder__a_run_is_there(tmp_path: Path) -> None:
    """An older run goes on with --resume, is replaced with --overwrite, and is refused without either."""
    run_dir = started(tmp_path)
    assert check(run_dir, resume=True) is True
    assert check(run_dir, overwrite=True) is False
    assert refusal(run_dir) == (
        f"{run_dir} holds a run already; give --resume to go on, --overwrite, or another run.dir"
    )


def test_check_run_folder__both_flags(tmp_path: Path) -> None:
    """--resume and --overwrite together are refused, whatever is there."""
    assert refusal(tmp_path / "run", resume=True, overwrite=True) == (
        "--resume and --overwrite contradict each other; give one of them"
    )


def test_check_run_folder__a_file(tmp_path: Path) -> None:
    """A file in the folder's place is never overwritten."""
    (tmp_path / "run").write_text("mine")
    assert refusal(tmp_path / "run", overwrite=True) == f"{tmp_path / 'run'} is a file; give another run.dir"


@pytest.mark.parametrize("flag", ["resume", "overwrite", "neither"])
def test_check_run_folder__somebody_elses_folder(tmp_path: Path, flag: str) -> None:
    """A folder that holds other things is never touched, not even with --overwrite."""
    (tmp_path / "thesis.tex").write_text("mine")
    assert refusal(tmp_path, resume=flag == "resume", overwrite=flag == "overwrite") == (
        f"{tmp_path} is not empty and no run folder (it has no config.yaml); give another run.dir"
    )


def changed(section: str, key: str, value: object) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], key: value}}


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("train", "epochs", 6.0, "train.epochs was 5.0, now 6.0"),
        ("optimizer", "betas", [0.9, 0.95], "optimizer.betas was [0.9, 0.999], now [0.9, 0.95]"),
        ("run", "seed", 1, "run.seed was 0, now 1"),
        ("train", "compile", True, "train.compile was None, now True"),
    ],
)
def test_check_run_folder__another_configuration(
    tmp_path: Path, section: str, key: str, value: object, told: str
) -> None:
    """A run does not go on under a configuration that computes something else; the key and both values are told."""
    run_dir = started(tmp_path)
    assert refusal(run_dir, changed(section, key, value), resume=True) == (
        f"{run_dir} was started with another configuration: {told}; resume with its own {run_dir / 'config.yaml'}"
    )


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("checkpoint", "keep_last", 9), ("data", "num_workers", 4), ("run", "trackers", ["wandb"])),
        *(("run", "dir", "b"), ("run", "strategy", "fsdp"), ("train", "grad_checkpointing", True)),
    ],
)
def test_check_run_folder__harmless_differences(tmp_path: Path, section: str, key: str, value: object) -> None:
    """What changes only how a run is carried out or shown may differ, and is told."""
    run_dir, config = started(tmp_path), changed(section, key, value)
    assert check(run_dir, config, resume=True) is True
    before = CONFIG[section].get(key)
    assert find_checkpoint(run_dir, config) == Found(None, (f"resume: {section}.{key} was {before!r}, now {value!r}",))
    assert find_checkpoint(run_dir, CONFIG) == Found(None, ())


def test_new_run_folder__appears_whole_in_the_place_of_an_older_run(tmp_path: Path) -> None:
    """The folder appears with its content when the block ends well; with an error it does not appear at all."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "old.txt").write_text("of the older run")
    with new_run_folder(run_dir) as folder:
        (folder / "config.yaml").write_text("new")
        assert (run_dir / "old.txt").is_file(), "the older run goes only when the new folder is whole"
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "config.yaml"]
    with pytest.raises(KeyError), new_run_folder(tmp_path / "other"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def restored(run: Run, **changes: Any) -> Progress:
    values: dict[str, Any] = {"metric": "accuracy", "keep_last": 3, "keep_threads": False}
    return restore(
        run.run_dir,
        find_checkpoint(run.run_dir),
        model=run.model,
        optimizer=run.optimizer,
        accelerator=run.accelerator,
        console=run.console,
        **(values | changes),
    )


def said(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(run.console, "say", lambda *new: lines.extend(new))
    return lines


def test_restore__newest_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, progress and journals go back to the newest whole checkpoint; a damaged newer one is told."""
    run = Run.start(tmp_path)
    run.fit(plan_of(evaluate_every=2))
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").unlink()
    other = Run.start(tmp_path, tiny_vit(seed=1))
    lines = said(other, monkeypatch)
    assert restored(other) == Progress(4, None, None, 0)
    assert [row["step"] for row in other.rows()] == [1, 2, 3, 4]
    assert lines == [
        "step-00000006 is damaged (state.json is missing) and was passed over",
        "resume: going on after step 4",
    ]
    weights = load_checkpoint(tmp_path / "checkpoints", 4).model
    assert all(torch.equal(tensor, weights[name]) for name, tensor in copied(other.model).items())


@pytest.mark.parametrize(
    ("scored", "told", "best"),
    [
        (True, "step 4 takes its place until a better one comes", (4, 0.5)),
        (False, "the best of the evaluations to come takes its place", (None, None)),
    ],
)
@pytest.mark.parametrize("damaged", [True, False])
def test_restore__a_damaged_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: bool, told: str, best: tuple[Any, Any], damaged: bool
) -> None:
    """A best checkpoint that was damaged is noticed at resume, said, and something whole takes its place."""
    run = Run.start(tmp_path)
    run.fit(plan_of(num_steps=4, evaluate_every=10))
    root = tmp_path / "checkpoints"
    state = load_checkpoint(root, 4)
    save_checkpoint(root, step=2, model=state.model, optimizer=state.optimizer, state=state.state)
    values = {**state.state, "best_step": 2, "best_value": 0.75}
    save_checkpoint(root, step=4, model=state.model, optimizer=state.optimizer, state=values)
    if scored:
        run_journal = tmp_path / "metrics.jsonl"
        run_journal.write_text(run_journal.read_text() + '{"step": 4, "split": "val", "accuracy": 0.5}\n')
    if damaged:
        (root / "step-00000002" / "model.safetensors").write_bytes(b"no")
    other = Run.start(tmp_path)
    lines = said(other, monkeypatch)
    found = restored(other)
    assert (found.step, found.best_step, found.best_value) == (4, *(best if damaged else (2, 0.75)))
    problem = "model.safetensors has another content than when it was written"
    expected = [f"step-00000002, the best so far, can't be used ({problem}); {told}"] if damaged else []
    assert [line for line in lines if "best" in line] == expected


def test_restore__no_checkpoint_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed before its first checkpoint starts from step 0, with empty journals."""
    run = Run.start(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    lines = said(run, monkeypatch)
    assert restored(run) == Progress()
    assert run.rows() == []
    assert lines == ["resume: no whole checkpoint yet, starting from step 0"]


def test_restore__threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread count is taken over where the recipe leaves it open; else a difference is told."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        Run.start(tmp_path).fit(plan_of(num_steps=2), options_of())
        torch.set_num_threads(2)
        run = Run.start(tmp_path)
        lines = said(run, monkeypatch)
        restored(run, keep_threads=False)
        assert lines[0] == "resume: 1 threads before, 2 now: later steps agree to rounding, not bit for bit"
        assert torch.get_num_threads() == 2
        restored(run, keep_threads=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
