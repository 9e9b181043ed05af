"""The command line as a person meets it: each verb does its work, and bad input is one clear line and exit code 2."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_helpers import ROOT, make_pictures, run_module, tiny_config
from safetensors.torch import load_file

from vit_finetune import Config, Predictor, __version__, cli, finetune
from vit_finetune.finetune import RunResult
from vit_finetune.models import MergedTokens


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=6, val=3)


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One run that several tests look at."""
    return finetune(tiny_config(pictures, tmp_path_factory.mktemp("runs") / "one", train={"steps": 2}))


class Said:
    """What the command line printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs `vit-finetune ARGUMENTS` in this process."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vit-finetune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return run


@pytest.fixture
def recipe(pictures: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_config(pictures, tmp_path / "run", train={"steps": 2})))
    return path


def test_train__tells_the_whole_story(say: Any, recipe: Path, tmp_path: Path) -> None:
    """`train` prints model, weights, data, plan and result, and makes the run folder where the override says."""
    said = say("train", recipe, f"run.dir={tmp_path / 'elsewhere'}", "train.steps=3")
    assert said.code == 0, said.err
    for word in ("parameters trained", "tensors loaded", "classes", "3 steps", "done     step", "vit-finetune predict"):
        assert word in said.out
    assert (tmp_path / "elsewhere" / "model" / "model.safetensors").is_file()


def test_train__a_folder_of_pictures_and_a_budget(say: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`train FOLDER --budget TIME` is the recipe image_folder on that folder, into runs/FOLDER, under that budget."""
    told = {}
    module = sys.modules["vit_finetune.finetune"]  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "finetune", lambda config, **options: told.update(options, config=config))
    make_pictures(tmp_path / "photos", train=2, val=1)
    assert say("train", tmp_path / "photos", "--budget", "90s", "--plan", "plan.json").code == 0
    config = told["config"]
    assert (config.data.root, config.run.dir) == (str(tmp_path / "photos"), "runs/photos")
    assert (config.train.budget, config.train.epochs) == ("90s", None)
    assert (told["replay"], told["resume"]) == (Path("plan.json"), False)
    assert config.optimizer == Config.load("image_folder").optimizer


def test_train__a_budget_and_steps_contradict_each_other(say: Any, recipe: Path) -> None:
    """Both on one command line are one clear line and exit code 2; so is a budget that is no duration."""
    said = say("train", recipe, "train.steps=3", "--budget", "10m")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "--budget 10m and train.steps or train.epochs contradict each other" in said.err
    assert "such as 10m, 90s or 1h30m; got 'soon'" in say("train", recipe, "--budget", "soon").err


def test_sweep__grid_on_the_command_line(say: Any, recipe: Path, tmp_path: Path) -> None:
    """`sweep` runs every combination, prints them best first and what to type next; a bad one is exit code 2."""
    said = say("sweep", recipe, f"run.dir={tmp_path / 'sweep'}", "--grid", "optimizer.lr=[1e-4,1e-3]")
    assert said.code == 0, said.err
    assert "sweep    2 trials, best first by accuracy on val" in said.out
    assert "vit-finetune predict" in said.out
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        *("sweep.json", "sweep.csv", "trial-000", "trial-001"),
    }
    for arguments, message in (
        (("--grid", "optimizer.lr=[1e-4]"), "holds a sweep already"),
        (("--grid", "optimizer.lr=1e-4"), "is not of the form"),
        ((), "give a grid or a search"),
    ):
        said = say("sweep", recipe, f"run.dir={tmp_path / 'sweep'}", *arguments)
        assert said.code == 2
        assert said.err.startswith("error: ")
        assert message in said.err


def test_evaluate__corruptions_are_the_runs_own(say: Any, pictures: Path, tmp_path: Path) -> None:
    """`evaluate --corruptions` finds again what the run wrote with `evaluation.corruptions`, at the run's seed."""
    config = tiny_config(pictures, tmp_path / "run", train={"steps": 2}, evaluation={"corruptions": True})
    config["run"]["seed"] = 3
    run = finetune(config).run_dir
    told = json.loads((run / "metrics.json").read_text())["corruptions"]
    assert len(told["rows"]) == 9
    found = json.loads(say("evaluate", run, "--corruptions", "--json").out)["corruptions"]
    for before, after in zip(told["rows"], found["rows"], strict=True):
        assert after == pytest.approx(before, abs=1e-5)
    shown = say("evaluate", run, "--corruptions").out
    assert f"mean   accuracy {told['mean']['accuracy']:.4f}" in shown
    assert f"corrupt  mean   accuracy {told['mean']['accuracy']:.4f}" in (run / "run.log").read_text()


