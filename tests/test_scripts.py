"""The scripts of recipes/ do what they say, on tiny pictures with a tiny network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from run_helpers import ROOT, TINY, make_pictures

from vit_finetune import Config, Predictor, PreprocessSpec, RequestError, create_model, export_model_folder

SCRIPTS = {
    *("custom_dataset", "k_fold", "measure", "measure_table", "multi_label", "quickstart", "replace_head_only"),
    *("resume", "soup", "two_stage"),
}
SHORT = (*TINY, "train.global_batch_size=6", "schedule.warmup_epochs=null")


def script(name: str) -> ModuleType:
    """Return a script of recipes/ as a module; it does nothing when it is imported."""
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=6, val=3)


def test_scripts__are_the_listed_ones() -> None:
    """Every script has a test below (the quickstart in its own file)."""
    assert {path.stem for path in ROOT.glob("recipes/*.py")} == SCRIPTS


def test_custom_dataset(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A torch data set of one's own trains, a fifth of it held out; the run says that its pictures came from Python."""
    run = tmp_path / "run"
    script("custom_dataset").main([str(pictures / "train"), *SHORT, "train.steps=2", f"run.dir={run}"])
    assert "accuracy on the held-out pictures: " in capsys.readouterr().out
    assert Config.load(run).data.source == "python"
    table = pd.read_parquet(run / "predictions.parquet")
    assert len(table) == 3 and set(table["label"]) == {"blue", "green", "red"}


