"""Options of the section `data`: which pictures, how they are split and varied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vit_finetune.config.kinds import Fraction, PositiveFloat, Rate
from vit_finetune.recipe import Section

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")  # files whose paths may start from data.root


class DataConfig(Section):
    """Which pictures, how they are split and how training varies them."""

    root: str | None = None
    """Folder of pictures: root/train/CLASS/..., or root/CLASS/... which is split for you. Beside a source that lists
    paths: where these start."""
    source: str | None = None
    """Instead of root: a file that lists pictures (.csv, .tsv, .jsonl, .parquet; a run's manifest.parquet gives that
    run's exact splits), WebDataset shards (a folder or pattern of .tar), a data set name on the Hub, a saved data set,
    or parquet/arrow with the pictures inside; `python` stands in the configuration of a run that got its pictures from
    Python."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str | None = "val"
    """Name of the split that selects the best checkpoint; null trains without one."""
    test_split: str | None = None
    """Name of a split that is opened once, at the end."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share held out for validation where the data has no val split."""
    test_fraction: Rate = 0.0
    """Share held out as the test split, scored once at the end, where test_split names none."""
    split_by: Literal["stratified", "random", "group", "time"] = "stratified"
    """What is held out. stratified: the same share of each class; random: of all pictures; group: whole groups (a
    person, a video), classes as even as they allow; time: the latest pictures."""
    group_pattern: str | None = None
    """split_by group: a regular expression that finds the group in a picture's path below the root, its first group or
    all it matches, such as "patient_(\\d+)"."""
    image_column: str | None = None
    """Column of the pictures, or of their paths, in a `source`; null finds the only one."""
    label_column: str | None = None
    """Column of the labels in a `source`; null finds the only one."""
    split_column: str | None = None
    """Column of the split's name; null takes `split` where a file that lists pictures has it."""
    group_column: str | None = None
    """split_by group: column of the group."""
    time_column: str | None = None
    """split_by time: column of the time, numbers or dates."""
    label_separator: str | None = None
    """Parts the classes in a label column of text, such as "|"; null: one class a picture."""
    weight_column: str | None = None
    """Column of what each training picture weighs in the loss, a finite number of at least 0; null: all alike. Never
    part of val or test figures."""
    keep_duplicates_together: bool = False
    """Hold out pictures that are equal, or nearly so, together or not at all. Decodes every training picture once."""
    streaming: bool = False
    """Fetch a source of parquet, on the Hub or in a folder, a row group at a time: for sets larger than the disk."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of the random crop as a share of the picture: [least, most]."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Aspect ratio of the random crop, width / height: [least, most]."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vflip: Fraction = 0.0
    """Probability of a vertical flip."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of random brightness, contrast and saturation; 0.4 is usual, 0 is off."""
    auto_augment: Literal["randaugment", "trivialaugment"] | None = None
    """A torchvision policy of random operations."""
    random_erasing: Fraction = 0.0
    """Probability that a random rectangle is erased."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = None
    """How pictures are resized; null takes the checkpoint's."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the resized picture that evaluation's centre crop keeps; null takes the checkpoint's."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """Evaluation: centre crop, resize both sides freely, or pad; null takes the checkpoint's."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels in [0, 1]; null takes the checkpoint's."""
    std: tuple[PositiveFloat, ...] | None = None
    """Per channel, of pixels in [0, 1]; null takes the checkpoint's."""
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that decode pictures, per training process; auto: none on a CPU, up to 8 for an accelerator."""

    on_bad_image: Literal["error", "skip", "quarantine"] = "error"
    """A picture that cannot be read: stop; leave it out and list it; or, too, copy its file into the run's folder."""
    max_bad_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of a split's pictures that may be left out before the run stops."""
    on_change: Literal["error", "accept"] = "error"
    """Pictures that are not what they were when the run began, at --resume: stop; or go on with what is there now."""

    resizer: Literal["pil", "torch"] = "pil"
    """What resizes training pictures: Pillow, or torch's kernel for bytes, which takes a fifth of the time and rounds
    otherwise. Evaluation is always Pillow's."""
    working_size: Annotated[int, Field(ge=16)] | None = None
    """Training pictures with a shorter side above so many pixels are first reduced to it; null reduces none."""
    draft: bool = False
    """Decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is at least twice `working_size`."""
    cache: Literal["off", "decoded", "auto"] = "off"
    """Keep decoded pictures on disk between epochs and runs, with the same result; auto: where several epochs come and
    there is room."""
    cache_dir: str | None = None
    """Folder of the decoded pictures, on a disk that all processes share; null takes the user's cache folder."""
    cache_limit_gb: PositiveFloat = 50.0
    """Most that all decoded pictures there may take together, in GB of 10^9 bytes; those used longest ago go first."""

    @property
    def bad_fraction_allowed(self) -> float | None:
        """Share of a split's pictures that may be left out; None where the first bad one ends the run."""
        return None if self.on_bad_image == "error" else self.max_bad_fraction

    @model_validator(mode="after")
    def _one_place(self) -> DataConfig:
        may_have_both = self.source is not None and self.source.lower().endswith(LIST_SUFFIXES)
        if (self.root is None) == (self.source is None) and not (self.root and may_have_both):
            raise ValueError("give exactly one of data.root (a folder) and data.source (a data set)")
        if self.draft and self.working_size is None:
            raise ValueError("data.draft reduces to data.working_size while decoding; give that too")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or low == 0:
                raise ValueError(f"data.{name} is [{low}, {high}]; give [least, most] with 0 < least <= most")
        return self
