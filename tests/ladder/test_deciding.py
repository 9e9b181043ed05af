"""What is decided about a rung: every branch, on situations that are written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vit_finetune.ladder.deciding import Situation, decide
from vit_finetune.ladder.pace import Pace, longest
from vit_finetune.ladder.rungs import BLEND, READOUT, TRAINING, Rung

# 100 pictures in steps of 10, 20 to score, a second a step, and nothing else costs time worth speaking of.
PACE = Pace(overhead=0.0, forward=0.0, step=1.0)
READ = Rung(name="readout", kind=READOUT, what="", like=("knn", 2.0))
TRAIN = Rung(name="train", kind=TRAINING, what="", epochs=10, share=0.4, start=("logistic",))
MIX = Rung(name="blend", kind=BLEND, what="", start=("logistic", "train"))


def situation(left: float, **changes: Any) -> Situation:
    values = {"elapsed": 5.0, "left": left, "pace": PACE, "num_train": 100, "num_val": 20, "pictures_per_step": 10}
    return Situation(**{**values, "networks": {}, "took": {"knn": 10.0}, **changes})


def test_decide__the_first_rung_always_runs() -> None:
    """Before anything was measured a rung runs, whatever is left."""
    decision = decide(READ, situation(-100.0, pace=None))
    assert (decision.decision, decision.predicted_seconds) == ("run", None)
    assert decision.reason == "the first rung always runs, so that there is a model"


@pytest.mark.parametrize(("left", "expected"), [(23.1, "run"), (22.9, "skip"), (-5.0, "skip")])
def test_decide__a_readout_runs_where_it_fits(left: float, expected: str) -> None:
    """Twice the ten seconds of an earlier one with 15 % kept back are 23 seconds."""
    decision = decide(READ, situation(left))
    assert decision.decision == expected
    assert decision.predicted_seconds == pytest.approx(23.0)


def test_decide__a_readout_is_measured_by_one_that_ran() -> None:
    """Where the readout that it is compared with was left out, it is left out too, and says so."""
    decision = decide(READ, situation(1000.0, took={}))
    assert (decision.decision, decision.reason) == ("skip", "how long it takes is known from knn, which was left out")


def test_decide__a_readout_of_a_tuned_network_reads_the_pictures_again() -> None:
    """120 pictures at 0.1 s and twice 10 s are 32 s, and what training kept back for it beside those is its to use up;
    without the network there is nothing.
    """
    rung = Rung(name="again", kind=READOUT, what="", like=("knn", 2.0), start=("train",))
    pace = Pace(overhead=0.0, forward=0.1, step=1.0)
    decision = decide(rung, situation(32.1, pace=pace, networks={"train": 9}))
    assert (decision.decision, decision.starts_from) == ("run", "train")
    assert decide(rung, situation(31.9, pace=pace, networks={"train": 9})).decision == "skip"
    assert decide(rung, situation(1e6, pace=pace)).reason == "there is no network of train"


def test_decide__training_takes_its_share() -> None:
    """Of 100 s a share of 0.4 is 40 s, which at 1.15 s a step are 34 steps."""
    decision = decide(TRAIN, situation(100.0))
    assert (decision.decision, decision.num_steps) == ("run", 34)
    assert decision.predicted_seconds == pytest.approx(34 * 1.15)


def test_decide__training_takes_all_where_its_share_is_no_two_epochs() -> None:
    """Of 40 s the share would be 13 steps, less than two epochs of 10: it takes all 34."""
    assert decide(TRAIN, situation(40.0)).num_steps == 34


def test_decide__training_leaves_room_for_a_readout_of_its_network() -> None:
    """Taking all of 40 s, it leaves the 11.5 s of a readout like the one that took 10: 24 steps. Where that leaves no
    epoch it takes all if these are two epochs, and else nothing, since its head alone is worth less than a readout.
    """
    rung = replace(TRAIN, read_like=("readout", 1.0))
    assert decide(rung, situation(40.0, took={"readout": 10.0})).num_steps == 24
    assert decide(rung, situation(34.0, took={"readout": 20.0})).num_steps == 29
    decision = decide(rung, situation(22.0, took={"readout": 10.0}))
    assert decision.decision == "skip" and decision.reason == "20 steps take about 23 s, 22 s left"
    assert decide(rung, situation(40.0)).num_steps == 34  # no readout was climbed, so none will be


def test_decide__training_stops_at_its_most_epochs() -> None:
    """With time for thousands of steps, ten epochs of ten steps are all that is asked for."""
    assert decide(TRAIN, situation(1e6)).num_steps == 100


def test_decide__training_is_skipped_below_an_epoch() -> None:
    """An epoch of 10 steps takes 11.5 s; with 11 s left it is skipped, and the reason has both numbers."""
    decision = decide(TRAIN, situation(11.0))
    assert (decision.decision, decision.num_steps) == ("skip", None)
    assert decision.reason == "10 steps take about 12 s, 11 s left"
    assert decide(TRAIN, situation(11.6)).decision == "run"


def test_decide__a_large_set_is_trained_on_for_less_than_an_epoch() -> None:
    """Where an epoch is thousands of steps, 50 are the least: 57.5 s."""
    assert decide(TRAIN, situation(58.0, num_train=100_000)).num_steps == 50
    assert decide(TRAIN, situation(57.0, num_train=100_000)).decision == "skip"


def test_decide__scoring_and_overhead_are_part_of_training() -> None:
    """20 val pictures of a second each are scored twice, and 10 s are overhead: 50 of 100 s, so 36 steps fit."""
    pace = Pace(overhead=10.0, forward=1.0, step=1.0)
    assert decide(TRAIN, situation(100.0, pace=pace)).num_steps == 36


def test_decide__before_steps_are_measured_they_are_guessed_low() -> None:
    """Two forward passes a picture: a step of ten pictures at 0.1 s each is guessed at 2 s."""
    pace = Pace.of_first_rung(12.0, 120)
    assert decide(TRAIN, situation(30.0, pace=pace)).num_steps == 11
    assert decide(TRAIN, situation(20.0, pace=pace)).decision == "skip"


def test_decide__training_starts_from_what_there_is() -> None:
    """It starts from the first rung of its list that left a network behind, else from the recipe's weights."""
    assert decide(TRAIN, situation(100.0)).starts_from is None
    assert decide(TRAIN, situation(100.0, networks={"logistic": 0})).starts_from == "logistic"


