"""A sweep: trials are ordinary runs below one folder, the best by val wins, and the test split is scored once, for it.

What a trial tries is a function of the seed, its number and the trials before it, so a sweep that was killed and goes
on ends as an undisturbed one. A trial that was killed goes on from its own checkpoint; a finished one is not repeated.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_finetune.assembly import build_model, make_objective, make_plan, settle_metric
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.figures import is_better
from vit_finetune.common.files import write_json, write_text
from vit_finetune.common.seeding import derive_seed
from vit_finetune.config import Config
from vit_finetune.evaluation import note_opening
from vit_finetune.finetune import finetune
from vit_finetune.pictures import open_splits
from vit_finetune.predict import evaluate
from vit_finetune.sweeps.spaces import Range, Space, check_keys, combinations, corners, suggest, told, trial_config
from vit_finetune.sweeps.summary import as_csv, ranked, summary, trial_name
from vit_finetune.training import RunConsole, start_accelerator

SWEEP_FILE, TABLE_FILE, JOURNAL_FILE = "sweep.json", "sweep.csv", "optuna.log"


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        run_dir: its folder, with a run's folder for each trial.
        best_run: the folder of the best trial.
        values: what that trial tried, key -> value.
        metric: what decided, a figure of the val split.
        metrics: the best trial's figures on val.
        test: its figures on the test split, scored once; None where the recipe names none.
        rows: a row a trial, best first, failed ones last: `trial`, `values`, `metrics` or `failed`.
    """

    run_dir: Path
    best_run: Path
    values: dict[str, Any]
    metric: str
    metrics: dict[str, float]
    test: dict[str, float] | None
    rows: tuple[dict[str, Any], ...]


