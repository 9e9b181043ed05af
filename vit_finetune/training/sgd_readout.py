"""Readouts that are trained by gradient steps on cached features: DINOv2's grid of linear heads, attentive probes.

Any number of readouts trains in one pass: each has its own loss and its own optimizer group, so each becomes exactly
what it would have become alone.

Sources: DINOv2's `linear.py` (arXiv 2304.07193): SGD, momentum 0.9, no weight decay, cosine to 0, rates per 256
pictures, heads from a normal of std 0.01; Efficient Probing (2506.10178).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.seeding import derive_seed
from vit_finetune.models import AttentiveReadout, LinearReadout, Readout
from vit_finetune.models.features import Input
from vit_finetune.training.features import FeatureTable

GRID_LRS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
ATTENTIVE_LRS = (1e-3, 3e-3)
_LRS_ARE_FOR = 256  # pictures per step that DINOv2's rates are given for
_ATTENTIVE_DECAY = 0.05


@dataclass(frozen=True)
class Recipe:
    """How readouts are trained by gradient steps.

    Attributes:
        num_steps: optimizer steps.
        batch_size: pictures per step.
        seed: of the run.
    """

    num_steps: int
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Probe:
    """One readout to be trained.

    Attributes:
        kind: linear or attentive.
        inputs: its features.
        lr: peak learning rate at the batch size that is used.
        num_queries: of an attentive one.
    """

    kind: str
    inputs: tuple[Input, ...]
    lr: float
    num_queries: int = 1


def grid_of_heads(table: FeatureTable, recipe: Recipe) -> list[Probe]:
    """Return DINOv2's 52 linear heads: 13 rates x {last, all} chosen blocks x {class token, with mean patch}.

    A network without class token reads the mean patch token in its place, which halves the grid.
    """
    pooled = "cls" if "cls" in table.views[0] else "avg"
    heads = []
    for layers in dict.fromkeys((table.layers[-1:], table.layers)):
        plain: tuple[Input, ...] = tuple((pooled, layer) for layer in layers)
        averaged: tuple[Input, ...] = (*plain, ("avg", table.layers[-1]))
        for inputs in (plain, averaged) if pooled == "cls" else (plain,):
            heads += [Probe("linear", inputs, lr * recipe.batch_size / _LRS_ARE_FOR) for lr in GRID_LRS]
    return heads


def attentive_probes(table: FeatureTable, *, num_heads: int) -> list[Probe]:
    """Return attentive probes on the last block: as many queries as the network has heads, and 32; two rates each.

    Args:
        table: the training pictures.
        num_heads: attention heads of the network: a probe with so many queries is timm's attention pooling.
    """
    width = table.views[0]["grid"].shape[-1]
    queries = dict.fromkeys(count for count in (num_heads, 32) if width % count == 0)
    inputs: tuple[Input, ...] = (("grid", table.layers[-1]),)
    return [Probe("attentive", inputs, lr, count) for count in queries for lr in ATTENTIVE_LRS]


def train_probes(table: FeatureTable, probes: Sequence[Probe], recipe: Recipe, rows: np.ndarray) -> list[Readout]:
    """Train readouts on cached features, all in one pass.

    Args:
        table: the training pictures.
        probes: what to train.
        recipe: steps, batch and seed.
        rows: the pictures to train on.

    Returns:
        The readouts, in eval mode, each as if trained alone.
    """
    readouts = [_start(probe, table, seed=recipe.seed) for probe in probes]
    optimizers = [_optimizer(probe, readout) for probe, readout in zip(probes, readouts, strict=True)]
    for step, (view, batch) in enumerate(_batches(table, recipe, rows)):
        rate = 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))
        labels = torch.from_numpy(table.labels[batch])
        read: dict[tuple[Input, ...], Tensor] = {}
        for probe, readout, optimizer in zip(probes, readouts, optimizers, strict=True):
            if probe.inputs not in read:
                one_view = FeatureTable((table.views[view],), table.labels, table.layers, table.num_classes)
                read[probe.inputs] = torch.cat([one_view.read(item, batch) for item in probe.inputs], dim=1)
            for group in optimizer.param_groups:
                group["lr"] = probe.lr * rate
            optimizer.zero_grad()
            functional.cross_entropy(readout(read[probe.inputs]), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return [readout.eval() for readout in readouts]


def _start(probe: Probe, table: FeatureTable, *, seed: int) -> Readout:
    """Return an untrained readout; equal probes start equal, whatever stands beside them."""
    arrays = table.views[0]
    width = arrays["embedding"].shape[-1]
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe", probe.kind, repr(probe.inputs)))
    if probe.kind == "attentive":
        attentive = AttentiveReadout(
            probe.inputs, dim=width, num_queries=probe.num_queries, num_classes=table.num_classes
        )
        with torch.no_grad():
            attentive.queries.normal_(0, 0.02, generator=generator)
            nn.init.xavier_uniform_(attentive.values.weight, generator=generator)
            for part in (attentive.values.bias, attentive.linear.weight, attentive.linear.bias):
                part.zero_()
        return attentive
    features = sum(arrays["grid"].shape[-2] * width if kind == "grid" else width for kind, _ in probe.inputs)
    linear = LinearReadout(probe.inputs, num_features=features, num_classes=table.num_classes)
    with torch.no_grad():
        linear.linear.weight.normal_(0, 0.01, generator=generator)
        linear.linear.bias.zero_()
    return linear


def _optimizer(probe: Probe, readout: Readout) -> torch.optim.Optimizer:
    if probe.kind == "linear":
        return torch.optim.SGD(readout.parameters(), lr=probe.lr, momentum=0.9, weight_decay=0.0)
    return torch.optim.AdamW(readout.parameters(), lr=probe.lr, weight_decay=_ATTENTIVE_DECAY)


def _batches(table: FeatureTable, recipe: Recipe, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (view, places) of each step: every epoch is a new order, and shows the next view."""
    step = epoch = 0
    while True:
        order = np.random.default_rng(derive_seed(recipe.seed, "readout", epoch)).permutation(rows)
        for start in range(0, len(order), recipe.batch_size):
            if step == recipe.num_steps:
                return
            yield epoch % len(table.views), order[start : start + recipe.batch_size]
            step += 1
        epoch += 1