def test_merge_tokens__run_verbs_and_python_agree(
    say: Any, finished: RunResult, pictures: Path, tmp_path: Path
) -> None:
    """Scored at the end of a run, by `evaluate`, `predict` and `Predictor`, merged tokens give the same figures, which
    are not the plain ones; what was trained and saved is what it is without.
    """
    config = tiny_config(pictures, tmp_path / "run", train={"steps": 2}, evaluation={"merge_tokens": 1})
    run = finetune(config)
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (run.run_dir / name).read_bytes() == (finished.run_dir / name).read_bytes(), name
    figures = json.loads((run.run_dir / "metrics.json").read_text())
    assert figures["merged"]["loss"] != figures["loss"]
    assert "merged   merge_tokens 1: accuracy" in (run.run_dir / "run.log").read_text()
    told = json.loads(say("evaluate", run.run_dir, "--merge-tokens", 1, "--json").out)
    assert {name: told[name] for name in figures["merged"]} == pytest.approx(figures["merged"], abs=1e-6)
    picture, merged = pictures / "val" / "red" / "0.png", Predictor(run, merge_tokens=1, temperature=1.0)
    said = say("predict", run.run_dir, picture, "--merge-tokens", 1, "--raw").out
    assert f"{merged(picture).top(1)[0][0][1]:.4f}" in said
    logits = MergedTokens(run.model, 1)(merged.pixels([picture]))
    np.testing.assert_allclose(merged(picture).probabilities, logits.softmax(dim=1).detach().numpy(), atol=1e-7)
    assert np.abs(merged.embed(picture) - Predictor(run).embed(picture)).max() > 1e-4
    assert Predictor(run).network is not Predictor(run, merge_tokens=1).network
    refused = say("predict", tmp_path / "x.onnx", picture, "--merge-tokens", 1)
    assert (refused.code, "holds a fixed graph; give the run instead" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("tuning.mode=readout", "evaluation.merge_tokens scores a network that was trained, not tuning.mode readout"),
        ("train.budget=1m", "evaluation.merge_tokens scores a network that was trained, not train.budget"),
        ("model.name=beit_base_patch16_224", "token merging is for plain ViTs, and this is a ViT with relative"),
    ],
)
def test_merge_tokens__refused_before_anything_trains(
    say: Any, recipe: Path, tmp_path: Path, override: str, named: str
) -> None:
    """Where no network is trained, or its tokens cannot be merged, the run says so at once and leaves nothing."""
    said = say("train", recipe, "evaluation.merge_tokens=1", override)
    assert (said.code, named in said.err, said.err.count("error:")) == (2, True, 1), said.err
    assert not (tmp_path / "run").exists()


def test_evaluate__scores_the_pictures_that_the_run_held_out(say: Any, pictures: Path, tmp_path: Path) -> None:
    """What is held out follows from the run's seed, so `evaluate RUN` gives the run's own figures at any seed."""
    config = tiny_config(pictures / "train", tmp_path / "run", train={"steps": 2})
    config["run"]["seed"] = 3
    run = finetune(config)
    figures = json.loads(say("evaluate", run.run_dir, "--json").out)
    assert figures["loss"] == pytest.approx(run.metrics["loss"], abs=1e-6)


def test_evaluate__scores_a_folder_and_the_runs_own_split(say: Any, finished: RunResult, pictures: Path) -> None:
    """`evaluate` gives the run's own figures again, for its held-out split, a folder and a data section."""
    run = finished.run_dir
    for data in ([], [pictures / "val"], [f"root={pictures}"]):
        said = say("evaluate", run, *data, "--json")
        assert said.code == 0, said.err
        figures = json.loads(said.out)
        assert figures["num_samples"] == 9
        assert figures["accuracy"] == finished.metrics["accuracy"]
        assert figures["loss"] == pytest.approx(finished.metrics["loss"], abs=1e-6)
    assert "18 pictures" in say("evaluate", run, pictures, "--split", "train").out


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_predict__writes_a_table_once(
    say: Any, finished: RunResult, pictures: Path, tmp_path: Path, ending: str
) -> None:
    """`predict --output` writes a row a picture; a second call needs --overwrite."""
    import pandas as pd

    output = tmp_path / f"predictions.{ending}"
    arguments = ("predict", finished.run_dir, pictures / "val", "--output", output, "--top-k", 2)
    assert say(*arguments).code == 0
    readers: dict[str, Any] = {
        "csv": pd.read_csv,
        "parquet": pd.read_parquet,
        "jsonl": lambda path: pd.read_json(path, lines=True),
    }
    table = readers[ending](output)
    assert list(table.columns) == ["path", "label", "probability", "label_2", "probability_2"]
    assert len(table) == 9
    again = say(*arguments)
    assert again.code == 2
    assert "--overwrite" in again.err
    assert say(*arguments, "--overwrite").code == 0


