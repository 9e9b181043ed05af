"""An entry of a cache, written by all processes of a run together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from vit_finetune.common.entries import EntryCache
from vit_finetune.common.errors import VitFinetuneError
from vit_finetune.training.processes import gathered_lists, on_main

if TYPE_CHECKING:
    from accelerate import Accelerator


def fill_entry(
    cache: EntryCache,
    key: str,
    *,
    accelerator: Accelerator,
    start: Callable[[], Path],
    write: Callable[[Path], None],
    finish: Callable[[Path], None],
) -> bool:
    """Write an entry, unless it is there or another run writes it while this one waits for its turn.

    Args:
        cache: where entries lie, on a disk that all processes share.
        key: of `cache_key`.
        accelerator: of the run.
        start: makes the folder; on the first process.
        write: writes this process's share into the folder.
        finish: makes the folder an entry; on the first process, once all have written.

    Returns:
        Whether the entry was there already.

    Raises:
        VitFinetuneError: what the first process to fail raised, on all of them.
    """
    if on_main(accelerator, lambda: cache.entry(key) is not None):
        return True
    with cache.writing(key) if accelerator.is_main_process else nullcontext():
        folder = on_main(accelerator, lambda: None if cache.entry(key) is not None else start())
        if folder is None:
            return False
        try:
            failed: list[VitFinetuneError] = []
            try:
                write(folder)
            except VitFinetuneError as error:
                failed.append(error)
            if everyones := gathered_lists(accelerator, failed):
                raise everyones[0]
            on_main(accelerator, lambda: finish(folder))
        finally:
            if accelerator.is_main_process:
                cache.discard(folder)
    return False
