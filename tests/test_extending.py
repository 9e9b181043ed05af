"""From outside, without editing the package: a format, a recipe, a tuning mode and a metric, each in one place.

CONTRIBUTING.md says which place; a change that would need a second one fails here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_helpers import make_pictures, tiny_config
from sklearn.metrics import cohen_kappa_score

import vit_finetune
from vit_finetune import Config, RequestError, create_model, detect_format, finetune, from_pretrained
from vit_finetune.common.additions import ADDED_METRICS, ADDED_TUNING_MODES
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.rules import Format, Rule


@pytest.fixture
def _nothing_stays() -> Iterator[None]:
    """Forget at the end what a test added."""
    tables = (FORMATS, ADDED_METRICS, ADDED_TUNING_MODES)
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=4, val=3)


# The layout of a laboratory that calls blocks layers and keeps queries, keys and values apart.
KEPT = ("cls_token", "pos_embed", "patch_embed.proj.{kind}", "norm.{kind}", "head.{kind}")
BLOCK = ("norm1.{kind}", "norm2.{kind}", "attn.proj.{kind}", "mlp.fc1.{kind}", "mlp.fc2.{kind}")
MINE = Format(
    name="my_lab",
    library="my laboratory",
    present=("my_layers.0.q.weight",),
    rules=(
        *(Rule(f"my_{name}", name) for name in KEPT),
        *(Rule(f"my_layers.{{i}}.{name}", f"blocks.{{i}}.{name}") for name in BLOCK),
        Rule(tuple(f"my_layers.{{i}}.{part}.weight" for part in "qkv"), "blocks.{i}.attn.qkv.weight",
             "qkv o i -> (qkv o) i"),
        Rule(tuple(f"my_layers.{{i}}.{part}.bias" for part in "qkv"), "blocks.{i}.attn.qkv.bias", "qkv o -> (qkv o)"),
    ),
)  # fmt: skip


@pytest.mark.usefixtures("_nothing_stays")
def test_format__one_entry_detects_loads_and_writes(tmp_path: Path) -> None:
    """One row in FORMATS: such files are told apart, load strictly, compute the same, and are written back."""
    FORMATS["my_lab"] = MINE
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=48)
    theirs = {}
    for name, tensor in model.state_dict().items():
        if ".attn.qkv." in name:
            layer, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            theirs |= {
                f"my_layers.{layer}.{part}.{kind}": one for part, one in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            theirs["my_" + name.replace("blocks.", "layers.")] = tensor
    assert detect_format(theirs) == "my_lab"
    loaded, report = from_pretrained(theirs, num_heads=3, img_size=32)
    assert not report.newly_initialized
    x = torch.rand(2, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(loaded.eval().forward_features(x), model.forward_features(x))
    back = vit_finetune.convert_state_dict(model.state_dict(), to="my_lab", source="timm", config=model.config)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_recipe__one_file_that_extends_a_shipped_one(tmp_path: Path, pictures: Path) -> None:
    """One YAML file anywhere is a recipe, and says only in what it differs from the one it extends."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"extends": "linear_probe", "optimizer": {"lr": 0.25}}))
    config = Config.load(recipe, overrides=[f"data.root={pictures}"])
    assert (config.tuning.mode, config.optimizer.lr) == ("linear_probe", 0.25)


@pytest.mark.usefixtures("_nothing_stays")
def test_tuning_mode__one_function_trains_what_it_names(tmp_path: Path, pictures: Path) -> None:
    """A registered mode is a value of tuning.mode: what it names is what trains, and the run's config says so."""
    vit_finetune.register_tuning_mode(
        "mlps",
        lambda model: [name for name, _ in model.named_parameters() if ".mlp." in name or name.startswith("head.")],
    )
    config = tiny_config(pictures, tmp_path / "run", train={"steps": 2}, tuning={"mode": "mlps"})
    result = finetune(config)
    torch.manual_seed(0)
    trained = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in result.model.named_parameters() if ".mlp." in name or "head." in name}
    assert Config.load(tmp_path / "run").tuning.mode == "mlps"


@pytest.mark.usefixtures("_nothing_stays")
def test_tuning_mode__refusals(tmp_path: Path, pictures: Path) -> None:
    """An unregistered mode, one of the package's own names, and a parameter that is not there are refused."""
    with pytest.raises(RequestError, match="tuning.mode: got 'mlps'"):
        Config.load(tiny_config(pictures, tmp_path / "run", tuning={"mode": "mlps"}))
    for taken in ("full", "gradual"):
        with pytest.raises(RequestError, match="already"):
            vit_finetune.register_tuning_mode(taken, lambda model: [])
    with pytest.raises(RequestError, match="no name"):
        vit_finetune.register_tuning_mode("two words", lambda model: [])
    vit_finetune.register_tuning_mode("odd", lambda model: ["blocks.0.mpl.fc1.weight"])
    model = create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, depth=1, embed_dim=48)
    with pytest.raises(RequestError, match=r"did you mean 'blocks.0.mlp.fc1.weight'"):
        vit_finetune.apply_tuning(model, "odd")


def kappa(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return Cohen's kappa, a figure that the package does not have."""
    return float(cohen_kappa_score(labels, probabilities.argmax(axis=1)))


@pytest.mark.usefixtures("_nothing_stays")
def test_metric__one_function_is_counted_and_chooses_the_best(tmp_path: Path, pictures: Path) -> None:
    """A registered figure is in every evaluation, chooses the best checkpoint, and is sklearn's of the predictions."""
    vit_finetune.register_metric("kappa", kappa)
    config = tiny_config(
        pictures, tmp_path / "run", train={"steps": 6}, evaluation={"every_steps": 2, "metric": "kappa"}
    )
    result = finetune(config)
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row["kappa"] for row in rows if row["split"] == "val"}
    assert result.best_step == max(values, key=lambda step: (values[step], -step))
    scored = vit_finetune.evaluate(result, str(pictures), split="val")
    assert result.metrics["kappa"] == pytest.approx(kappa(scored.labels, scored.probabilities))
    with pytest.raises(RequestError, match="already"):
        vit_finetune.register_metric("accuracy", kappa)
