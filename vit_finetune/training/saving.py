"""When the files of a checkpoint are written: at once, or behind training in a thread.

Either way the order on the disk is the same: the folder whole and synced, then the pointers, then old ones go
(checkpoint.py). Behind training, a copy of every tensor is made first, and nothing that training changes is read later.
At most one save is under way. One that fails asks for the end of the run, which all processes agree on as they do on
a signal, and is told where the run would save next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from vit_finetune.training import checkpoint as store
from vit_finetune.training.progress import FitOptions
from vit_finetune.training.stopping import StopRequest


class Saver:
    """Writes the checkpoints of a run; leaving its `with` block waits for the one under way, unless in a hurry.

    Args:
        root: the run's `checkpoints` folder.
        options: how many checkpoints are kept, and whether they are written behind training.
        stop: told how long a save takes, and asked for the end of the run where one behind training failed.
    """

    def __init__(self, root: Path, options: FitOptions, stop: StopRequest) -> None:
        self._root, self._options, self._stop = root, options, stop
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait; a second Ctrl-C does not, and what is half-written then never gets its name."""
        if kind is None or issubclass(kind, Exception):
            self.join()

    def save(
        self,
        *,
        step: int,
        best_step: int | None,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None,
        state: Mapping[str, Any],
    ) -> None:
        """Write the checkpoint of a step, then the pointers, then remove old ones.

        Args:
            step: steps done.
            best_step: of the best checkpoint so far, or None.
            model: the bare network's state dict.
            optimizer: of `optim.optimizer_tensors`.
            average: the averaged network's state dict, or None.
            state: plain JSON values.

        Raises:
            WorkError: the disk refused it, or the save before.
        """
        self.wait()
        write = partial(self._write, step=step, best_step=best_step, state=state)
        if not self._options.asynchronous:
            write(model=model, optimizer=optimizer, average=average)
            return
        copies = {"model": _copied(model), "optimizer": _copied(optimizer)}
        kept = None if average is None else _copied(average)
        # A daemon: a process that is told to leave at once does not wait for it.
        self._thread = threading.Thread(
            target=self._behind, args=(partial(write, **copies, average=kept),), daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return once nothing is under way.

        Raises:
            WorkError: the disk refused the save that was.
        """
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Return once nothing is under way, whatever came of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _behind(self, write: partial[None]) -> None:
        started = time.monotonic()
        try:
            write()
        except BaseException as error:
            self._error = error
            self._stop.ask("a checkpoint that could not be written")
        self._stop.took(save=time.monotonic() - started)

    def _write(
        self,
        *,
        step: int,
        best_step: int | None,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None,
        state: Mapping[str, Any],
    ) -> None:
        root = self._root
        store.save_checkpoint(root, step=step, model=model, optimizer=optimizer, average=average, state=state)
        store.settle(root, step=step, best_step=best_step, keep_last=self._options.keep_last)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU that share no memory with the given ones."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
