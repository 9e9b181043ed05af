"""The Predictor beyond plain classes: calibration, features, abstaining, folders of any size."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from run_helpers import make_pictures, tiny_config

from vit_finetune import Predictor, evaluate, explain, export_model, finetune, write_explanations
from vit_finetune.abstaining import abstention, threshold_for
from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation import expected_calibration_error, fit_temperature, write_predictions
from vit_finetune.evaluation.features_file import write_features
from vit_finetune.evaluation.tables import write_table
from vit_finetune.finetune import RunResult
from vit_finetune.pictures import run_splits


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pictures of which one in val has the wrong class, so that there is a temperature to fit."""
    root = make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=4, val=3)
    shutil.copy(root / "val" / "red" / "0.png", root / "val" / "blue" / "9.png")
    return root


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One run of a few seconds that all tests look at."""
    settings = {"train": {"steps": 3}, "evaluation": {"every_steps": 3}}
    return finetune(tiny_config(pictures, tmp_path_factory.mktemp("runs") / "one", **settings))


def test_finetune__keeps_the_temperature_of_its_val_split(finished: RunResult, pictures: Path) -> None:
    """The temperature in metrics.json is the one of the written val predictions, and so are both errors."""
    told = json.loads((finished.run_dir / "metrics.json").read_text())["calibration"]
    result = evaluate(finished, pictures / "val")
    assert told["temperature"] == pytest.approx(fit_temperature(np.log(result.probabilities), result.labels), rel=1e-4)
    assert told["ece"] == pytest.approx(expected_calibration_error(result.probabilities, result.labels), abs=1e-5)
    scaled = Predictor(finished)(pictures / "val").probabilities
    assert told["ece_scaled"] == pytest.approx(expected_calibration_error(scaled, result.labels), abs=1e-4)
    assert (told["fitted_on"], told["measured_on"], told["num_fitted"]) == ("val", "val", 10)
    assert told["temperature"] != 1.0, "the run makes no mistakes, so this test would prove nothing"


def test_predictor__calibrated_by_default_raw_when_asked(finished: RunResult, pictures: Path) -> None:
    """Probabilities are softmax(logits / temperature) and say so; 1 gives raw ones; the first guess is the same."""
    calibrated, raw = Predictor(finished), Predictor(finished, temperature=1.0)
    assert (calibrated.is_calibrated, raw.is_calibrated) == (True, False)
    ours, theirs = calibrated(pictures / "val"), raw(pictures / "val")
    assert (ours.labels, ours.temperature) == (theirs.labels, calibrated.temperature)
    logits = torch.from_numpy(np.log(theirs.probabilities)).double()
    expected = (logits / calibrated.temperature).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours.probabilities, expected, atol=1e-5)
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(RequestError, match="give a number above 0"):
            Predictor(finished, temperature=wrong)


def test_model_folder__other_libraries_see_logits_as_they_are(finished: RunResult, pictures: Path) -> None:
    """timm reading the folder computes the raw probabilities: the temperature is beside the weights, not in them."""
    model = timm.create_model(f"local-dir:{finished.run_dir / 'model'}", pretrained=True).eval()
    raw = Predictor(finished, temperature=1.0)
    with torch.no_grad():
        theirs = model(raw.pixels([pictures / "val" / "red" / "0.png"])).softmax(dim=1).numpy()
    np.testing.assert_allclose(raw(pictures / "val" / "red" / "0.png").probabilities, theirs, atol=1e-5)


def test_embed__is_timms_pre_logits(finished: RunResult, pictures: Path, tmp_path: Path) -> None:
    """Features are timm's forward_head(pre_logits=True) of the model folder; .npy and parquet hold the same rows."""
    predictor = Predictor(finished, batch_size=4)
    model = timm.create_model(f"local-dir:{finished.run_dir / 'model'}", pretrained=True).eval()
    found = predictor.embed(pictures / "val")
    with torch.no_grad():
        pixels = predictor.pixels(sorted((pictures / "val").rglob("*.png")))
        theirs = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    assert write_features(tmp_path / "x.npy", predictor.stream_features(pictures / "val")) == 10
    write_features(tmp_path / "x.parquet", predictor.stream_features(pictures / "val"))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), found)
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    np.testing.assert_allclose([row["features"] for row in rows], found, rtol=1e-6)
    assert rows[0]["path"] == str(pictures / "val" / "blue" / "0.png")


