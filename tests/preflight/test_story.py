"""A whole check: from a recipe to a verdict, its report, and what `train` makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faulty_pictures import HTML, SVG, clean, noise, save
from run_helpers import run_module, tiny_config

from vit_finetune import Config, PreprocessSpec, RequestError, check, create_model, export_model_folder
from vit_finetune.data.audit.facts import PictureFacts
from vit_finetune.data.audit.files import check_colours
from vit_finetune.preflight import CheckResult, check_before_training, rehearsal
from vit_finetune.preflight.report import result_lines
from vit_finetune.training.objective import Objective


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test know what another has seen."""
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path / "cache"))
    yield


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a two-block network as a model folder; its features tell colours apart, though nothing trained it."""
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=48)
    spec = PreprocessSpec(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, source="a test", assumed=())
    folder = tmp_path_factory.mktemp("network") / "model"
    export_model_folder(model, folder, preprocess=spec, class_names=("a", "b", "c"))
    return folder


def recipe(root: Path, network: Path | None, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe of the network on a folder."""
    config: dict[str, Any] = tiny_config(root, root.parent / "run", **sections)
    if network is not None:
        config["model"] = {"pretrained": str(network)}
    return config


def run_check(config: Mapping[str, Any], level: str = "full", **options: Any) -> CheckResult:
    """Check in silence."""
    return check(config, level=level, say=lambda line: None, **options)


def codes(result: CheckResult) -> dict[str, int]:
    """Return how many cases of each fault were found."""
    return {finding.code: finding.how_many for finding in result.findings}


def test_check__clean_set_goes(tmp_path: Path, network: Path) -> None:
    """A clean set is a plain go at the full level, with every figure of the dry run; the run's folder isn't touched."""
    result = run_check(recipe(clean(tmp_path / "set", train=20), network))
    assert (result.verdict, codes(result)) == ("go", {})
    assert len(result.ranking) == 60
    figures = result.figures
    assert figures["per_device_batch_size"] == 4 and figures["gradient_accumulation_steps"] == 3
    assert figures["seconds_per_epoch"] == figures["seconds_per_epoch_network"] + figures["seconds_per_epoch_pictures"]
    assert 0 < figures["peak_memory_bytes"] < figures["memory_bytes"]
    parameters = sum(value.numel() for value in create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=48
    ).parameters())  # fmt: skip
    # Five checkpoints of weights and Adam's two moments, and the model folder; a step count for each tensor beside.
    assert figures["disk_bytes"] == pytest.approx(4 * parameters * (5 * 3 + 1), rel=0.01)
    assert not (tmp_path / "run").exists()