def test_predict__prints_what_it_sees(say: Any, finished: RunResult, pictures: Path) -> None:
    """Without --output each picture is a line with its classes, best first."""
    said = say("predict", finished.run_dir, pictures / "val" / "red" / "0.png", "--top-k", 1)
    assert said.code == 0
    assert said.out.startswith(str(pictures / "val" / "red" / "0.png"))
    assert len(said.out.splitlines()) == 1


def test_inspect__says_what_a_model_is(say: Any, finished: RunResult) -> None:
    """`inspect` of a model folder names architecture and classes; --json gives the same as data."""
    said = say("inspect", finished.run_dir / "model")
    assert said.code == 0
    assert "vit_tiny_patch16_224" in said.out
    assert "blue, green, red" in said.out
    assert (
        json.loads(say("inspect", finished.run_dir / "model", "--json").out)["architecture"] == "vit_tiny_patch16_224"
    )


def test_convert__writes_proves_and_compares(say: Any, finished: RunResult, tmp_path: Path) -> None:
    """`convert` writes what transformers opens, says how it was proven; `inspect --diff` finds nothing changed."""
    model, out = finished.run_dir / "model", tmp_path / "hf"
    dry = say("convert", model, out, "--to", "hf_vit", "--dry-run", "--table")
    assert dry.code == 0, dry.err
    assert "blocks.0.attn.qkv.weight" in dry.out and "nothing written" in dry.out
    said = say("convert", model, out, "--to", "hf_vit")
    assert said.code == 0, said.err
    assert "verified by vit_finetune against transformers" in said.out
    assert "0 of " in say("inspect", model, "--diff", out).out
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    seen = say("convert", model, tmp_path / "seen", "--to", "hf_vit", "--images", tmp_path / "red.png")
    assert "4 random and 1 given pictures" in seen.out
    lost = say("convert", model, tmp_path / "lost", "--to", "hf_vit", "--images", tmp_path / "none.png")
    assert (lost.code, "none.png" in lost.err, (tmp_path / "lost").exists()) == (2, True, False)
    assert {row["what"] for row in json.loads(say("inspect", model, "--diff", out, "--json").out)} == {"equal"}
    again = say("convert", model, out, "--to", "hf_vit")
    assert again.code == 2
    assert "exists already" in again.err
    weights = tmp_path / "weights.pth"
    torch.save(load_file(model / "model.safetensors"), weights)
    asked = say("convert", weights, tmp_path / "tv", "--to", "torchvision")
    assert asked.code == 2
    assert "do not tell num_heads, norm_eps, act_layer" in asked.err
    hints = ("--set", f"num_heads={finished.model.config.num_heads}", "eps=1e-6", "act=gelu", "pool=token")
    told = say("convert", weights, tmp_path / "tv", "--to", "torchvision", *hints, "--no-verify")
    assert told.code == 0, told.err
    assert (tmp_path / "tv" / "model.pth").is_file()


def test_models__lists_and_summarises(say: Any) -> None:
    """`models` lists by pattern with sizes; --summary ends in timm's parameter count."""
    said = say("models", "deit_tiny*")
    assert said.code == 0
    assert "5,717,416" in said.out  # deit_tiny_patch16_224, as timm counts it
    summary = say("models", "deit_tiny_patch16_224", "--summary")
    assert "blocks.11" in summary.out
    assert "5,717,416" in summary.out


def test_help__every_verb_has_an_example(say: Any) -> None:
    """`--help` of every verb shows a command that somebody can type."""
    for verb in ("train", "evaluate", "predict", "inspect", "convert", "models"):
        said = say(verb, "--help")
        assert said.code == 0
        assert f"Example: vit-finetune {verb}" in " ".join(said.out.split())


def empty_class(root: Path) -> None:
    (root / "train" / "void").mkdir()


def unreadable(root: Path) -> None:
    (root / "train" / "red" / "0.png").write_text("not a picture")


def class_only_in_val(root: Path) -> None:
    (root / "val" / "red").rename(root / "val" / "violet")


