"""Attention maps are what `forward` attends with."""

from __future__ import annotations

import pytest
import torch
from models_helpers import DIFF_NAMES, DIVERSE, images, small
from torch import Tensor

from vit_finetune.models import attention_maps
from vit_finetune.models.attending import attend


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_attention_maps__reproduce_what_forward_attends(name, monkeypatch):
    """For every attention layer, map @ values is what the forward pass computed, and maps are explicit softmaxes."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, bias: Tensor | None = None) -> Tensor:
        seen.append((q, k, v))
        return attend(q, k, v, dropout=dropout, bias=bias)

    model = small(name)
    x = images(model.config)
    monkeypatch.setattr("vit_finetune.models.attention.attend", spy)
    model.forward_features(x)  # all tokens of the last block, too, which the logits alone do not need
    expected = [
        torch.exp(q @ k.mT / q.shape[-1] ** 0.5) / torch.exp(q @ k.mT / q.shape[-1] ** 0.5).sum(-1, keepdim=True)
        for q, k, _ in seen
    ]
    maps = attention_maps(model, x)
    tokens, heads = model.embed(x).shape[1], model.config.num_heads
    assert all(found.shape == (2, heads, tokens, tokens) for found in maps)
    if name in DIFF_NAMES:  # two attentions make one map
        layers = [getattr(block, "attn", block) for block in model.blocks]
        expected = [
            first - layer._lambda() * second
            for layer, first, second in zip(layers, expected[::2], expected[1::2], strict=True)
        ]
    assert len(maps) == len(expected)
    for found, want in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, want, atol=1e-7, rtol=1e-7)


@torch.no_grad()
def test_attention_maps__rows_sum_to_one_and_leave_the_model_alone():
    """Rows are distributions, two parallel attentions give two maps a block, and no state stays behind."""
    model = small("vit_small_patch16_18x2_224", depth=3)
    x = images(model.config)
    before = model(x)
    maps = attention_maps(model, x)
    assert len(maps) == 6
    for found in maps:
        torch.testing.assert_close(found.sum(dim=-1), torch.ones_like(found[..., 0]))
    assert torch.equal(model(x), before)
