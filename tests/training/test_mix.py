"""Mixup and CutMix of neighbours: what is drawn, what comes out, and that no cutting of the batch changes it."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from vit_finetune.common.seeding import derive_seed
from vit_finetune.training.mix import Box, Draw, PairMixing, mixed


def draws(mixing: PairMixing, count: int = 4000) -> list[Draw]:
    """Return the draws of many pairs of pictures of 20 x 30 pixels."""
    return [mixing.draw(step, pair, 20, 30) for step in range(count // 8) for pair in range(8)]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_draw__mixup_shares_are_beta(alpha: float) -> None:
    """Mixup's shares have the distribution Beta(alpha, alpha), and no box."""
    found = draws(PairMixing(seed=3, mixup_alpha=alpha))
    assert all(draw.box is None for draw in found)
    assert kstest([draw.share for draw in found], beta(alpha, alpha).cdf).pvalue > 1e-3


def paper_box(share: float, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
    """`rand_bbox` of CutMix's published train.py, its names kept, with the centre given instead of drawn."""
    cut_rat = math.sqrt(1.0 - share)
    cut_w, cut_h = int(width * cut_rat), int(height * cut_rat)
    bbx1, bby1 = np.clip(column - cut_w // 2, 0, width), np.clip(row - cut_h // 2, 0, height)
    bbx2, bby2 = np.clip(column + cut_w // 2, 0, width), np.clip(row + cut_h // 2, 0, height)
    return int(bby1), int(bby2), int(bbx1), int(bbx2)


def test_draw__cutmix_box_is_the_papers() -> None:
    """The box is that of the published code for the same numbers; the share is what it leaves of the area."""
    mixing = PairMixing(seed=5, cutmix_alpha=1.0)
    for pair in range(200):
        rng = random.Random(derive_seed(5, "mix", 7, pair))
        rng.random(), rng.random()
        share = rng.betavariate(1.0, 1.0)
        row, column = rng.randrange(20), rng.randrange(30)
        found = mixing.draw(7, pair, 20, 30)
        assert found.box == Box(*paper_box(share, row, column, 20, 30))
        left_over = 1 - (found.box.bottom - found.box.top) * (found.box.right - found.box.left) / 600
        assert found.share == pytest.approx(left_over)


def test_draw__probabilities() -> None:
    """A pair is mixed with mixup_prob, and by CutMix with mixup_switch_prob, where both are on."""
    found = draws(PairMixing(seed=1, mixup_alpha=0.8, cutmix_alpha=1.0, mixup_prob=0.6, mixup_switch_prob=0.25))
    acted = [draw for draw in found if draw != Draw(1.0)]
    assert len(acted) / len(found) == pytest.approx(0.6, abs=0.04)
    assert sum(draw.box is not None for draw in acted) / len(acted) == pytest.approx(0.25, abs=0.04)
    assert all(draw == Draw(1.0) for draw in draws(PairMixing(seed=1, mixup_alpha=0.8, mixup_prob=0.0), 80))


def test_draw__is_a_function_of_seed_step_and_pair() -> None:
    """The same three numbers give the same draw; another one of them gives another."""
    mixing = PairMixing(seed=0, mixup_alpha=0.8)
    assert mixing.draw(3, 2, 8, 8) == mixing.draw(3, 2, 8, 8)
    others = [PairMixing(seed=1, mixup_alpha=0.8).draw(3, 2, 8, 8), mixing.draw(4, 2, 8, 8), mixing.draw(3, 1, 8, 8)]
    assert len({mixing.draw(3, 2, 8, 8), *others}) == 4


def test_acts_at__switches_off() -> None:
    """From the off step on nothing is mixed; without one it never ends."""
    mixing = PairMixing(seed=0, mixup_alpha=0.8, off_step=3)
    assert [mixing.acts_at(step) for step in range(5)] == [True, True, True, False, False]
    assert PairMixing(seed=0, mixup_alpha=0.8).acts_at(10**9)


class Fixed(PairMixing):
    """A mixing whose draws a test chooses."""

    def draw(self, step: int, pair: int, height: int, width: int) -> Draw:
        return [Draw(0.75), Draw(0.5, Box(0, 1, 0, 2))][pair]


def test_mixed__written_out() -> None:
    """Mixup blends both neighbours, CutMix swaps the box between them; labels are mixed by the share."""
    images = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    share, of_pixel = Fixed(seed=0).shares(0, torch.arange(4), 2, 2)
    found = mixed(images, of_pixel)
    assert found[0].unique().tolist() == [0.75 * 1 + 0.25 * 2]
    assert found[1].unique().tolist() == [0.75 * 2 + 0.25 * 1]
    assert found[2, 0].tolist() == [[4, 4], [3, 3]]
    assert found[3, 0].tolist() == [[3, 3], [4, 4]]
    labels = torch.eye(3)[[0, 1, 2, 2]]
    expected = [[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0, 1], [0, 0, 1]]
    assert mixed(labels, share[:, None]).tolist() == expected


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_mixed__is_timms(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's Mixup over a batch of one pair gives the same pictures and targets for the same share and box."""
    from timm.data import Mixup
    from timm.data import mixup as timm_mixup

    alphas: dict[str, Any] = {"mixup_alpha": 0.8} if mode == "mixup" else {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    mixing = PairMixing(seed=2, **alphas)
    images, labels = torch.rand(2, 3, 16, 24), torch.tensor([0, 2])
    drawn = mixing.draw(0, 0, 16, 24)
    theirs = Mixup(mode="batch", num_classes=3, label_smoothing=0.0, correct_lam=True, **alphas)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (drawn.share, mode == "cutmix"))
    monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda *_, **__: (drawn.box, drawn.share))
    expected, targets = theirs(images.clone(), labels)
    share, of_pixel = mixing.shares(0, torch.arange(2), 16, 24)
    torch.testing.assert_close(mixed(images, of_pixel), expected)
    torch.testing.assert_close(mixed(torch.eye(3)[labels], share[:, None]), targets.cpu())


@pytest.mark.parametrize("sizes", [[2] * 4, [4, 4], [6, 2]])
def test_shares__micro_batches_change_nothing(sizes: list[int]) -> None:
    """Cut into micro-batches of whole pairs, the batch is mixed as in one piece, to the bit."""
    mixing = PairMixing(seed=0, mixup_alpha=0.8, cutmix_alpha=1.0)
    images, positions = torch.rand(8, 3, 10, 12), torch.arange(8)

    def through(images: Tensor, positions: Tensor) -> Tensor:
        return mixed(images, mixing.shares(4, positions, 10, 12)[1])

    parts = zip(images.split(sizes), positions.split(sizes), strict=True)
    assert torch.equal(torch.cat([through(*part) for part in parts]), through(images, positions))


@pytest.mark.parametrize("positions", [[0], [1, 2], [0, 1, 2]])
def test_shares__refuses_parted_pairs(positions: list[int]) -> None:
    """A micro-batch that parts a pair is a bug of its maker and says so."""
    with pytest.raises(ValueError, match="hold whole pairs"):
        PairMixing(seed=0, mixup_alpha=0.8).shares(0, torch.tensor(positions), 4, 4)