@pytest.mark.parametrize(
    ("spoil", "named"), [(empty_class, "void"), (unreadable, "0.png"), (class_only_in_val, "violet")]
)
def test_bad_data__one_line_and_exit_2(say: Any, tmp_path: Path, spoil: Any, named: str) -> None:
    """Broken picture folders are named in one line, and no run folder is left behind."""
    root = make_pictures(tmp_path / "pictures", train=3, val=2)
    spoil(root)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_config(root, tmp_path / "run")))
    assert_refused(say("train", recipe), named)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.root=/nowhere/at/all", "/nowhere/at/all"),
        ("model.name=vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"),
        ("model.name=vit_base_r50_s16_224", "hybrid"),
        ("train.epoch=3", "did you mean 'epochs'"),
        ("train.global_batch_size=many", "train.global_batch_size"),
        ("optimizer.lr", "section.key=value"),
        ("run.device=cuda", "not on this machine"),
        ("train.mixed_precision=fp16", "CUDA"),
        ("train.per_device_batch_size=64", "at most 12"),
        ("schedule.warmup_steps=99", "longer than the run"),
        ("tuning.mode=last_n", "num_blocks"),
        ("evaluation.metric=top5", "3 classes"),
        ("run.trackers=[wandb]", "pip install wandb"),
        ("model.pretrained=/nowhere.safetensors", "/nowhere.safetensors"),
    ],
)
def test_bad_recipe__one_line_and_exit_2(say: Any, recipe: Path, override: str, named: str) -> None:
    """A wrong value or name is refused before anything is written, with what was got and what is allowed."""
    assert_refused(say("train", recipe, override), named)
    assert not (recipe.parent / "run").exists()


def test_existing_run__needs_resume_or_overwrite(say: Any, recipe: Path) -> None:
    """A second `train` into the same folder is refused and changes nothing; --overwrite and --resume go through."""
    assert say("train", recipe).code == 0
    before = (recipe.parent / "run" / "metrics.jsonl").read_bytes()
    assert_refused(say("train", recipe), "--resume")
    assert_refused(say("train", recipe, "--resume", "--overwrite"), "contradict")
    assert (recipe.parent / "run" / "metrics.jsonl").read_bytes() == before
    assert say("train", recipe, "--resume").code == 0
    assert say("train", recipe, "--overwrite").code == 0
    assert say("train", recipe.parent / "run", "--resume").code == 0, "a run's folder is a recipe too"


def test_foreign_folder__is_never_emptied(say: Any, recipe: Path) -> None:
    """--overwrite replaces runs only: a folder with somebody's files in it is refused."""
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run" / "thesis.txt").write_text("years of work")
    assert_refused(say("train", recipe, "--overwrite"), "no run folder")
    assert (recipe.parent / "run" / "thesis.txt").is_file()


def test_corrupt_checkpoints__one_line_and_exit_2(say: Any, finished: RunResult, recipe: Path, tmp_path: Path) -> None:
    """Truncated safetensors, a pickle that is no state dict and random bytes are refused by inspect and train."""
    whole = (finished.run_dir / "model" / "model.safetensors").read_bytes()
    files = {"cut.safetensors": whole[: len(whole) // 2], "object.pt": pickle.dumps(object()), "noise.pth": b"\0" * 99}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert_refused(say("inspect", tmp_path / name), name)
        assert_refused(say("train", recipe, f"model.pretrained={tmp_path / name}"), name)


def test_wrong_number_of_classes__one_line_and_exit_2(
    say: Any, finished: RunResult, pictures: Path, tmp_path: Path
) -> None:
    """Pictures of a class that the model does not know cannot be scored, and the class is named."""
    other = make_pictures(tmp_path / "other", train=1, val=1)
    (other / "val" / "red").rename(other / "val" / "violet")
    assert_refused(say("evaluate", finished.run_dir, other / "val"), "violet")


def test_missing_things__one_line_and_exit_2(say: Any, finished: RunResult, tmp_path: Path) -> None:
    """Models, pictures and recipes that are not there are named."""
    assert_refused(say("predict", tmp_path / "no_run", tmp_path), "no_run")
    assert_refused(say("predict", finished.run_dir, tmp_path / "no_picture.png"), "no_picture.png")
    assert_refused(say("train", "no_such_recipe"), "no_such_recipe")
    assert_refused(say("inspect", tmp_path / "no_file"), "no_file")
    assert_refused(say("models", "vit_bse_patch16_224"), "vit_base_patch16_224")
    assert_refused(say("evaluate", finished.run_dir / "model"), "folder of class folders")


def test_module__starts_as_a_program() -> None:
    """`python -m vit_finetune` is what launchers start: it gives the same error and exit code."""
    done = run_module(["train", "no_such_recipe"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'no_such_recipe'")
    assert "Traceback" not in done.stderr
    assert str(ROOT) not in done.stderr


def assert_refused(said: Said, named: str) -> None:
    """The answer is exit code 2 and one line on stderr that names the thing."""
    assert said.code == 2, said.err or said.out
    assert named in said.err
    lines = [line for line in said.err.splitlines() if line]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")


def test_version__is_the_packages(say: Any) -> None:
    """`--version` prints one line and asks for no verb."""
    said = say("--version")
    assert (said.code, said.out, said.err) == (0, f"vit-finetune {__version__}\n", "")