def sweep(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    search: Mapping[str, Space] | None = None,
    trials: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> SweepResult:
    """Run a recipe with different values and find the best by its `evaluation.metric` on val.

    Args:
        config: what `finetune` takes; `run.dir` is the sweep's folder, `run.seed` decides a search.
        grid: section.key -> values; every combination is run.
        search: instead, section.key -> a `Range` or values to choose from, for optuna (extra `sweep`).
        trials: of a search.
        resume: go on with the sweep in `run.dir`, with more trials if more are asked for; starts it where there is
            none.
        overwrite: replace the sweep in `run.dir`.

    Returns:
        The finished sweep.

    Raises:
        RequestError: the request, a combination, or the data is not what it must be; nothing has run then.
        WorkError: every trial failed.
    """
    config = Config.load(config)
    console = RunConsole()
    going = _Sweep(Path(config.run.dir), config, dict(grid or {}), dict(search or {}), trials, console)
    going.check()
    going.open(resume=resume, overwrite=overwrite)
    if going.grid:
        for number, values in enumerate(combinations(going.grid)):
            going.run(number, values)
    else:
        going.search_all()
    return going.finish()


@dataclass
class _Sweep:
    """A sweep that is under way."""

    run_dir: Path
    config: Config
    grid: dict[str, Sequence[Any]]
    search: dict[str, Space]
    trials: int | None
    console: RunConsole

    def __post_init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.test: dict[str, Any] | None = None
        self.metric = self.config.evaluation.metric

    def check(self) -> None:
        """Refuse everything that can be known to fail before the first trial runs."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RequestError("a sweep runs its trials one after the other in one process; start it alone")
        if bool(self.grid) == bool(self.search):
            raise RequestError("give a grid or a search, such as --grid optimizer.lr=[0.001,0.003]")
        if self.grid and self.trials is not None:
            raise RequestError("--trials is for a search; a grid runs every combination")
        if self.search and (self.trials is None or self.trials < 1):
            raise RequestError("a search needs --trials, how many to run")
        if self.search:
            _import_optuna()
        check_keys([*self.grid, *self.search])
        splits = open_splits(self.config.data, seed=self.config.run.seed)
        if splits.val is None:
            raise RequestError("a sweep chooses on val pictures, and there are none; give data.val_split")
        self.metric = settle_metric(self.config, splits)[0].evaluation.metric
        network, model = None, None  # a recipe's network is built once for all trials that have it
        for values in combinations(self.grid or corners(self.search)):
            trial = trial_config(self.config, values, run_dir=str(self.run_dir))
            if trial.train.budget is not None or trial.tuning.mode == "readout":
                continue  # derive their numbers as they go
            accelerator = start_accelerator(
                device=trial.run.device,
                mixed_precision=trial.train.mixed_precision,
                trackers=trial.run.trackers,
                run_dir=self.run_dir,
                deterministic=trial.run.deterministic,
            )
            try:
                if network is None or trial.model != model:
                    network, model = build_model(trial, splits)[0].config, trial.model
                settled, _ = settle_metric(trial, splits)
                make_objective(settled, splits, make_plan(settled, splits, accelerator, network=network))
            except RequestError as error:
                raise RequestError(f"{told(values)}: {error}") from None

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Make the sweep's folder, or read what it holds."""
        if resume and overwrite:
            raise RequestError("--resume and --overwrite contradict each other; give one of them")
        path = self.run_dir / SWEEP_FILE
        if self.run_dir.exists() and (not self.run_dir.is_dir() or any(self.run_dir.iterdir())):
            if not path.is_file():
                raise RequestError(f"{self.run_dir} is taken by something that is no sweep; give another run.dir")
            if overwrite:
                shutil.rmtree(self.run_dir)
            elif not resume:
                raise RequestError(
                    f"{self.run_dir} holds a sweep already; give --resume to go on, --overwrite, or another run.dir"
                )
            else:
                self.read(path)
        self.write()

    def read(self, path: Path) -> None:
        """Take over the trials of a sweep that was begun."""
        told_before = json.loads(path.read_text(encoding="utf-8"))
        if told_before["request"] != self.request():
            keys = [key for key, value in self.request().items() if told_before["request"].get(key) != value]
            raise RequestError(f"{self.run_dir} holds a sweep of another {', '.join(keys)}; give the same")
        self.rows = {row["trial"]: row for row in told_before["rows"]}
        self.test = told_before["test"]

    def request(self) -> dict[str, Any]:
        """Return what makes two sweeps the same, as plain JSON values."""
        recipe = self.config.model_dump(mode="json")
        del recipe["run"]["dir"]
        ranges = {key: vars(space) if isinstance(space, Range) else space for key, space in self.search.items()}
        values: dict[str, Any] = json.loads(json.dumps({"recipe": recipe, "grid": self.grid, "search": ranges}))
        return values

    def run(self, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run a trial, or go on with it, unless it is done; return its row."""
        if number in self.rows:
            return self.rows[number]
        folder = self.folder(number)
        self.console.say(f"trial {number}  {told(values)}")
        row: dict[str, Any] = {"trial": number, "values": dict(values)}
        try:
            result = finetune(trial_config(self.config, values, run_dir=str(folder)), resume=True)
            row["metrics"] = result.metrics
        except WorkError as error:  # a rate that is too high is a finding, not the end of the sweep
            row["failed"] = str(error)
            self.console.say(f"trial {number} failed: {error}")
        self.rows[number] = row
        self.write()
        return row

    def folder(self, number: int) -> Path:
        """Return the run's folder of a trial."""
        return self.run_dir / trial_name(number)

    def search_all(self) -> None:
        """Let optuna choose what to try next until there are enough trials."""
        optuna = _import_optuna()
        assert self.trials is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(self.run_dir / JOURNAL_FILE))
        )
        direction = "minimize" if is_better(self.metric, 0.0, 1.0) else "maximize"
        study = optuna.create_study(study_name="sweep", storage=storage, direction=direction, load_if_exists=True)
        for number in range(self.trials):
            # A sampler a trial, so that the choice depends on the number and the history, not on where a sweep resumed.
            seed = derive_seed(self.config.run.seed, "sweep", number) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            known = study.get_trials(deepcopy=False)
            if number < len(known) and known[number].state.is_finished():
                continue
            trial = optuna.Trial(study, known[number]._trial_id) if number < len(known) else study.ask()
            row = self.run(number, suggest(trial, self.search))
            if "failed" in row:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, row["metrics"][self.metric])

    def finish(self) -> SweepResult:
        """Score the winner on the test split, once, and tell everything."""
        best, *_ = rows = ranked(self.rows, self.metric)
        if "failed" in best:
            raise WorkError(f"all {len(rows)} trials failed; trial {best['trial']}: {best['failed']}")
        run = self.folder(best["trial"])
        if self.config.data.test_split is not None and (self.test is None or self.test["trial"] != best["trial"]):
            splits = open_splits(self.config.data, seed=self.config.run.seed)
            self.test = {"trial": best["trial"], "metrics": evaluate(run, splits, split="test").metrics}
            note_opening(run, command="sweep", metrics=self.test["metrics"])
            self.write()
        test = None if self.test is None else self.test["metrics"]
        self.console.say(*summary(rows, self.metric, test, run))
        return SweepResult(self.run_dir, run, best["values"], self.metric, best["metrics"], test, tuple(rows))

    def write(self) -> None:
        """Write what is known, as JSON and as a table, best first."""
        rows = ranked(self.rows, self.metric)
        best = rows[0]["trial"] if rows and "metrics" in rows[0] else None
        values = {"request": self.request(), "metric": self.metric, "best": best, "test": self.test, "rows": rows}
        write_json(self.run_dir / SWEEP_FILE, values)
        write_text(self.run_dir / TABLE_FILE, as_csv(rows, [*self.grid, *self.search]))


def _import_optuna() -> Any:
    """Return optuna, or say how to get it."""
    try:
        import optuna
    except ImportError:
        raise RequestError("a search needs optuna; pip install 'vit-finetune[sweep]', or give a grid") from None
    return optuna