def test_decide__a_blend_needs_something_trained() -> None:
    """With the logistic regression alone there is nothing to average; with a trained network and time there is."""
    assert decide(MIX, situation(100.0, networks={"logistic": 0})).reason.startswith("nothing was trained")
    assert decide(MIX, situation(100.0, networks={"logistic": 0})).decision == "skip"
    pace = Pace(overhead=1.0, forward=0.1, step=1.0)  # 9 x 20 x 0.1 + 1 = 19 s, and 15 % kept back
    both = {"logistic": 0, "train": 30}
    assert decide(MIX, situation(21.9, pace=pace, networks=both)).decision == "run"
    assert decide(MIX, situation(21.8, pace=pace, networks=both)).decision == "skip"


def test_decide__a_blend_is_left_out_where_it_cannot_win() -> None:
    """Networks that are two points behind a readout may be made up for by averaging; three points are too many."""
    rest = {"networks": {"logistic": 0, "train": 30}}
    assert decide(MIX, situation(100.0, behind=0.02, **rest)).decision == "run"
    decision = decide(MIX, situation(100.0, behind=0.03, **rest))
    assert decision.decision == "skip" and "0.030 behind" in decision.reason


@pytest.mark.parametrize("most", [0, 1, 7, 100])
def test_longest__is_the_last_that_fits(most: int) -> None:
    """For every limit the answer is the limit itself, between 0 and the most."""
    for limit in range(most + 2):
        assert longest(lambda count, limit=limit: count <= limit, most) == min(limit, most)
