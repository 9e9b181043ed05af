"""A run under a budget: what it leaves behind, that its model is its best rung's, that it replays and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ladder_helpers import MIX, PROBE, RUNGS, TUNE, Clock, budget_config
from run_helpers import make_pictures, run_module, tiny_config
from safetensors.torch import load_file

from vit_finetune import Predictor, evaluate_corrupted, finetune
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.ladder import Climbed, climb
from vit_finetune.ladder.decisions import read_log
from vit_finetune.ladder.rungs import RUNGS as SHIPPED


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Climbed:
    """One climb over every rung, by the real clock, that several tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = budget_config(pictures, folder, run={"report": "auto"})
    return climb(config, train=finetune, rungs=RUNGS), folder  # type: ignore[return-value]


def figures(run_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return values


def rungs_of(run_dir: Path) -> dict[str, str]:
    return {row["rung"]: row["decision"] for row in figures(run_dir)["ladder"]}


class FakeRung:
    """Carries out rungs in no time: a tiny linear probe is trained once, and told figures are written beside it.

    Args:
        clock: moved on by what a rung takes.
        seconds: of each rung, by name; a pilot takes its own.
        accuracy: of each rung on val, by name.
    """

    def __init__(self, clock: Clock, seconds: dict[str, float], accuracy: dict[str, float]) -> None:
        self.clock, self.seconds, self.accuracy = clock, seconds, accuracy
        self.told: list[Config] = []
        self.seen: list[Splits] = []

    def __call__(self, config: Config, *, resume: bool, data: Splits) -> object:
        """Train for one step, whatever was asked for, and write the told figures."""
        run_dir = Path(config.run.dir)
        self.told.append(config)
        self.seen.append(data)
        values = config.model_dump(mode="json")
        values["train"] |= {"steps": 1}
        values["schedule"] |= {"warmup_steps": 0}
        finetune(values, resume=resume, data=data)
        self.clock.time += self.seconds[run_dir.name]
        if run_dir.name == "pilot":
            steps = [{"step": step, "seconds": 1.0} for step in (1, 2, 3, 4)]
            rows = [*steps, {"step": 4, "evaluation_seconds": 0.0}]
            (run_dir / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            return None
        told = figures(run_dir) | {"accuracy": self.accuracy[run_dir.name], "loss": 1 - self.accuracy[run_dir.name]}
        (run_dir / "metrics.json").write_text(json.dumps(told))
        return None


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_climb__leaves_a_run_folder_behind(whole: tuple[Climbed, Path]) -> None:
    """The documented files, the best rung's model byte for byte, and figures that agree with the result."""
    climbed, folder = whole
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.yaml", "plan.json", "environment.json", "manifest.parquet", "run.log", "metrics.json"),
        *("predictions.parquet", "model", "rungs", "report.html"),
    }
    assert {path.name for path in (folder / "rungs").iterdir()} == {rung.name for rung in RUNGS}
    told = figures(folder)
    assert told["best_rung"] == climbed.best_rung
    assert {name: told[name] for name in climbed.metrics} == climbed.metrics
    assert weights(folder) == weights(folder / "rungs" / climbed.best_rung)
    assert rungs_of(folder) == {rung.name: "run" for rung in RUNGS}
    log = (folder / "run.log").read_text()
    assert all(f"ladder   {rung.name}" in log for rung in RUNGS)


def test_climb__is_never_worse_on_val_than_a_rung(whole: tuple[Climbed, Path]) -> None:
    """The final accuracy on val is the highest of all rungs, and of equal ones the loss is the lowest."""
    climbed, folder = whole
    rows = [row["val"] for row in figures(folder)["ladder"]]
    best = max(row["accuracy"] for row in rows)
    assert climbed.metrics["accuracy"] == best
    assert climbed.metrics["loss"] == min(row["loss"] for row in rows if row["accuracy"] == best)


def test_climb__the_result_opens_as_any_run(whole: tuple[Climbed, Path], pictures: Path) -> None:
    """A Predictor opens the folder and gives the network's own answers."""
    climbed, folder = whole
    predictor = Predictor(folder)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(predictor.model(images), climbed.model(images))


def test_climb__training_starts_from_the_probe(whole: tuple[Climbed, Path]) -> None:
    """Fine-tuning's first loss is the probe's, not ln 3: its head is taken over."""
    _, folder = whole
    config = Config.load(folder / "rungs" / "fine_tune")
    assert config.model.pretrained == str(folder / "rungs" / "logistic" / "model")
    assert config.model.head_init == "pretrained"
    start = load_file(folder / "rungs" / "logistic" / "model" / "model.safetensors")
    assert start["head.weight"].abs().sum() > 0


def test_replay__gives_the_same_bytes_whatever_the_clock_says(
    whole: tuple[Climbed, Path], pictures: Path, tmp_path: Path
) -> None:
    """Decisions are taken from plan.json: under a clock that says nothing fits, model and figures are equal bytes."""
    _, folder = whole

    def broken_clock() -> float:
        return next(ticks)

    ticks: Iterator[float] = iter(range(0, 10**9, 10**4))
    config = budget_config(pictures, tmp_path / "again", budget="1s")
    climb(config, train=finetune, rungs=RUNGS, replay=folder / "plan.json", clock=broken_clock)
    for name in ("model/model.safetensors", "metrics.json", "rungs/fine_tune_longer/metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert read_log(tmp_path / "again").decisions == read_log(folder).decisions


def test_replay__refuses_what_the_plan_is_not_of(whole: tuple[Climbed, Path], pictures: Path, tmp_path: Path) -> None:
    """Another learning rate or data, a plan of a plain run, one that was cut off: each is named, nothing is written."""
    _, folder = whole

    def refusal(config: Config, plan: Path) -> str:
        with pytest.raises(RequestError) as error:
            climb(config, train=finetune, rungs=RUNGS, replay=plan)
        return str(error.value)

    config = budget_config(pictures, tmp_path / "other", optimizer={"lr": 2e-3})
    assert "optimizer.lr was 0.001, now 0.002" in refusal(config, folder / "plan.json")
    others = make_pictures(tmp_path / "pictures", train=6, val=2)
    config = budget_config(others, tmp_path / "other")
    assert "data was" in refusal(config, folder / "plan.json")
    config = budget_config(pictures, tmp_path / "other")
    assert "holds no decisions of a run under a budget" in refusal(config, folder / "rungs" / "fine_tune" / "plan.json")
    assert "cannot read the plan" in refusal(config, tmp_path / "nothing.json")
    cut = json.loads((folder / "plan.json").read_text())
    cut["decisions"] = cut["decisions"][:2]
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    assert "decides about logistic, fine_tune, and the rungs are" in refusal(config, tmp_path / "cut.json")
    assert not (tmp_path / "other").exists()


def test_replay__is_for_runs_under_a_budget(pictures: Path, tmp_path: Path) -> None:
    """A run of steps repeats by itself; a plan for it is a misunderstanding."""
    with pytest.raises(RequestError, match=r"a plan replays a run under train\.budget"):
        finetune(tiny_config(pictures, tmp_path / "run"), replay=tmp_path / "plan.json")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("rung", ["logistic", "fine_tune", "fine_tune_longer"])
def test_resume__after_a_kill_keeps_the_decisions(pictures: Path, tmp_path: Path, rung: str) -> None:
    """Killed inside a rung, then resumed: the decisions made stand, and the rung is done as decided."""
    clock = Clock()
    names = ("logistic", "pilot", "fine_tune", "fine_tune_longer")
    rungs = FakeRung(clock, dict.fromkeys(names, 5.0), dict.fromkeys(names, 0.5))

    def dies(config: Config, *, resume: bool, data: Splits) -> object:
        if Path(config.run.dir).name == rung:
            raise Killed
        return rungs(config, resume=resume, data=data)

    config = budget_config(pictures, tmp_path / "run")
    with pytest.raises(Killed):
        climb(config, train=dies, rungs=RUNGS, clock=clock)
    before = read_log(tmp_path / "run").decisions
    assert before[-1].rung == rung
    assert before[-1].runs
    assert (tmp_path / "run" / "model").is_dir() == (rung != "logistic"), "a model is there from the first rung on"
    in_place = read_log(tmp_path / "run").in_place
    assert in_place == (None if rung == "logistic" else "logistic"), "of equal ones the earlier"

    with pytest.raises(RequestError, match="holds a run already"):
        climb(config, train=rungs, rungs=RUNGS, clock=clock)
    climb(config, train=rungs, rungs=RUNGS, clock=clock, resume=True)
    after = read_log(tmp_path / "run").decisions
    assert after[: len(before)] == before
    assert [decision.rung for decision in after] == [item.name for item in RUNGS]
    assert after[-1].elapsed_seconds >= before[-1].elapsed_seconds, "the clock goes on, it does not start again"
    steps = {Path(told.run.dir).name: told.train.steps for told in rungs.told}
    assert steps[rung] == (before[-1].num_steps or 2)


def test_resume__of_a_finished_run_changes_nothing(whole: tuple[Climbed, Path], pictures: Path) -> None:
    """Resuming a run that is done gives its figures, without a rung carried out; the files stay byte for byte."""
    climbed, folder = whole
    names = ("metrics.json", "plan.json", "model/model.safetensors")
    before = [(folder / name).read_bytes() for name in names]

    def never(config: Config, *, resume: bool, data: Splits) -> object:
        raise AssertionError(f"{config.run.dir} is done")

    again = climb(budget_config(pictures, folder), train=never, rungs=RUNGS, resume=True)
    assert again.metrics == climbed.metrics
    assert [(folder / name).read_bytes() for name in names] == before


def test_resume__refuses_other_data(pictures: Path, tmp_path: Path) -> None:
    """One picture less, and the run says that its data is not what it was."""
    root = make_pictures(tmp_path / "pictures", train=6, val=3)
    clock = Clock()
    rungs = FakeRung(clock, {"logistic": 100.0}, {"logistic": 0.5})
    config = budget_config(root, tmp_path / "run")
    climb(config, train=rungs, rungs=RUNGS, clock=clock)
    (root / "train" / "red" / "0.png").unlink()
    with pytest.raises(RequestError, match="was started with other data"):
        climb(config, train=rungs, rungs=RUNGS, clock=clock, resume=True)


def test_climb__too_small_a_budget_gives_the_first_rung(pictures: Path, tmp_path: Path) -> None:
    """The first rung runs whatever it takes; every other is skipped with its reason, and the model is the first's."""
    clock = Clock()
    rungs = FakeRung(clock, {"logistic": 30.0}, {"logistic": 0.4})
    climbed = climb(budget_config(pictures, tmp_path / "run", budget="1s"), train=rungs, rungs=RUNGS, clock=clock)
    assert climbed.best_rung == "logistic"
    assert list(rungs_of(tmp_path / "run").values()) == ["run", "skip", "skip", "skip"]
    reasons = [decision.reason for decision in read_log(tmp_path / "run").decisions[1:]]
    assert all("left" in reason or "nothing was trained" in reason for reason in reasons)
    assert "budget   30 s of 1 s" in (tmp_path / "run" / "run.log").read_text()


def test_climb__ends_within_its_budget(pictures: Path, tmp_path: Path) -> None:
    """Where every rung takes what was predicted, the run ends before its budget does, and leaves no rung out."""
    clock = Clock()
    names = ("logistic", "pilot", "fine_tune", "fine_tune_longer")

    class Punctual(FakeRung):
        """Takes a second a step, as the pilot says."""

        def __call__(self, config: Config, *, resume: bool, data: Splits) -> object:
            self.seconds[Path(config.run.dir).name] = float(config.train.steps or 0)
            return super().__call__(config, resume=resume, data=data)

    rungs = Punctual(clock, dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.5))
    climb(budget_config(pictures, tmp_path / "run", budget="25s"), train=rungs, rungs=RUNGS, clock=clock)
    assert clock.time <= 1000 + 25
    assert rungs_of(tmp_path / "run")["fine_tune"] == "run"


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [(0.5, 0.75, "fine_tune"), (0.75, 0.5, "logistic"), (0.75, 0.75, "logistic")],
)
def test_climb__keeps_the_better_model(pictures: Path, tmp_path: Path, first: float, second: float, best: str) -> None:
    """A rung that is better on val replaces the model, a worse or equal one does not."""
    clock = Clock()
    seconds = {"logistic": 1.0, "pilot": 1.0, "fine_tune": 1.0}
    rungs = FakeRung(clock, seconds, {"logistic": first, "fine_tune": second})
    climbed = climb(budget_config(pictures, tmp_path / "run"), train=rungs, rungs=(PROBE, TUNE), clock=clock)
    assert climbed.best_rung == best
    assert weights(tmp_path / "run") == weights(tmp_path / "run" / "rungs" / best)