def test_k_fold(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every training picture is predicted once, by a model that did not train on it; a second call trains nothing."""
    place = tmp_path / "folds"
    arguments = ["--folds", "3", f"data.root={pictures}", *SHORT, "train.steps=2", f"run.dir={place}"]
    script("k_fold").main(arguments)
    told = capsys.readouterr().out
    table = pd.read_parquet(place / "out_of_fold.parquet")
    assert sorted(table["path"]) == sorted(map(str, (pictures / "train").rglob("*.png")))
    assert f"pooled {table['correct'].mean():.1%}" in told
    for number, part in table.groupby("fold"):
        seen = pd.read_parquet(place / f"fold-{number}" / "manifest.parquet")
        trained = {str(pictures / name) for name in seen[seen["split"] == "train"]["name"]}
        assert trained.isdisjoint(part["path"]) and len(trained) == 12
    script("k_fold").main(arguments)
    assert capsys.readouterr().out.splitlines()[-2:] == told.splitlines()[-2:]


def test_k_fold__groups(pictures: Path, tmp_path: Path) -> None:
    """Pictures with the same first group stay together, here 0.png of every class; one that has none is named."""
    place = tmp_path / "folds"
    arguments = ["--folds", "2", f"data.root={pictures}", *SHORT, "train.steps=1", f"run.dir={place}"]
    script("k_fold").main([*arguments, "--groups", r"(\d+)\.png"])
    table = pd.read_parquet(place / "out_of_fold.parquet")
    assert (table.groupby(table["path"].map(lambda path: Path(path).name))["fold"].nunique() == 1).all()
    with pytest.raises(RequestError, match=r"--groups person finds no \(group\) in train/blue/0\.png"):
        script("k_fold").main([*arguments, "--groups", "person"])


def test_soup(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The soup of two seeds is at least as good on val as the better run, and opens as a model."""
    place = tmp_path / "soup"
    options = ["--runs", "2", "--recipe", "linear_probe", f"data.root={pictures}", f"run.dir={place}"]
    script("soup").main([*options, *SHORT, "train.steps=3"])
    told = capsys.readouterr().out
    assert "run 1: " in told and "soup of " in told
    assert len(Predictor(place / "soup")([pictures / "val"])) == 9
    manifests = [pd.read_parquet(place / run / "manifest.parquet") for run in ("run-0", "run-1")]
    assert manifests[0].equals(manifests[1])


def test_two_stage(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second stage starts from the first's backbone, with a head for its own classes."""
    other = make_pictures(tmp_path / "other", train=3, val=2)
    (other / "train" / "red").rename(other / "train" / "teal")
    (other / "val" / "red").rename(other / "val" / "teal")
    place = tmp_path / "stages"
    options = [f"data.root={pictures}", *SHORT, "schedule.warmup_steps=0", "train.steps=2", "tuning.probe_steps=1"]
    script("two_stage").main([str(other), *options, f"run.dir={place}"])
    assert "second stage: " in capsys.readouterr().out
    assert Predictor(place / "first").class_names == ("blue", "green", "teal")
    assert Predictor(place / "second").class_names == ("blue", "green", "red")
    assert Config.load(place / "second").model.pretrained == str(place / "first" / "model")


def test_replace_head_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes known by name keep their rows, the others start at zero, and nothing else changes."""
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_classes=3).eval()
    spec = PreprocessSpec(input_size=(3, 32, 32))
    export_model_folder(model, tmp_path / "old", preprocess=spec, class_names=["owl", "wren", "kite"])
    script("replace_head_only").main([str(tmp_path / "old"), str(tmp_path / "new"), "kite", "duck", "owl"])
    assert "kept by name: kite, owl; the other 1 start at zero" in capsys.readouterr().out
    predictor = Predictor(tmp_path / "new", device="cpu")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(predictor.model(images)[:, [0, 2]], model(images)[:, [2, 0]])
        assert not predictor.model(images)[:, 1].any()


def test_resume(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A killed and resumed run is bit for bit the undisturbed one; the script fails where it is not."""
    short = [*SHORT, "train.steps=12", "evaluation.every_steps=2"]
    script("resume").main([f"data.root={pictures}", *short, f"run.dir={tmp_path / 'runs'}"])
    assert capfd.readouterr().out.count("bit for bit the same") == 3


def test_multi_label(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of files with any number of classes trains a sigmoid a class and reports how well they are ranked."""
    rows = ["file,classes"]
    for path in sorted((pictures / "train").rglob("*.png")):
        name = path.parent.name
        rows.append(f"{path.relative_to(pictures)},{name}{' warm' if name == 'red' else ''}")
    table = pictures / "table.csv"
    table.write_text("\n".join(rows))
    script("multi_label").main([str(table), *SHORT, "train.steps=2", f"run.dir={tmp_path / 'run'}"])
    assert "mean average precision on the held-out pictures: " in capsys.readouterr().out
    assert Predictor(tmp_path / "run").class_names == ("blue", "green", "red", "warm")


@pytest.mark.parametrize("name", ["custom_dataset", "multi_label", "replace_head_only", "two_stage"])
def test_scripts__without_arguments(name: str) -> None:
    """A script that needs an argument says which."""
    with pytest.raises(RequestError, match="^give "):
        script(name).main([])


def test_measure(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is a line with its figures; a second call adds nothing; the table has them beside the published ones."""
    measure, results = script("measure"), tmp_path / "results"
    options = ["--only", "linear_probe", "--only", "augreg", "--results", str(results)]
    sets = [text for value in (*SHORT, "train.steps=2", "schedule.warmup_steps=1") for text in ("--set", value)]
    measure.main([f"tiny={pictures}", *options, *sets])
    log = results / "results.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        *(("linear_probe", seed) for seed in range(3)),
        ("augreg", 0),
    ]
    assert all(0 <= row["accuracy"] <= 1 and row["epoch_seconds"] > 0 for row in rows)
    measure.main([f"tiny={pictures}", *options, *sets])
    assert len(log.read_text().splitlines()) == 4
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- measured -->\nOLD TABLE\n<!-- end -->\nafter\n")
    script("measure_table").main([str(log), str(document)])
    text = document.read_text()
    assert text.startswith("before\n<!-- measured -->\n| recipe |") and text.endswith("<!-- end -->\nafter\n")
    row = next(line for line in text.splitlines() if line.startswith("| [augreg]"))
    assert f"| {100 * rows[3]['accuracy']:.1f} |" in row and "B/32 83.59 %" in row
    assert "OLD TABLE" not in text
