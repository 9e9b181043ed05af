"""A run under a time budget: rung by rung, as long as the next one fits, with the best model so far always in place.

A rung starts only where it is expected to end within the budget, and is never cut: what is expected follows from
measured batches, and every decision stands in plan.json before it is carried out. Choices are made on val alone; the
test split, if there is one, is opened once, at the end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vit_finetune.assembly import settle_metric
from vit_finetune.common.durations import duration_text
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.figures import is_better
from vit_finetune.common.files import atomic_folder
from vit_finetune.common.layout import rung_dir
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.ladder.blending import blend
from vit_finetune.ladder.deciding import Situation, decide
from vit_finetune.ladder.decisions import Decision, Log
from vit_finetune.ladder.opening import checked_budget, open_run, settled_precision
from vit_finetune.ladder.pace import Pace, pilot_splits, read_pilot
from vit_finetune.ladder.rungs import BLEND, PILOT, RUNGS, TRAINING, Rung, pilot_config, rung_config
from vit_finetune.ladder.telling import Row, behind, finish, table
from vit_finetune.models import Backbone
from vit_finetune.pictures import open_splits
from vit_finetune.training import RunConsole, on_main, set_threads, start_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator


class Train(Protocol):
    """What carries out a rung: `finetune`."""

    def __call__(self, config: Config, *, resume: bool, data: Splits) -> object:
        """Carry out a run, or go on with it, on pictures that are open."""


@dataclass(frozen=True)
class Climbed:
    """What a run under a budget came to.

    Attributes:
        model: the best rung's, on the CPU, in eval mode.
        metrics: figures of the test split if there is one, else of val.
        best_rung: its name.
        best_step: the step of its own run that the model is of; 0 for what has no steps.
        num_steps: optimizer steps of all rungs.
    """

    model: Backbone
    metrics: dict[str, float]
    best_rung: str
    best_step: int
    num_steps: int


def climb(
    config: Config,
    *,
    train: Train,
    resume: bool = False,
    overwrite: bool = False,
    replay: str | Path | None = None,
    data: Splits | None = None,
    rungs: Sequence[Rung] = RUNGS,
    clock: Callable[[], float] = time.monotonic,
) -> Climbed:
    """Try what fits into `train.budget`, from the cheapest up, and keep the best on val.

    Args:
        config: of the run; `train.budget` is given.
        train: carries out a rung.
        resume: go on with the run in `run.dir`: decisions made stand, and the clock goes on where the last was made.
        overwrite: replace the run in `run.dir`.
        replay: plan.json of a finished run, whose decisions are taken over instead of made.
        data: the pictures, already opened.
        rungs: what to try, in order.
        clock: seconds, from anywhere.

    Returns:
        What came out.

    Raises:
        RequestError: the configuration contradicts the budget, or the plan was made for something else.
        WorkError: the disk refused; what was written before is whole.
    """
    started = clock()
    budget, run_dir = checked_budget(config), Path(config.run.dir)
    accelerator = start_accelerator(
        device=config.run.device,
        mixed_precision=settled_precision(config, resume=resume, plan=replay),
        trackers=(),  # each rung speaks to the trackers itself
        run_dir=run_dir,
        deterministic=config.run.deterministic,
    )
    splits = data or open_splits(config.data, seed=config.run.seed)
    log = open_run(
        config,
        splits,
        accelerator,
        num_threads=set_threads(config.run.num_threads),
        resume=resume,
        overwrite=overwrite,
        plan=replay,
        rungs=[rung.name for rung in rungs],
    )
    set_threads(log.num_threads)
    console = RunConsole(enabled=accelerator.is_main_process)
    console.log_to(run_dir / "run.log")
    spent = log.decisions[-1].elapsed_seconds if log.decisions else 0.0
    climber = _Climber(config, train, accelerator, console, splits, log, budget, lambda: spent + clock() - started)
    told = "decisions taken over from a plan" if replay is not None else f"{duration_text(budget - spent)} left"
    console.say(f"budget   {config.train.budget}, {told}; {len(rungs)} rungs to try, the best on val is kept")
    for place, rung in enumerate(rungs, start=1):
        climber.consider(rung, f"{place}/{len(rungs)}")
    return climber.end()


@dataclass
class _Climber:
    """The state of a climb between rungs."""

    config: Config
    train: Train
    accelerator: Accelerator
    console: RunConsole
    splits: Splits
    log: Log
    budget: int
    clock: Callable[[], float]
    rows: list[Row] = field(default_factory=list)
    best: Row | None = None

    def __post_init__(self) -> None:
        self.run_dir = Path(self.config.run.dir)
        self.config, about_metric = settle_metric(self.config, self.splits)
        self.console.say(*about_metric)
        # Rungs never see the test split.
        self.seen = replace(self.splits, test=None)
        if self.seen.val is None:
            raise RequestError("train.budget chooses by the val split, and this data has none; give one")
        self.num_val = len(self.seen.val)
        self.in_place = self.log.in_place

    def now(self) -> float:
        """Return the seconds of the budget that are gone, the same on every process."""
        return on_main(self.accelerator, self.clock)

    def consider(self, rung: Rung, place: str) -> None:
        """Decide about a rung, write that down, and climb it if it fits."""
        decision = self.log.of(rung.name)
        if decision is None:
            decision = self.decide(rung)
            self.write(self.log.with_decision(decision))
        self.console.say(
            f"rung     {place} {rung.name}: {rung.what}", f"rung     {decision.decision}: {decision.reason}"
        )
        if not decision.runs:
            self.rows.append(Row(rung.name, decision))
            return
        before = self.now()
        try:
            metrics = self.carry_out(rung, decision)
        except WorkError as error:
            if rung.kind != TRAINING or self.best is None:
                raise
            self.console.say(f"rung     {rung.name} failed and is left out: {error}")
            self.rows.append(Row(rung.name, decision, failed=str(error)))
            return
        if rung.name not in self.log.took:
            self.note_seconds(rung, self.now() - before)
        seconds = self.log.took[rung.name]
        self.compare(Row(rung.name, decision, metrics, seconds))

    def note_seconds(self, rung: Rung, seconds: float) -> None:
        """Keep what a rung took, for decisions to come; the first one shows what a forward pass takes."""
        pace = self.log.pace or asdict(Pace.of_first_rung(seconds, len(self.seen.train) + self.num_val))
        self.write(replace(self.log, pace=pace, took={**self.log.took, rung.name: round(seconds, 3)}))

    def write(self, log: Log) -> None:
        """Keep a log, on the disk first."""
        on_main(self.accelerator, lambda: log.write(self.run_dir))
        self.log = log

    def decide(self, rung: Rung) -> Decision:
        """Decide by the clock; steps are measured where a training rung may fit."""
        decision = decide(rung, self.situation())
        pace = self.log.pace
        if rung.kind == TRAINING and decision.runs and (pace is None or pace["step"] is None):
            self.measure(rung)
            decision = decide(rung, self.situation())
        return decision

    def situation(self) -> Situation:
        """Return what a decision rests on at this moment."""
        pace = None if self.log.pace is None else Pace(**self.log.pace)  # type: ignore[arg-type]
        final = 0 if self.splits.test is None else len(self.splits.test)
        elapsed, networks = self.now(), [row for row in self.rows if self.is_network(row)]
        return Situation(
            elapsed=round(elapsed, 3),
            left=self.budget - elapsed - (pace.scoring(final) if pace is not None else 0.0),
            pace=pace,
            num_train=len(self.seen.train),
            num_val=self.num_val,
            pictures_per_step=self.config.train.global_batch_size,
            took=self.log.took,
            networks={row.rung: row.decision.num_steps or 0 for row in networks},
            behind=behind(networks, self.best, metric=self.config.evaluation.metric),
        )

    def is_network(self, row: Row) -> bool:
        """Say whether a rung left a plain network behind, which others can start from."""
        path = rung_dir(self.run_dir, row.rung) / "model" / "config.json"
        return row.metrics is not None and on_main(self.accelerator, path.is_file)

    def measure(self, rung: Rung) -> None:
        """Time a few steps of training, as a run of its own that is thrown away."""
        pilot, few = rung_dir(self.run_dir, PILOT), pilot_splits(self.seen)
        config = pilot_config(self.config, rung, self.log)
        self.console.say(f"rung     {config.train.steps} steps to see how long they take")
        on_main(self.accelerator, lambda: shutil.rmtree(pilot, ignore_errors=True))
        before = self.now()
        self.train(config, resume=True, data=few)
        seconds = self.now() - before
        num_val, train = len(few.val or ()), self.config.train
        pace = on_main(self.accelerator, lambda: read_pilot(pilot, seconds=seconds, num_val=num_val, train=train))
        on_main(self.accelerator, lambda: shutil.rmtree(pilot, ignore_errors=True))
        self.write(replace(self.log, pace=asdict(pace)))

    def carry_out(self, rung: Rung, decision: Decision) -> dict[str, float]:
        """Climb a rung, or go on with it, and return its figures on val."""
        folder = rung_dir(self.run_dir, rung.name)
        if not on_main(self.accelerator, (folder / "metrics.json").is_file):
            if rung.kind == BLEND:
                ingredients = [row for row in self.rows if row.rung in rung.start and self.is_network(row)]
                blend(
                    self.config, self.seen, self.accelerator, ingredients=ingredients, run_dir=self.run_dir, dst=folder
                )
            else:
                config = rung_config(self.config, rung, decision, self.log)
                self.train(config, resume=True, data=self.seen)
        figures: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return {name: value for name, value in figures.items() if isinstance(value, float)}

    def compare(self, row: Row) -> None:
        """Put a rung's model in place if it is the best so far; equal figures are told apart by the val loss."""
        self.rows.append(row)
        metric = self.config.evaluation.metric
        if row.metrics is None:
            raise AssertionError("a rung that was climbed has figures")
        if self.best is not None and self.best.metrics is not None:
            value, best = row.metrics[metric], self.best.metrics[metric]
            ties = value == best and row.metrics["loss"] < self.best.metrics["loss"]
            if not (is_better(metric, value, best) or ties):
                return
        self.best = row
        if self.in_place is None:
            on_main(self.accelerator, lambda: self.put_in_place(row.rung))
            self.write(replace(self.log, in_place=row.rung))
        elif self.in_place == row.rung:  # a resumed run has passed the rungs that this one was better than
            self.in_place = None

    def put_in_place(self, rung: str) -> None:
        """Make `model/` the model of a rung, in one step."""
        with atomic_folder(self.run_dir / "model", replace=True) as folder:
            shutil.copytree(rung_dir(self.run_dir, rung) / "model", folder, dirs_exist_ok=True)

    def end(self) -> Climbed:
        """Score the best model as others will open it, write the figures and tell what happened."""
        if self.best is None:
            raise AssertionError("the first rung always runs")
        best, rows = self.best, self.rows
        model, metrics, best_step = finish(
            self.config, self.splits, self.accelerator, best=best, rows=rows, console=self.console
        )
        self.console.say(*table(rows, best=best, metric=self.config.evaluation.metric))
        self.console.say(f"budget   {duration_text(self.now())} of {duration_text(self.budget)}")
        told = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        split = "test" if self.splits.test is not None else "val"
        self.console.say(
            f"done     {best.rung} is the best on val; {split}: {told}",
            f"model    {self.run_dir / 'model'}",
            f"next     vit-finetune predict {self.run_dir} PICTURE_OR_FOLDER...",
        )
        num_steps = sum(row.decision.num_steps or 0 for row in rows if row.metrics is not None)
        return Climbed(model, metrics, best.rung, best_step, num_steps)
