"""Predictions from Python: what may be given, what comes back, and that it is exactly the evaluation transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_helpers import make_pictures, tiny_config

from vit_finetune import Predictor, PreprocessSpec, create_model, evaluate, finetune, load_splits, replace_head
from vit_finetune.common.errors import RequestError
from vit_finetune.finetune import RunResult


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=6, val=3)


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One run that several tests look at."""
    return finetune(tiny_config(pictures, tmp_path_factory.mktemp("runs") / "one", train={"steps": 6}))


def test_predictor__paths_images_and_arrays_agree(finished: RunResult, pictures: Path) -> None:
    """A path, a PIL image and a uint8 array of the same picture give the same probabilities, alone or in a list."""
    predictor = Predictor(finished)
    path = pictures / "val" / "green" / "1.png"
    image = Image.open(path)
    single = [predictor(item).probabilities for item in (path, str(path), image, np.asarray(image))]
    for probabilities in single:
        np.testing.assert_array_equal(probabilities, single[0])
    together = predictor([path, image, np.asarray(image)])
    np.testing.assert_allclose(together.probabilities, np.repeat(single[0], 3, axis=0), atol=1e-6)
    assert together.paths == (str(path), None, None)


def test_predictor__rows_are_probabilities_and_labels_their_best(finished: RunResult, pictures: Path) -> None:
    """Rows add up to one, labels name the largest, top(k) is sorted and no longer than the classes."""
    predictions = Predictor(finished)(pictures / "val")
    assert len(predictions) == 9
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-6)
    for label, row, top in zip(predictions.labels, predictions.probabilities, predictions.top(9), strict=True):
        assert label == predictions.class_names[row.argmax()] == top[0][0]
        assert [value for _, value in top] == sorted(row.tolist(), reverse=True)


def test_predictor__is_the_evaluation_transform(finished: RunResult, pictures: Path) -> None:
    """timm's own evaluation transform, read from the model folder, through our network gives the same probabilities."""
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{finished.run_dir / 'model'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    path = pictures / "val" / "blue" / "0.png"
    with torch.no_grad():
        theirs = model(transform(Image.open(path).convert("RGB"))[None]).softmax(dim=1)
    np.testing.assert_allclose(Predictor(finished)(path).probabilities, theirs.numpy(), atol=1e-5)


def test_predictor__takes_a_network_in_memory(pictures: Path) -> None:
    """A network needs its preprocessing and class names given; without them, or with a wrong number, it is refused."""
    model = replace_head(create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=48), 2)
    spec = PreprocessSpec(input_size=(3, 32, 32))
    predictions = Predictor(model, preprocess=spec, class_names=["a", "b"])(pictures / "val" / "red")
    np.testing.assert_allclose(predictions.probabilities, 0.5)
    with pytest.raises(RequestError, match="class_names"):
        Predictor(model, preprocess=spec)
    with pytest.raises(RequestError, match="3 class names for a head of 2"):
        Predictor(model, preprocess=spec, class_names=["a", "b", "c"])


def test_predictor__refuses_what_is_no_picture(finished: RunResult, tmp_path: Path) -> None:
    """Float arrays, other objects and folders without pictures are named in the error."""
    predictor = Predictor(finished)
    with pytest.raises(RequestError, match=r"float64 array \(4, 4, 3\)"):
        predictor(np.zeros((4, 4, 3)))
    with pytest.raises(RequestError, match="cannot predict a int"):
        predictor([3])  # type: ignore[list-item]
    with pytest.raises(RequestError, match=str(tmp_path)):
        predictor(tmp_path)


def test_predictor__a_run_without_a_model_says_how_to_go_on(finished: RunResult, tmp_path: Path) -> None:
    """A run that was interrupted has no model yet: the error gives the command that goes on with it."""
    (tmp_path / "config.yaml").write_text((finished.run_dir / "config.yaml").read_text())
    with pytest.raises(RequestError, match="--resume"):
        Predictor(tmp_path)


def test_evaluate__folder_splits_and_section_agree(finished: RunResult, pictures: Path) -> None:
    """The same held-out pictures as folder, as data section and as Splits give the run's own figures."""
    from vit_finetune.config import DataConfig

    section = {"root": str(pictures)}
    for data in (pictures / "val", pictures, section, DataConfig(root=str(pictures)), load_splits(root=pictures)):
        result = evaluate(finished, data)
        assert result.num_samples == 9
        assert result.metrics["accuracy"] == finished.metrics["accuracy"]
        assert result.metrics["loss"] == pytest.approx(finished.metrics["loss"], abs=1e-6)


def test_evaluate__labels_follow_names_not_numbers(finished: RunResult, tmp_path: Path) -> None:
    """Pictures of one class alone are scored against the model's own index of that class."""
    root = make_pictures(tmp_path / "pictures", train=2, val=2)
    for name in ("blue", "green"):
        for split in ("train", "val"):
            for path in (root / split / name).iterdir():
                path.unlink()
            (root / split / name).rmdir()
    result = evaluate(finished, root / "val")
    counts = {row["class"]: row["num_samples"] for row in result.per_class}
    assert counts == {"blue": 0, "green": 0, "red": 2}
    assert set(result.labels.tolist()) == {2}
