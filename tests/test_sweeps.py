"""Sweeps: what is tried, what is refused before the first run, who wins, and that a killed one ends as a whole one."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_helpers import make_pictures, tiny_config

from vit_finetune import Config, evaluate, sweep
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.sweeps import sweep as sweep_module_function
from vit_finetune.sweeps.spaces import Range, combinations, read_grid, read_search, trial_config
from vit_finetune.sweeps.summary import as_csv, ranked

sweeps = sys.modules[sweep_module_function.__module__]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with three splits, the test split of other noise than val."""
    root = make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=4, val=2)
    rng = np.random.default_rng(5)
    for name in ("blue", "green", "red"):
        (root / "test" / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
                root / "test" / name / f"{index}.png"
            )
    return root


def recipe(pictures: Path, run_dir: Path, **sections: Any) -> dict[str, Any]:
    sections = {"train": {"steps": 2}, "evaluation": {"metric": "loss"}, **sections}
    return tiny_config(pictures, run_dir, **sections)


def watch(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """Note the folder of every run that starts; kill the sweep at the start of one of them."""
    started: list[str] = []
    real = sweeps.finetune

    def finetune(config: Config, *, resume: bool) -> Any:
        started.append(Path(config.run.dir).name)
        if len(started) - 1 == stop_at:
            raise KeyboardInterrupt
        return real(config, resume=resume)

    monkeypatch.setattr(sweeps, "finetune", finetune)
    return started


def test_combinations__are_all_of_them_in_order() -> None:
    """Two keys of two and three values: six combinations, the last key fastest."""
    grid = read_grid(["optimizer.lr=[0.001, 3e-3]", "train.steps=[5, 10, 20]"])
    assert [tuple(values.values()) for values in combinations(grid)] == [
        *((0.001, 5), (0.001, 10), (0.001, 20)),
        *((0.003, 5), (0.003, 10), (0.003, 20)),
    ]


def test_augreg__is_the_papers_grid() -> None:
    """`augreg` stands for four rates and two lengths, and combines with further keys."""
    grid = read_grid(["augreg", "optimizer.name=[sgd]"])
    assert grid["optimizer.lr"] == (0.001, 0.003, 0.01, 0.03)
    assert grid["train.steps"] == (500, 2500)
    assert len(combinations(grid)) == 8


def test_search__reads_ranges_and_choices() -> None:
    """LOW..HIGH is a range, of integers where both ends are; a list is a choice."""
    found = read_search(["optimizer.lr=1e-5..1e-3", "train.steps=10..99", "optimizer.name=[adamw, sgd]"])
    assert found == {
        "optimizer.lr": Range(1e-5, 1e-3),
        "train.steps": Range(10, 99),
        "optimizer.name": ("adamw", "sgd"),
    }
    assert isinstance(found["train.steps"].low, int)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("read", "texts", "message"),
    [
        (read_grid, ["optimizer.lr=0.1"], "not of the form optimizer.lr=\\[0.001,0.003\\]"),
        (read_grid, ["optimizer.lr=[]"], "names no values"),
        (read_grid, ["optimizer.lr=1..2"], "names no values"),
        (read_grid, ["lr=[1]"], "not of the form"),
        (read_grid, ["optimizer.lr"], "not of the form"),
        (read_grid, ["optimizer.lr=[1"], "not of the form"),
        (read_grid, ["optimizer.lr=[1]", "optimizer.lr=[2]"], "names optimizer.lr twice"),
        (read_search, ["optimizer.lr=2..1"], "the range 2..1 is empty"),
        (read_search, ["optimizer.lr=a..b"], "not of the form"),
        (read_search, ["optimizer.lr=[]"], "names no values"),
    ],
)
def test_spaces__refuse(read: Any, texts: list[str], message: str) -> None:
    """A text of another form is refused with the form it should have."""
    with pytest.raises(RequestError, match=message):
        read(texts)


