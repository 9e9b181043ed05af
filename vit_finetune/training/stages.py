"""What trains from which step on: the stages of a run, known before it starts.

Most runs have one stage. lp_ft has two: the head alone, then everything (LP-FT, arXiv 2202.10054). gradual unfreezes
from the head down, as ULMFiT does (1801.06146). Which parameters a stage's mode means is `tuning/`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

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