def test_stream__holds_one_batch_at_a_time(finished: RunResult, tmp_path: Path) -> None:
    """Of an endless source, a batch is predicted, and written, before a picture of the next one is asked for."""
    asked = written = 0
    place = tmp_path / "many.jsonl"

    def endless() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield np.full((8, 8, 3), asked % 256, dtype=np.uint8)

    def watched() -> Iterator[object]:
        nonlocal written
        for part in Predictor(finished, batch_size=5).stream(endless()):
            written += len(part)
            assert asked == written
            yield part
            if written >= 50:
                assert not place.exists(), "the file must appear at the end only"
                return

    write_predictions(watched(), place)
    assert len(place.read_text().splitlines()) == written == 50


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_write_table__rows_leave_memory_as_they_come(tmp_path: Path, ending: str) -> None:
    """Most of 30,000 rows are on the disk before the last part is asked for, and all come back in order."""
    sizes = []

    def parts() -> Iterator[list[dict[str, object]]]:
        for start in range(0, 30_000, 1_000):
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield [{"path": f"{start + row}.png", "probability": 0.5} for row in range(1_000)]

    assert write_table(tmp_path / f"t{ending}", parts(), empty=("path",)) == 30_000
    assert sizes[-1] > sizes[0] >= 0
    rows: list[dict[str, object]]
    if ending == ".parquet":
        assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 4
        rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    elif ending == ".csv":
        rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    else:
        rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"{place}.png" for place in range(30_000)]
    assert write_table(tmp_path / f"none{ending}", [], empty=("path",)) == 0


@pytest.mark.parametrize("target", ["timm", "safetensors"])
def test_export__keeps_the_temperature(finished: RunResult, tmp_path: Path, target: str) -> None:
    """An export of the single file, which is written anew, is as calibrated as the run."""
    export_model(finished.run_dir / "model" / "model.safetensors", tmp_path / "out", to=target)
    place = tmp_path / "out" / ("model.safetensors" if target == "safetensors" else "")
    assert Predictor(place).temperature == Predictor(finished).temperature


def test_abstaining__threshold_from_val_holds_there(finished: RunResult, pictures: Path) -> None:
    """The threshold keeps the stated risk on val; foreign pictures are told by AUROC; predictions say who abstains."""
    predictor = Predictor(finished)
    risk = 0.1  # of ten pictures one is wrong, so all may be answered
    predictor.min_probability = threshold_for(predictor, str(finished.run_dir), max_risk=risk)
    noise = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8) for seed in range(4)]
    told = abstention(predictor, run_splits(finished.run_dir), min_probability=predictor.min_probability, foreign=noise)
    known = evaluate(finished, run_splits(finished.run_dir))
    assert abstention(predictor, run_splits(finished.run_dir), min_probability=0.5, result=known) == abstention(
        predictor, run_splits(finished.run_dir), min_probability=0.5
    )
    assert (told["coverage"], told["risk"]) == (1.0, pytest.approx(risk))
    assert told["risk_bound"] > told["risk"]
    assert (told["chosen_here"], told["num_foreign"]) == (True, 4)
    assert 0 <= told["auroc_foreign"] <= 1
    sure = float(np.median(predictor(pictures / "val").probabilities.max(axis=1)))
    found = Predictor(finished, min_probability=sure)(pictures / "val")
    np.testing.assert_array_equal(found.abstained, found.probabilities.max(axis=1) < sure)
    assert found.abstained.any()
    with pytest.raises(RequestError, match="from 0 to 1"):
        Predictor(finished, min_probability=1.5)


def test_explain__arrays_and_files(finished: RunResult, pictures: Path, tmp_path: Path) -> None:
    """Arrays have the documented shapes, shares add up to one, and every documented file is written."""
    path = pictures / "val" / "red" / "0.png"
    (item,) = explain(finished, path, label="blue")
    assert (item.path, item.label, item.image.size) == (str(path), "blue", (32, 32))
    assert (item.attention.shape, item.rollout.shape, item.grad_cam.shape) == ((2, 3, 2, 2), (2, 2), (32, 32))
    assert item.rollout.sum() == pytest.approx(1.0, abs=1e-5)
    assert item.distances.shape == (2, 3)
    folder = write_explanations(finished, [path, Image.open(path)], tmp_path / "looks")
    told = json.loads((folder / "explanations.json").read_text())
    assert [row["folder"] for row in told["pictures"]] == ["0001-0", "0002-picture"]
    assert {entry.name for entry in folder.iterdir() if entry.is_file()} == {
        *("explanations.json", "model.npz", "patch_filters.png", "position_similarity.png", "attention_distance.png"),
    }
    assert {entry.name for entry in (folder / "0001-0").iterdir()} == {
        *("picture.png", "rollout.png", "grad_cam.png", "attention.png", "arrays.npz"),
    }
    with pytest.raises(RequestError, match="exists already"):
        write_explanations(finished, path, folder)
    with pytest.raises(RequestError, match="does not hold explanations"):
        write_explanations(finished, path, pictures, overwrite=True)
    with pytest.raises(RequestError, match="does not know the class 'green-ish'"):
        list(explain(finished, path, label="green-ish"))
