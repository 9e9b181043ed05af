"""Options of the section `readout`: what is read off a frozen network (`tuning.mode: readout`)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vit_finetune.config.kinds import PositiveFloat, PositiveInt
from vit_finetune.recipe import Section

ReadoutName = Literal["knn", "logistic", "multilayer", "spatial", "sgd_grid", "attentive"]


class ReadoutConfig(Section):
    """What reads the classes off frozen features, and how it is chosen; used by `tuning.mode: readout`."""

    name: Literal["auto"] | ReadoutName = "auto"
    """auto: the best of `candidates`, or of means of linear ones among them, by cross-validation on train. knn: nearest
    neighbours by cosine. logistic: on what the network's head would see. multilayer: logistic on class, mean and
    extreme patch tokens of several blocks. spatial: logistic on principal components of their patch tokens. sgd_grid:
    DINOv2's 52 linear heads. attentive: learned queries that pool patch tokens. The last two take steps: train.epochs
    (or steps) and train.global_batch_size."""
    candidates: Annotated[tuple[ReadoutName, ...], Field(min_length=1)] = ("knn", "logistic", "multilayer", "spatial")
    """What auto chooses from; the two that are not in the default take a minute or more on a CPU."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["auto"] = "auto"
    """Blocks whose tokens are kept, from 0, negative from the end; auto: four, every (depth / 6)-th up to the last,
    or the last four for sgd_grid."""
    grid: PositiveInt = 7
    """The most rows and columns of patch tokens that are kept; more are averaged."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the features on disk; float16 halves the space and rounds them."""
    num_views: PositiveInt = 1
    """Views of each training picture: the plain one, and further ones varied as the data section says."""
    num_folds: Annotated[int, Field(ge=2)] = 4
    """Parts of train that are held out in turn."""
    folds: Literal["contiguous", "stratified"] = "contiguous"
    """contiguous: each class cut in its file order, which is honest where neighbours are of one series, person or day,
    and as good as any where they aren't. stratified: each class dealt out at random."""
    groups: str | None = None
    """A regular expression searched in each picture's path below the root (its first group, or all it matches):
    pictures that give the same text are held out together, such as "patient_(\\d+)"."""
    cache_dir: str | None = None
    """Where features are kept between runs; null: $VIT_FINETUNE_CACHE, else ~/.cache/vit_finetune."""
    cache_limit_gb: PositiveFloat = 20.0
    """The most that all kept features may take, in 10^9 bytes; those used longest ago go first."""

    onnx: bool = False
    """Write onnx/model.onnx beside the model folder too, checked against torch (extra onnx)."""

    @model_validator(mode="after")
    def _expression(self) -> ReadoutConfig:
        try:
            re.compile(self.groups or "")
        except re.error as error:
            raise ValueError(f"readout.groups {self.groups!r} is no regular expression: {error}") from None
        return self