def test_trial__lays_values_over_the_recipe(pictures: Path) -> None:
    """A trial is the recipe with its values, its own folder and no test split; steps replace epochs."""
    values = recipe(pictures, Path("runs/x"), data={"test_split": "test"})
    config = Config.load(values, overrides=["train.epochs=3"])
    trial = trial_config(config, {"train.steps": 7, "optimizer.betas": [0.8, 0.9]}, run_dir="runs/x/trial-000")
    assert (trial.train.steps, trial.train.epochs, trial.optimizer.betas) == (7, None, (0.8, 0.9))
    assert (trial.run.dir, trial.data.test_split) == ("runs/x/trial-000", None)
    assert config.data.test_split == "test"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "give a grid or a search"),
        ({"grid": {"optimizer.lr": [1e-3]}, "search": {"optimizer.lr": Range(1, 2)}}, "give a grid or a search"),
        ({"grid": {"optimizer.lr": [1e-3]}, "trials": 3}, "--trials is for a search"),
        ({"search": {"optimizer.lr": Range(1e-4, 1e-3)}}, "needs --trials"),
        ({"grid": {"train.steps": [3], "train.epochs": [1]}}, "replace each other; sweep one of them"),
        ({"grid": {"run.dir": ["a"]}}, "run.dir is the sweep's own"),
        (
            {"grid": {"optimizer.lr": [1e-3, -1]}},
            "optimizer.lr=-1: optimizer.lr: got -1; input should be greater than 0",
        ),
        ({"grid": {"optimizer.lrr": [1e-3]}}, "optimizer.lrr: no such key; did you mean 'lr'"),
        ({"grid": {"train.steps": [4, 1]}}, "train.steps=1: the warm-up of 2 steps is longer than the run of 1"),
        ({"search": {"optimizer.lr": Range(-1.0, 1.0)}, "trials": 2}, "greater than 0"),
    ],
)
def test_sweep__refuses_before_the_first_run(
    request_: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    """Every bad combination is found before anything runs or is written."""
    with pytest.raises(RequestError, match=message):
        sweep(recipe(pictures, tmp_path / "sweep"), **request_)
    assert not (tmp_path / "sweep").exists()


def test_sweep__needs_val(pictures: Path, tmp_path: Path) -> None:
    """Without val pictures there is nothing to choose by."""
    config = recipe(pictures, tmp_path / "sweep", data={"val_split": None})
    with pytest.raises(RequestError, match="chooses on val pictures, and there are none"):
        sweep(config, grid={"optimizer.lr": [1e-3]})


def test_grid__best_wins_and_is_scored_on_test_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials never see test, which is scored for the best only; the table is sorted; resuming runs nothing."""
    scored: list[Path] = []

    def counted(run: Path, *arguments: Any, **options: Any) -> Any:
        scored.append(run)
        return evaluate(run, *arguments, **options)

    monkeypatch.setattr(sweeps, "evaluate", counted)
    started = watch(monkeypatch)
    config = recipe(pictures, tmp_path / "sweep", data={"test_split": "test"})
    grid = {"optimizer.lr": [1e-6, 3e-3], "train.steps": [2, 3]}
    result = sweep(config, grid=grid)

    assert started == [f"trial-{number:03d}" for number in range(4)]
    losses = {}
    for name in started:
        told = json.loads((tmp_path / "sweep" / name / "metrics.json").read_text())
        assert told["split"] == "val"
        losses[int(name[-3:])] = told["loss"]
    best = min(losses, key=lambda number: losses[number])
    assert result.best_run == tmp_path / "sweep" / f"trial-{best:03d}"
    assert result.values == combinations(grid)[best]
    assert result.metrics["loss"] == losses[best]
    assert scored == [result.best_run]
    assert result.test == evaluate(result.best_run, pictures / "test").metrics
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == sorted(losses.values())
    assert list(table[0])[:3] == ["trial", "optimizer.lr", "train.steps"]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["best"] == best

    again = sweep(config, grid=grid, resume=True)
    assert len(started) == 4
    assert len(scored) == 1
    assert (again.rows, again.test) == (result.rows, result.test)


def test_grid__killed_sweep_goes_on(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its third trial, a sweep repeats none of the finished two and ends as an undisturbed one."""
    grid = {"optimizer.lr": [1e-4, 1e-3, 1e-2]}
    whole = sweep(recipe(pictures, tmp_path / "whole"), grid=grid)
    with monkeypatch.context() as patch:
        watch(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe(pictures, tmp_path / "killed"), grid=grid)
    started = watch(monkeypatch)
    resumed = sweep(recipe(pictures, tmp_path / "killed"), grid=grid, resume=True)
    assert started == ["trial-002"]
    assert resumed.rows == whole.rows


def test_search__is_a_function_of_the_seed(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds try the same; another seed something else; a search killed in its third trial ends as a whole one."""
    search = {"optimizer.lr": Range(1e-5, 1e-2), "optimizer.name": ("adamw", "sgd")}
    whole = sweep(recipe(pictures, tmp_path / "whole"), search=search, trials=4)
    assert all(1e-5 <= row["values"]["optimizer.lr"] <= 1e-2 for row in whole.rows)
    assert len({row["values"]["optimizer.lr"] for row in whole.rows}) == 4
    with monkeypatch.context() as patch:
        watch(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe(pictures, tmp_path / "killed"), search=search, trials=4)
    started = watch(monkeypatch)
    resumed = sweep(recipe(pictures, tmp_path / "killed"), search=search, trials=4, resume=True)
    assert started == ["trial-002", "trial-003"]
    assert resumed.rows == whole.rows

    more = sweep(recipe(pictures, tmp_path / "killed"), search=search, trials=5, resume=True)
    assert started[2:] == ["trial-004"]
    assert len(more.rows) == 5
    other = sweep(recipe(pictures, tmp_path / "other", run={"seed": 1}), search=search, trials=1)
    first = next(row for row in whole.rows if row["trial"] == 0)
    assert other.values != first["values"]


def test_sweep__a_failed_trial_is_a_finding(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A diverged trial is listed last with its reason; where all fail, the sweep says so."""
    real = sweeps.finetune

    def finetune(config: Config, *, resume: bool) -> Any:
        if config.optimizer.lr > 0.5:
            raise WorkError("step 1 stopped: loss nan")
        return real(config, resume=resume)

    monkeypatch.setattr(sweeps, "finetune", finetune)
    result = sweep(recipe(pictures, tmp_path / "one"), grid={"optimizer.lr": [1.0, 1e-3]})
    assert [row["trial"] for row in result.rows] == [1, 0]
    assert result.rows[1]["failed"] == "step 1 stopped: loss nan"
    assert "step 1 stopped" in (tmp_path / "one" / "sweep.csv").read_text()
    with pytest.raises(WorkError, match="all 2 trials failed; trial 0: step 1 stopped"):
        sweep(recipe(pictures, tmp_path / "all"), grid={"optimizer.lr": [1.0, 2.0]})


def test_sweep__folder_is_guarded(pictures: Path, tmp_path: Path) -> None:
    """A folder of something else, a sweep that is there, and a resumed one of another request are refused."""
    grid = {"optimizer.lr": [1e-3]}
    sweep(recipe(pictures, tmp_path / "sweep"), grid=grid)
    with pytest.raises(RequestError, match="holds a sweep already; give --resume"):
        sweep(recipe(pictures, tmp_path / "sweep"), grid=grid)
    with pytest.raises(RequestError, match="holds a sweep of another grid"):
        sweep(recipe(pictures, tmp_path / "sweep"), grid={"optimizer.lr": [1e-2]}, resume=True)
    with pytest.raises(RequestError, match="holds a sweep of another recipe"):
        sweep(recipe(pictures, tmp_path / "sweep", run={"seed": 2}), grid=grid, resume=True)
    with pytest.raises(RequestError, match="taken by something that is no sweep"):
        sweep(recipe(pictures, tmp_path), grid=grid, overwrite=True)
    assert sweep(recipe(pictures, tmp_path / "sweep"), grid={"optimizer.lr": [1e-2]}, overwrite=True).values == {
        "optimizer.lr": 1e-2
    }


def test_summary__sorts_by_the_metric() -> None:
    """A larger accuracy and a smaller loss come first, equal ones by number, failed ones last; as a table too."""
    rows: dict[int, dict[str, Any]] = {
        2: {"trial": 2, "values": {"a.b": 3}, "metrics": {"accuracy": 0.9, "loss": 0.5}},
        0: {"trial": 0, "values": {"a.b": 1}, "failed": "nan, at once"},
        1: {"trial": 1, "values": {"a.b": 2}, "metrics": {"accuracy": 0.9, "loss": 0.7}},
    }
    assert [row["trial"] for row in ranked(rows, "accuracy")] == [1, 2, 0]
    assert [row["trial"] for row in ranked(rows, "loss")] == [2, 1, 0]
    assert as_csv(ranked(rows, "loss"), ["a.b"]).splitlines() == [
        "trial,a.b,accuracy,loss,failed",
        "2,3,0.9,0.5,",
        "1,2,0.9,0.7,",
        '0,1,,,"nan, at once"',
    ]