def test_climb__a_rung_that_diverges_is_left_out(pictures: Path, tmp_path: Path) -> None:
    """A loss that is not finite costs its rung, and is said; the model of the rung before stays."""
    clock = Clock()
    rungs = FakeRung(clock, {"logistic": 1.0, "pilot": 1.0}, {"logistic": 0.5})

    def diverges(config: Config, *, resume: bool, data: Splits) -> object:
        if Path(config.run.dir).name == "fine_tune":
            raise WorkError("step 3 stopped: loss nan")
        return rungs(config, resume=resume, data=data)

    climbed = climb(budget_config(pictures, tmp_path / "run"), train=diverges, rungs=(PROBE, TUNE, MIX), clock=clock)
    assert climbed.best_rung == "logistic"
    row = figures(tmp_path / "run")["ladder"][1]
    assert (row["failed"], row["val"]) == ("step 3 stopped: loss nan", None)
    assert "fine_tune failed and is left out: step 3 stopped" in (tmp_path / "run" / "run.log").read_text()


def test_climb__rungs_never_see_the_test_split(pictures: Path, tmp_path: Path) -> None:
    """val/ as the test split: val is carved from train, rungs get no test split, and the final figures are test's."""
    clock = Clock()
    rungs = FakeRung(clock, {"logistic": 1.0, "pilot": 1.0, "fine_tune": 1.0}, {"logistic": 0.5, "fine_tune": 0.25})
    config = budget_config(pictures, tmp_path / "run", data={"test_split": "val"})
    climb(config, train=rungs, rungs=(PROBE, TUNE), clock=clock)
    assert [data.test for data in rungs.seen] == [None] * 3
    assert {len(data.train) for data in rungs.seen} == {33}
    told = figures(tmp_path / "run")
    assert (told["split"], told["num_samples"]) == ("test", 15)


