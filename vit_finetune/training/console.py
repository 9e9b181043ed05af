"""What a run says while it runs: a progress bar on a terminal, plain lines elsewhere, and run.log.

Only the first process speaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_PLAIN_LINES = 15.0


class RunConsole:
    """Speaks to the person who started the run.

    Args:
        enabled: false on all processes but the first, where nothing is said.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True, quiet=not enabled)
        self._enabled = enabled
        self._log: Path | None = None

    def log_to(self, path: Path) -> None:
        """Write everything that is said from now on to a file too."""
        self._log = path

    def say(self, *lines: str) -> None:
        """Print lines as they are, above the progress bar where there is one."""
        for line in lines:
            self._console.print(line, markup=False, emoji=False)
        if self._enabled and self._log is not None:
            stamp = datetime.now().astimezone().isoformat(timespec="seconds")
            with self._log.open("a", encoding="utf-8") as file:
                file.writelines(f"{stamp} {line}\n" for line in lines)

    @contextmanager
    def progress(self, *, num_steps: int, done: int) -> Iterator[StepProgress]:
        """Show how far the run is, as long as the block lasts.

        Args:
            num_steps: steps of the whole run.
            done: steps done before.
        """
        if not self._console.is_terminal:
            yield StepProgress(self, num_steps=num_steps, done=done)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            Remaining(),
        )
        with Progress(TextColumn("training"), *columns, console=self._console) as bar:
            task = bar.add_task("training", total=num_steps, completed=done, text="")
            yield StepProgress(self, num_steps=num_steps, done=done, bar=bar, task=task)


class StepProgress:
    """One line about the newest step, redrawn on a terminal and repeated now and then elsewhere."""

    def __init__(
        self, console: RunConsole, *, num_steps: int, done: int, bar: Progress | None = None, task: TaskID | None = None
    ) -> None:
        self._console = console
        self._num_steps = num_steps
        self._first = done
        self._bar = bar
        self._task = task
        self._started = self._spoke = time.monotonic()

    def update(self, step: int, figures: Mapping[str, str]) -> None:
        """Show the figures of a step.

        Args:
            step: steps done.
            figures: name -> text, such as {"loss": "0.693"}.
        """
        text = "  ".join(f"{name} {value}" for name, value in figures.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._spoke >= _SECONDS_BETWEEN_PLAIN_LINES or step == self._num_steps:
            self._spoke = now
            remaining = (now - self._started) / max(1, step - self._first) * (self._num_steps - step)
            self._console.say(f"step {step}/{self._num_steps}  {text}  {remaining:.0f} s left")
