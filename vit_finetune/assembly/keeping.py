"""Where the pictures of a run come from: their files at every visit, or a cache filled before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vit_finetune.common.entries import cache_key, default_cache_dir, gigabytes
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.layout import MANIFEST
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config, DataConfig
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.cache import FORMAT, CachedImages, PictureCache, expected_bytes, write_part
from vit_finetune.data.loader import default_num_workers
from vit_finetune.data.manifest import split_digests
from vit_finetune.data.order import eval_indices
from vit_finetune.data.prepared import EvalPreparation, PreparedImages, TrainPreparation
from vit_finetune.training import RunConsole, TrainPlan, on_main
from vit_finetune.training.shared_entries import fill_entry

if TYPE_CHECKING:
    from accelerate import Accelerator


def num_workers_of(config: Config, accelerator: Accelerator) -> int:
    """Return the worker processes of each process of the run."""
    workers = config.data.num_workers
    if isinstance(workers, str):
        return default_num_workers(accelerator.device.type, accelerator.num_processes)
    return workers


def picture_sources(
    config: Config,
    splits: Splits,
    *,
    preprocess: PreprocessSpec,
    plan: TrainPlan,
    accelerator: Accelerator,
    console: RunConsole,
) -> dict[str, ImageSet]:
    """Return what the splits' pictures are read from, filling the cache where the recipe has one.

    Kept or not, the pixels are the same. The test split is read once and never kept.

    Args:
        config: of the run; its folder holds the manifest already.
        splits: the pictures.
        preprocess: the evaluation transform, of which the kept val pictures have the first half behind them.
        plan: says how often a picture is visited.
        accelerator: of the run.
        console: told what is kept.

    Returns:
        The train split's under `train`; under `val` `CachedImages`, where those are kept.

    Raises:
        RequestError: there is no room, a picture cannot be read, or pictures have other channels than colours.
        WorkError: the disk is full, or the processes do not share the cache.
    """
    data = config.data
    train = TrainPreparation(data.working_size, data.draft, data.resizer)
    plain: dict[str, ImageSet] = {"train": splits.train if train.is_plain else PreparedImages.of(splits.train, train)}
    channels = preprocess.input_size[0]
    if channels not in (1, 3) and (data.cache == "decoded" or not train.is_plain):
        raise RequestError(
            f"the model takes {channels} channels, and data.cache, working_size and resizer torch are for pictures of "
            "colours; leave them out"
        )
    if data.cache == "off" or channels not in (1, 3):
        return plain
    wanted = {"train": PreparedImages.of(splits.train, train)}
    if splits.val is not None:
        wanted["val"] = PreparedImages.of(splits.val, EvalPreparation(preprocess))
    root = Path(data.cache_dir).expanduser() if data.cache_dir is not None else default_cache_dir("pictures")
    filler = _Filler(config, PictureCache(root, int(data.cache_limit_gb * 1e9)), accelerator, console)
    facts = on_main(accelerator, lambda: _facts(Path(config.run.dir), wanted))
    reason = on_main(accelerator, lambda: filler.reason_against(wanted, facts, plan))
    if reason is not None:
        console.say(f"cache    off: {reason}")
        return plain
    keys = {name: cache_key(fact) for name, fact in facts.items()}
    return {name: filler.kept(name, images, keys, facts[name]) for name, images in wanted.items()}


def _facts(run_dir: Path, wanted: dict[str, PreparedImages]) -> dict[str, dict[str, object]]:
    """Return all that the pixels of each split depend on."""
    digests = split_digests(run_dir / MANIFEST)
    return {
        name: {"format": FORMAT, "pictures": digests[name], "count": len(images), **images.prepare.facts()}
        for name, images in wanted.items()
    }


class _Filler:
    """Fills a cache with the pictures of a run."""

    def __init__(self, config: Config, cache: PictureCache, accelerator: Accelerator, console: RunConsole) -> None:
        self.config = config
        self.cache = cache
        self.accelerator = accelerator
        self.console = console

    @property
    def data(self) -> DataConfig:
        return self.config.data

    def reason_against(
        self, wanted: dict[str, PreparedImages], facts: dict[str, dict[str, object]], plan: TrainPlan
    ) -> str | None:
        """Say why auto keeps nothing; None where pictures are kept. Refuse what was asked for and has no room."""
        self.sizes = {
            name: expected_bytes(images)
            for name, images in wanted.items()
            if self.cache.entry(cache_key(facts[name])) is None
        }
        if self.data.cache == "decoded" or not self.sizes:
            remedy = "set data.working_size, or data.cache off"
            self.cache.check_space(
                list(self.sizes.values()), what="the decoded pictures", section="data", remedy=remedy
            )
            return None
        need, room = sum(self.sizes.values()), min(self.cache.limit, self.cache.free_bytes())
        if plan.epoch_at(plan.num_steps) < 2:
            return "no picture is visited twice"
        if need > room:
            return f"the decoded pictures take {gigabytes(need)}, and there is room for {gigabytes(room)}"
        return None

    def kept(self, name: str, images: PreparedImages, keys: dict[str, str], facts: dict[str, object]) -> CachedImages:
        """Return a split that reads from the cache."""
        rank, world, key = self.accelerator.process_index, self.accelerator.num_processes, keys[name]
        hit = fill_entry(
            self.cache,
            key,
            accelerator=self.accelerator,
            start=lambda: self.cache.begin(key, self.sizes.get(name, 0), keep=list(keys.values())),
            write=lambda folder: write_part(
                folder,
                rank,
                images,
                eval_indices(len(images), rank, world),
                num_workers=num_workers_of(self.config, self.accelerator),
                skip_bad=self.data.on_bad_image != "error",
            ),
            finish=lambda folder: self.cache.finish(key, folder, len(images), facts),
        )
        found = self.cache.find(key, images)
        if found is None:
            raise WorkError(
                f"the pictures in {self.cache.root} cannot be read by process {rank}: they were evicted, or the "
                "processes do not share this folder; set data.cache_dir and data.cache_limit_gb"
            )
        about = f"{len(images):,} {name} pictures {'kept' if hit else 'decoded'} in {self.cache.root}"
        self.console.say(f"cache    {about}")
        return found
