"""The layer table adds up and tells true shapes."""

from __future__ import annotations

import pytest
import timm
import torch
from models_helpers import DIVERSE, images, small

from vit_finetune.common.errors import RequestError
from vit_finetune.models import create_model, summarize, summary_lines


@pytest.mark.parametrize("name", DIVERSE)
def test_summarize__adds_up_to_timms_total(name):
    """The rows' parameters add up to timm's number for the same network, each counted once."""
    with torch.device("meta"):
        model, theirs = create_model(name, depth=2), timm.create_model(name, depth=2)
    assert sum(row.parameters for row in summarize(model)) == sum(p.numel() for p in theirs.parameters())


def test_summarize__shapes_are_those_of_the_forward_pass():
    """Rows come in the order of the forward pass, with its shapes, for the model's own and for another image size."""
    model = small("test_vit")
    rows = {row.module: row for row in summarize(model)}
    assert list(rows) == ["cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    assert rows["patch_embed"].output_shape == (1, 12, 16) and rows["blocks.0"].output_shape == (1, 13, 16)
    assert rows["blocks.1"].output_shape == (1, 1, 16)  # the last one makes what is pooled
    assert (rows["blocks.0"].kind, rows["head"].output_shape) == ("Block", (1, 5))
    other = {row.module: row for row in summarize(model, (32, 32))}
    assert other["blocks.0"].output_shape == (1, 5, 16)
    assert model(images(model.config)).shape == (2, 5)
    with pytest.raises(RequestError, match="the model takes"):
        summarize(small("vit_tiny_patch16_224"), (32, 32))


def test_summary_lines__align_and_total():
    """The printed table has a heading, one line a row and a total."""
    rows = summarize(small("vit_tiny_patch16_224"))
    lines = summary_lines(rows)
    assert len(lines) == len(rows) + 2 and len({len(line) for line in lines}) == 1
    assert lines[-1].split() == ["total", f"{sum(row.parameters for row in rows):,}"]