def test_check__wrong_label_and_colours(tmp_path: Path, network: Path) -> None:
    """A picture in the folder of another class is the one suspect, and first in the ranking."""
    root = clean(tmp_path / "set", train=20)
    shutil.move(root / "train/red/7.png", root / "train/blue/700.png")
    result = run_check(recipe(root, network), output=tmp_path / "report")
    assert (result.verdict, codes(result)) == ("go with warnings", {"label_error": 1})
    first = result.ranking[0]
    assert first["name"].endswith("train/blue/700.png")
    assert (first["label"], first["guess"], first["neighbours"]) == ("blue", "red", "red")
    lines = (tmp_path / "report/labels.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "rank,name,label,probability,guess,neighbours"
    assert lines[1].startswith("1,") and "blue/700.png,blue," in lines[1] and len(lines) == 61


def test_check__colours_far_from_the_checkpoints() -> None:
    """Dark pictures are told where the checkpoint is normalised for bright ones, and fine for one that isn't."""
    dark = [PictureFacts(mean=(0.05,) * 3, square=(0.01,) * 3)]
    bright = PreprocessSpec(mean=(0.5,) * 3, std=(0.25,) * 3)
    (finding,) = check_colours(dark, bright)
    assert finding.code == "normalisation"
    assert "mean 0.050 0.050 0.050 (std 0.087 0.087 0.087)" in finding.examples[0].name
    assert check_colours(dark, PreprocessSpec(mean=(0.1,) * 3, std=(0.1,) * 3)) == []


def test_check__random_weights_judge_no_label(tmp_path: Path) -> None:
    """Without pretrained weights labels are not judged, and the report says so; a note does not stop."""
    result = run_check(recipe(clean(tmp_path / "set"), None))
    assert (result.verdict, codes(result)) == ("go", {"not_checked": 1})
    assert "random weights" in result.findings[0].examples[0].note


def test_check__a_stop_leaves_the_network_out(tmp_path: Path, network: Path) -> None:
    """Where training would stop at the data, nothing is built, and both parts that need the network say why."""
    root = clean(tmp_path / "set")
    (root / "train/red/page.jpg").write_bytes(HTML)
    result = run_check(recipe(root, network))
    assert (result.verdict, codes(result)) == ("stop", {"not_a_picture": 1, "not_checked": 2})
    assert result.figures == {}


@pytest.mark.parametrize("mode", ["lora", "readout", "linear_probe"])
def test_check__other_ways_to_tune(tmp_path: Path, network: Path, mode: str) -> None:
    """The dry run is of what the recipe trains: adapters, a head, or nothing but features."""
    readout = {"num_folds": 2} if mode == "readout" else {}
    tuning = {"mode": mode, **({"lora": {"rank": 2}} if mode == "lora" else {})}
    result = run_check(recipe(clean(tmp_path / "set"), network, tuning=tuning, readout=readout))
    assert result.verdict == "go" and set(codes(result)) <= {"not_checked"}
    assert ("feature_bytes" in result.figures) == (mode == "readout")


def test_check__budget(tmp_path: Path, network: Path) -> None:
    """Under a budget the dry run is of one epoch of fine-tuning."""
    config = recipe(clean(tmp_path / "set"), network)
    config["train"] = {"budget": "1m", "global_batch_size": 12}
    assert run_check(config).figures["seconds_per_epoch"] > 0


def test_check__what_stands_in_the_way_of_a_run(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contradiction, a full disk, no memory, and a loss that is no number each have their code."""
    root = clean(tmp_path / "set")
    wrong = run_check(recipe(root, network, schedule={"warmup_steps": 99}))
    assert codes(wrong)["dry_run"] == 1 and "warm-up of 99 steps" in wrong.findings[0].examples[0].name
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        assert codes(run_check(recipe(root, network)))["disk"] == 1
    with monkeypatch.context() as patch:

        def infinite(_: Objective, model: Any, batch: Any, **__: Any) -> torch.Tensor:
            return model(batch.images, sample_seeds=batch.sample_seeds).sum()[None] * float("inf")

        patch.setattr(Objective, "losses", infinite)
        assert codes(run_check(recipe(root, network)))["non_finite"] == 1
    with monkeypatch.context() as patch:

        def runs_out(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

        patch.setattr(Objective, "losses", runs_out)
        short = run_check(recipe(root, network))
        assert short.verdict == "stop" and codes(short)["memory"] == 1
        assert short.findings[0].examples[0].note == "CUDA out of memory. Tried to allocate 2.00 GiB"


class _Page(HTMLParser):
    """What stands in a page: its elements, their addresses, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report__is_whole_escaped_and_needs_nothing_else(tmp_path: Path) -> None:
    """JSON and page say the same; names are text, not markup; pictures are inside; broken ones have a frame."""
    root = clean(tmp_path / "set")
    save(noise(40_005), root / "train/<script>alert(1).png")
    for split in ("train", "val"):
        save(noise(40_000 + len(split)).convert("L"), root / split / "<b>&'\"" / "x\n<i>.png")
    (root / "train/red/page.jpg").write_bytes(SVG)
    (root / "train/red/flat.png").write_bytes(b"")
    result = run_check(recipe(root, None), "quick", output=tmp_path / "report")
    written = json.loads((tmp_path / "report/check.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result.to_mapping()))
    assert written["verdict"] == "stop"
    assert written["classes"]["<b>&'\""] == {"train": 1, "val": 1}
    page = _Page((tmp_path / "report/check.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "<script>alert(1).png" in page.text and "<b>&'\"" in page.text
    assert page.addresses and all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert page.text.count("not decoded") == 2
    for finding in result.findings:
        assert finding.code in page.text and finding.what in page.text
    grey = next(finding for finding in result.findings if finding.code == "colour_modes").examples[0].name
    assert grey.endswith("train/<b>&'\"/x\\n<i>.png") and grey in page.text
    assert all("\n" not in line for line in result_lines(result))


def test_report__replaces_only_its_own(tmp_path: Path) -> None:
    """An earlier report is replaced; a folder with something else in it is refused and left alone."""
    config = recipe(clean(tmp_path / "set"), None)
    for _ in range(2):
        run_check(config, "quick", output=tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["check.html", "check.json"]
    with pytest.raises(RequestError, match="no report of a check"):
        run_check(config, "quick", output=tmp_path / "set")
    with pytest.raises(RequestError, match="level 'deep' is not one of quick, full"):
        run_check(config, "deep")


def test_before_training__says_stops_and_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are said, faults stop with all of them in one line, and neither happens where nobody wants it."""
    root = clean(tmp_path / "set")
    shutil.copyfile(root / "train/red/0.png", root / "val/red/copy.png")
    config = Config.load(recipe(root, None))
    said: list[str] = []
    check_before_training(config, resume=False, say=said.append)
    assert said[0].startswith("check    duplicate_across_splits: 1 ")
    assert said[1].startswith("check    go with warnings: 40 pictures read ")
    (root / "train/red/empty.png").write_bytes(b"")
    (root / "train/none").mkdir()
    with pytest.raises(RequestError, match="empty_class: 1 .*empty_file: 1 .*run.check=off"):
        check_before_training(config, resume=False, say=said.append)
    check_before_training(Config.load(config, overrides=["run.check=off"]), resume=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    check_before_training(config, resume=True)
    with pytest.raises(RequestError, match="holds a run already"):  # told before a file is read
        check_before_training(config, resume=False)
    with pytest.raises(RequestError, match="the data would stop this run"):
        check_before_training(config, resume=False, overwrite=True)
    monkeypatch.setenv("RANK", "1")
    check_before_training(config, resume=False)


def test_cli__check(tmp_path: Path) -> None:
    """The command prints table and verdict, writes the report beside the run's folder, and its exit code stops `&&`."""
    root = clean(tmp_path / "set")
    arguments = ["check", str(root), "--level", "quick", f"run.dir={tmp_path / 'run'}"]
    variables = {"VIT_FINETUNE_CACHE": str(tmp_path / "cache")}
    done = run_module(arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verdict  go\n" in done.stdout and f"report   {tmp_path / 'run_check' / 'check.html'}" in done.stdout
    (root / "train/red/empty.png").write_bytes(b"")
    done = run_module([*arguments, "--json"], **variables)
    assert done.returncode == 1
    assert [finding["code"] for finding in json.loads(done.stdout)["findings"]] == ["empty_file"]
    done = run_module(["train", str(root), f"run.dir={tmp_path / 'run'}"], **variables)
    assert done.returncode == 2 and done.stderr.startswith("error: the data would stop this run: empty_file: 1 ")
    assert not (tmp_path / "run").exists()