def test_climb__corrupted_pictures_are_scored_once(pictures: Path, tmp_path: Path) -> None:
    """Corruptions are the best model's alone, at the end; the rungs do not spend time on them."""
    config = budget_config(pictures, tmp_path / "run", evaluation={"corruptions": True})
    clock = Clock()
    rungs = FakeRung(clock, {"logistic": 1.0}, {"logistic": 0.5})
    climb(config, train=rungs, rungs=(PROBE,), clock=clock)
    told = figures(tmp_path / "run")["corruptions"]
    assert told == evaluate_corrupted(tmp_path / "run", pictures / "val", seed=0)
    assert [config.evaluation.corruptions for config in rungs.told] == [False]


def test_climb__contradictions_are_refused(pictures: Path, tmp_path: Path) -> None:
    """A tuning mode beside a budget, no val split to choose by: refused before anything is written."""
    with pytest.raises(RequestError, match=r"drop train\.wise_ft"):
        finetune(budget_config(pictures, tmp_path / "run", train={"wise_ft": True}))
    with pytest.raises(RequestError, match=r"patience has nothing to wait for; drop train\.early_stopping_patience"):
        finetune(budget_config(pictures, tmp_path / "run", train={"early_stopping_patience": 3}))
    with pytest.raises(RequestError, match=r"drop the section tuning \(mode linear_probe\)"):
        finetune(budget_config(pictures, tmp_path / "run", tuning={"mode": "linear_probe"}))
    with pytest.raises(RequestError, match=r"data\.val_split is null"):
        finetune(budget_config(pictures, tmp_path / "run", data={"val_split": None}))
    assert not (tmp_path / "run").exists()


