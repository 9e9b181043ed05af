"""What trains from which step on, and on pictures of which size: the stages of a run, known before it starts.

Most runs have one stage and one size. lp_ft has two stages: the head alone, then everything (LP-FT, arXiv 2202.10054).
gradual unfreezes from the head down, as ULMFiT does (1801.06146). Which parameters a stage's mode means is `tuning/`'s
business.

Small pictures first, the last part at the size that counts: FixRes (1906.06423) and EfficientNetV2 (2104.00298, which
also augments less at small sizes; not here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vit_finetune.common.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of a run in which the same parameters train.

    Attributes:
        first_step: steps done when it begins.
        mode: what trains, one of `tuning.MODES`.
        num_blocks: for last_n, how many blocks.
    """

    first_step: int = 0
    mode: str = "full"
    num_blocks: int | None = None


def plan_stages(
    mode: str,
    *,
    num_steps: int,
    depth: int,
    num_blocks: int | None = None,
    num_stages: int | None = None,
    probe_steps: int = 0,
) -> tuple[Stage, ...]:
    """Return the stages of a run.

    gradual gives its stages equal shares of the steps. The first trains the head, the last everything; those between
    train the last blocks with all that follows them, their number growing evenly.

    Args:
        mode: of the recipe.
        num_steps: optimizer steps of the whole run.
        depth: blocks of the network.
        num_blocks: for last_n.
        num_stages: for gradual, in [2, depth + 1].
        probe_steps: for lp_ft, in [1, num_steps).

    Raises:
        RequestError: the stages do not fit the run or the network.
    """
    if mode == "lp_ft":
        if not 1 <= probe_steps < num_steps:
            raise RequestError(
                f"the linear probe of {probe_steps} steps leaves nothing of the run of {num_steps} for fine-tuning; "
                "lower tuning.probe_steps or tuning.probe_epochs, or train for longer"
            )
        return Stage(mode="linear_probe"), Stage(first_step=probe_steps, mode="full")
    if mode != "gradual":
        return (Stage(mode=mode, num_blocks=num_blocks),)
    if num_stages is None or not 2 <= num_stages <= depth + 1:
        raise RequestError(
            f"tuning.num_stages is {num_stages}; this network has {depth} blocks, give 2 to {depth + 1}: "
            "the head first, then at least one block more each"
        )
    if num_stages > num_steps:
        raise RequestError(f"tuning.num_stages is {num_stages}, the run has {num_steps} steps; give a step to each")
    starts = [num_steps * number // num_stages for number in range(num_stages)]
    middle = (
        Stage(first_step=starts[number], mode="last_n", num_blocks=depth * number // (num_stages - 1))
        for number in range(1, num_stages - 1)
    )
    return Stage(mode="linear_probe"), *middle, Stage(first_step=starts[-1], mode="full")


@dataclass(frozen=True, kw_only=True)
class PictureSize:
    """A stretch of a run whose training pictures have one size.

    Attributes:
        first_step: steps done when it begins.
        height: in pixels.
        width: in pixels.
    """

    first_step: int
    height: int
    width: int


_AUTO_SHARES = (4 / 7, 5 / 7)  # of a side; what was measured at 98 pixels (docs/small_folders.md)
_LEAST_AUTO_PATCHES = 4  # a side: smaller grids were not measured


def plan_sizes(
    sizes: Sequence[tuple[int, int]] | Literal["auto"],
    *,
    until: float,
    num_steps: int,
    target: tuple[int, int],
    patch_size: tuple[int, int],
) -> tuple[PictureSize, ...]:
    """Return the sizes of a run's training pictures, each for an equal part of its first steps, then the target.

    Args:
        sizes: (height, width) in pixels, in their order; none for a run at the target alone. "auto" for four and five
            sevenths of the target's patches a side, a size with fewer than four a side left out; none where patches do
            not divide the target, or there are too few steps.
        until: share of the steps before the target, in (0, 1).
        num_steps: optimizer steps of the whole run.
        target: (height, width) that the network is for.
        patch_size: (height, width) of a patch.

    Returns:
        All sizes, the target last; empty without any.

    Raises:
        RequestError: patches do not divide a size, it is larger than the target, or there are too few steps.
    """
    end = int(round(until * num_steps, 9))  # forgives the rounding error of a product such as 0.29 x 100
    if sizes == "auto":
        sizes = _auto_sizes(target, patch_size)
        sizes = sizes if len(sizes) <= end else ()
    for size in (*sizes, *([target] if sizes else [])):
        nearest = tuple(
            patch * min(max(1, round(side / patch)), limit // patch)
            for side, patch, limit in zip(size, patch_size, target, strict=True)
        )
        if nearest != size:
            what = "model.img_size, the target of" if size == target else "a size of"
            raise RequestError(
                f"{what} train.progressive_sizes is {_told(size)} pixels; patches of {_told(patch_size)} have to "
                f"divide it, and at most {_told(target)} are allowed; the nearest is {_told(nearest)}"
            )
    if not sizes:
        return ()
    starts = [*(end * number // len(sizes) for number in range(len(sizes))), end]
    if any(first == second for first, second in pairwise(starts)):
        raise RequestError(
            f"train.progressive_sizes has {len(sizes)} sizes for the first {end} of {num_steps} steps; give a step to "
            "each: fewer sizes, a larger train.progressive_until, or train for longer"
        )
    return tuple(
        PictureSize(first_step=start, height=height, width=width)
        for start, (height, width) in zip(starts, (*sizes, target), strict=True)
    )


def _auto_sizes(target: tuple[int, int], patch_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    if any(side % patch for side, patch in zip(target, patch_size, strict=True)):
        return ()
    rows, columns = (side // patch for side, patch in zip(target, patch_size, strict=True))
    grids = dict.fromkeys((round(share * rows), round(share * columns)) for share in _AUTO_SHARES)
    return tuple(
        (height * patch_size[0], width * patch_size[1])
        for height, width in grids
        if min(height, width) >= _LEAST_AUTO_PATCHES and (height, width) != (rows, columns)
    )


def _told(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
