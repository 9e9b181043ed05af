"""`model.head_init: pretrained`: a run that goes on from a checkpoint's own head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_helpers import make_pictures, tiny_config
from torch.testing import assert_close

from vit_finetune import finetune
from vit_finetune.assembly import build_model
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.pictures import open_splits


def test_build_model__keeps_the_head_of_the_same_classes(tmp_path: Path) -> None:
    """A finished run comes back whole, its head included; other classes, or another order, are refused."""
    root = make_pictures(tmp_path / "pictures", train=4, val=2)
    config = tiny_config(root, tmp_path / "run", train={"steps": 2})
    run = finetune(config)
    config["model"] = {"pretrained": str(run.run_dir / "model"), "head_init": "pretrained"}
    splits = open_splits(Config.load(config).data)
    model, report = build_model(Config.load(config), splits)
    assert not report.newly_initialized
    assert_close(dict(model.state_dict()), dict(run.model.state_dict()), rtol=0, atol=0)
    other = replace(splits, class_names=splits.class_names[::-1])
    with pytest.raises(RequestError, match="has a head for blue, green, red, and the data has the classes red, green"):
        build_model(Config.load(config), other)


def test_config__random_weights_have_no_head_to_keep() -> None:
    """head_init pretrained without a checkpoint is refused where it is written."""
    with pytest.raises(RequestError, match="head_init pretrained keeps a checkpoint's head, and pretrained: null has"):
        Config.load(
            {
                "model": {"pretrained": None, "name": "vit_tiny_patch16_224", "head_init": "pretrained"},
                "data": {"root": "photos"},
                "train": {"steps": 1},
            }
        )