def test_climb__the_shipped_rungs_and_their_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real table, cut to one epoch, on a tiny network: readouts, training, blend; the replay gives equal bytes."""
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path / "cache"))
    root = make_pictures(tmp_path / "pictures", train=8, val=3)
    rungs = [replace(rung, epochs=min(rung.epochs, 1)) for rung in SHIPPED]
    first = climb(budget_config(root, tmp_path / "one", "1h", data={"test_split": "val"}), train=finetune, rungs=rungs)
    decided = {decision.rung: decision for decision in read_log(tmp_path / "one").decisions}
    assert list(decided) == [rung.name for rung in SHIPPED]
    assert all(decision.runs for decision in decided.values()), "an hour is enough for a network of two blocks"
    assert decided["fine_tune"].starts_from == "logistic"
    assert decided["fine_tune_readout"].starts_from == "fine_tune"
    assert Predictor(tmp_path / "one").class_names == ("blue", "green", "red")
    again = climb(
        budget_config(root, tmp_path / "two", "1s", data={"test_split": "val"}),
        train=finetune,
        rungs=rungs,
        replay=tmp_path / "one" / "plan.json",
    )
    assert again.metrics == first.metrics
    for rung in SHIPPED:
        name = f"rungs/{rung.name}/model/model.safetensors"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


@pytest.mark.slow
def test_climb__two_processes_share_it(tmp_path: Path) -> None:
    """On two gloo processes every rung is climbed in turn, with one set of decisions, and only the first one speaks."""
    root = make_pictures(tmp_path / "pictures", train=8, val=3)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(budget_config(root, tmp_path / "run", "1h").to_yaml())
    done = run_module(["train", str(recipe), "--num-processes", "2"], VIT_FINETUNE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert rungs_of(tmp_path / "run") == {rung.name: "run" for rung in SHIPPED}
    assert done.stdout.count("rung     8/8 blend") == 1
    assert read_log(tmp_path / "run").num_processes == 2
