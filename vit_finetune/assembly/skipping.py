"""Pictures that a run leaves out because they cannot be read: counted alike on every process, listed, within a budget.

A bad picture is a fact of its file, so this keeps no state that a checkpoint would have to hold: a resumed run reads
the list, and comes to the same pictures at the same steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vit_finetune.assembly.waiting import BytesBatch
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.files import atomic_file
from vit_finetune.config import DataConfig
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.bad_images import BadImage
from vit_finetune.data.batch import Batch
from vit_finetune.training import RunConsole, on_main
from vit_finetune.training.journal import Journal
from vit_finetune.training.processes import gathered_lists

if TYPE_CHECKING:
    from accelerate import Accelerator

BAD_IMAGES = "bad_images.jsonl"
_QUARANTINE = "quarantine"
_MAX_TOLD = 5


@dataclass
class SkippedImages:
    """The bad pictures of a run, under `data.on_bad_image: skip` or `quarantine`; methods are for all processes alike.

    Attributes:
        config: the section `data`.
        splits: the pictures of the run.
        run_dir: the list is bad_images.jsonl there; copies of the files go to quarantine/.
        accelerator: of the run.
        console: told about each of the first, and about every split.
    """

    config: DataConfig
    splits: Splits
    run_dir: Path
    accelerator: Accelerator
    console: RunConsole
    _known: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Take over what the run found before it was interrupted."""
        self._journal = Journal(self.run_dir / BAD_IMAGES, enabled=self.accelerator.is_main_process)
        self._known.update((row["split"], row["index"]) for row in on_main(self.accelerator, self._journal.rows))

    @property
    def allowed(self) -> bool:
        """Whether bad pictures are left out; if not, the first one ends the run."""
        return self.config.on_bad_image != "error"

    def number_in(self, pictures: ImageSet) -> int:
        """Return how many pictures of a split are known to be bad."""
        return sum(split == self.split_of(pictures) for split, _ in self._known)

    def count(self, micro_batches: Sequence[Batch | BytesBatch]) -> float:
        """Return what the loss of a training step is divided by, over all processes, and note what was left out.

        That is the number of pictures, or, where they have weights, the sum of those that are left.

        Args:
            micro_batches: this process's part of the step.

        Raises:
            WorkError: the budget is spent, or no picture of the step is left.
        """
        numbers = (map(len, micro_batches), (len(batch.bad) for batch in micro_batches), map(_weight, micro_batches))
        mine = torch.tensor([float(sum(each)) for each in numbers], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            mine = self.accelerator.reduce(mine, reduction="sum")
        count, num_bad, weight = mine.tolist()
        if num_bad:
            self._note(self.splits.train, [bad for batch in micro_batches for bad in batch.bad])
        if not count:
            raise WorkError(
                f"none of the {num_bad:.0f} pictures of a training step can be read; see {self._journal.path}"
            )
        return float(weight or count)  # where all that is left weighs 0, the loss is 0 whatever it is divided by

    def watch(self, batches: Iterable[Batch], found: list[BadImage]) -> Iterator[Batch]:
        """Yield the batches that are not empty; what they left out is appended to `found`."""
        for batch in batches:
            found.extend(batch.bad)
            if len(batch):
                yield batch

    def num_readable(self, pictures: ImageSet, found: Sequence[BadImage]) -> int:
        """Note what an evaluation left out and return how many pictures it must have counted.

        Args:
            pictures: the split.
            found: by this process, over its whole share.

        Raises:
            WorkError: the budget is spent.
        """
        return len(pictures) - self._note(pictures, found)

    def lines(self) -> list[str]:
        """Return what a person wants to know at the end; nothing where no picture was left out."""
        numbers = [(name, self.number_in(pictures), len(pictures)) for name, pictures in self.splits.named()]
        told = ", ".join(f"{bad} of {count:,} {name}" for name, bad, count in numbers if bad)
        about = "losses and figures are over the others"
        return [f"skipped  {told} pictures cannot be read; {about}; see {self._journal.path}"] if told else []

    def split_of(self, pictures: ImageSet) -> str:
        """Return the name of a split: train, val or test."""
        return next(name for name, split in self.splits.named() if split is pictures)

    def _note(self, pictures: ImageSet, found: Sequence[BadImage]) -> int:
        """List what was not known yet and return how many of the processes' pictures were bad this time."""
        everyones = sorted(gathered_lists(self.accelerator, list(found)))
        split = self.split_of(pictures)
        new = [bad for bad in everyones if (split, bad.index) not in self._known]
        self._known.update((split, bad.index) for bad in new)
        on_main(self.accelerator, lambda: self._write(split, pictures, new))
        number, limit = self.number_in(pictures), self.config.max_bad_fraction
        if new and number > limit * len(pictures):
            raise WorkError(
                f"{number} of {len(pictures):,} {split} pictures cannot be read, more than data.max_bad_fraction "
                f"{limit:g} allows; they are listed in {self._journal.path}; repair or remove them"
            )
        return len(everyones)

    def _write(self, split: str, pictures: ImageSet, new: Sequence[BadImage]) -> None:
        told = sum(name == split for name, _ in self._known) - len(new)
        for bad in new:
            key = pictures.store.key(bad.index)
            row = {"split": split, "index": bad.index, "name": key, "reason": bad.reason}
            if self.config.on_bad_image == "quarantine":
                row["copy"] = self._copy(split, pictures, bad.index)
            self._journal.write(row)
            told += 1
            if told <= _MAX_TOLD:
                more = "; further ones are only listed" if told == _MAX_TOLD else ""
                self.console.say(f"skipped  {split}: {bad.reason}{more}")

    def _copy(self, split: str, pictures: ImageSet, index: int) -> str | None:
        """Lay a copy of the file aside; the data set stays as it is, for other runs and for resuming this one."""
        name = re.sub(r"[^\w.-]", "_", pictures.store.key(index).rsplit("/", 1)[-1])[-100:]
        path = self.run_dir / _QUARANTINE / split / f"{index}-{name}"
        try:
            data = pictures.store.read(index)
        except RequestError:  # there are no bytes to keep
            return None
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
        return str(path.relative_to(self.run_dir))


def _weight(batch: Batch | BytesBatch) -> float:
    """Return what the pictures of a batch weigh together."""
    return float(len(batch)) if batch.weights is None else float(batch.weights.sum())
