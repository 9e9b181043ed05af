"""Exports: each opens in its own library, gives our logits, is refused where it cannot, and carries its proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from export_helpers import spec_for, tiny_model
from PIL import Image

from vit_finetune import Predictor, evaluate, export_model, export_model_folder
from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.data import decode_image
from vit_finetune.exported import OnnxPredictor
from vit_finetune.weights import from_pretrained

NAMES = ["Kauz", "Rot-Milan", "Zaunkönig"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes as cameras and scanners make them: turned by EXIF, CMYK, gray, 16 bits, alpha, long."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (130, 90), Image.Resampling.BICUBIC
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth.save(root / NAMES[0] / "turned.jpg", exif=turned, quality=95)
    smooth.convert("CMYK").save(root / NAMES[0] / "cmyk.jpg", quality=95)
    smooth.convert("L").resize((70, 200)).save(root / NAMES[1] / "gray.png")
    deep = (np.asarray(smooth.convert("L")).astype(np.uint16) * 257) ^ 3
    Image.fromarray(deep).save(root / NAMES[1] / "deep.png")
    smooth.resize((400, 66)).save(root / NAMES[2] / "long.png")
    alpha = smooth.convert("RGBA")
    alpha.putalpha(smooth.convert("L"))
    alpha.save(root / NAMES[2] / "alpha.png")
    return root


def folder(
    tmp_path: Path, name: str = "vit_tiny_patch16_224", *, thresholds: list[float] | None = None, **overrides: Any
) -> Path:
    """Write a model folder of a tiny network."""
    model = tiny_model(name, **{"img_size": (64, 64), **overrides})
    place = tmp_path / "model"
    return export_model_folder(model, place, preprocess=spec_for(model), class_names=NAMES, thresholds=thresholds)


def files(pictures: Path) -> list[Path]:
    """Return the pictures' files, in order."""
    return sorted(path for path in pictures.rglob("*") if path.is_file())


@pytest.mark.parametrize("target", ["timm", "safetensors", "torchvision", "torch_export"])
def test_export_model__computes_the_same(tmp_path: Path, pictures: Path, target: str) -> None:
    """Each target opens in its own library with the same best class and logits for every picture."""
    result = export_model(folder(tmp_path), tmp_path / "out", to=target, images=[pictures])
    proof = json.loads((tmp_path / "out" / "proof.json").read_text(encoding="utf-8"))
    assert proof == result.proof
    assert proof["network"]["num_pictures"] == proof["network"]["num_top1_agreeing"] == 6
    assert proof["network"]["max_abs_logit_difference"] < 1e-5
    if target != "torch_export":
        assert proof["pictures"]["max_abs_probability_difference"] < 1e-5
        assert proof["pictures"]["num_top1_agreeing"] == 6
    assert set(result.files) >= {"README.md", "proof.json"}


def test_export_model__timm_reads_the_bytes_as_we_do(tmp_path: Path, pictures: Path) -> None:
    """timm's own transform of the folder gives our probabilities for every file, opened upright and in RGB."""
    source = folder(tmp_path)
    export_model(source, tmp_path / "out", images=[pictures])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    with torch.inference_mode():
        logits = torch.cat([theirs(transform(decode_image(path))[None]) for path in files(pictures)])
    ours = Predictor(source, device="cpu")(files(pictures)).probabilities
    np.testing.assert_allclose(logits.softmax(1).numpy(), ours, atol=1e-5)


def test_export_model__transformers_native_class(tmp_path: Path, pictures: Path) -> None:
    """transformers opens its own class with labels, and its processor prepares pictures nearly as ours does."""
    from transformers import AutoModelForImageClassification

    source = folder(tmp_path, thresholds=[0.3, 0.4, 0.5])
    result = export_model(source, tmp_path / "out", to="transformers", images=[pictures])
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "ViTForImageClassification"
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert result.proof["network"]["max_abs_logit_difference"] < 1e-5
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert processor["size"] == {"shortest_edge": 71}  # 64 / 0.9, rounded down as timm does
    assert any("centre crop" in note for note in result.notes)


@pytest.mark.parametrize(
    ("name", "options", "architecture"),
    [
        ("vit_small_patch14_dinov2", {}, "Dinov2ForImageClassification"),
        ("vit_giant_patch14_dinov2", {"mlp_ratio": 256 / 48}, "Dinov2ForImageClassification"),
        ("vit_small_patch14_reg4_dinov2", {}, "Dinov2WithRegistersForImageClassification"),
    ],
)
def test_export_model__dinov2_native_class(
    tmp_path: Path, pictures: Path, name: str, options: dict[str, Any], architecture: str
) -> None:
    """transformers' own DINOv2 classifier gives our logits and labels for the same files, and comes back as it was."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    source = folder(tmp_path, name, img_size=(56, 56), **options)
    result = export_model(source, tmp_path / "out", to="transformers", images=[pictures])
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == architecture
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert theirs.config.image_size == 56
    assert theirs.config.problem_type is None
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    ours, _ = from_pretrained(source)
    back, report = from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        for path in files(pictures):
            pixels = processor(images=decode_image(path), return_tensors="pt")["pixel_values"]
            expected = ours.eval()(pixels)
            torch.testing.assert_close(theirs(pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(back.eval()(pixels), expected, atol=1e-5, rtol=0)
    assert report.class_names == tuple(NAMES)
    assert torch.equal(back.head.weight, ours.head.weight) and torch.equal(back.head.bias, ours.head.bias)
    assert result.proof["pictures"]["num_top1_agreeing"] == 6


@pytest.mark.parametrize(
    ("target", "instead"), [("transformers", "take --to timm"), ("torchvision", "take --to timm, onnx")]
)
def test_export_model__refuses_what_a_class_cannot_hold(tmp_path: Path, target: str, instead: str) -> None:
    """A network with registers and mean pooling is refused with what to take instead, and nothing is left behind."""
    source = folder(tmp_path, global_pool="avg", reg_tokens=2)
    with pytest.raises(NotRepresentable, match=instead):
        export_model(source, tmp_path / "out", to=target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_export_model__says_where_there_are_no_pictures(tmp_path: Path) -> None:
    """Without pictures the proof is on random pixels and says so."""
    proof = export_model(folder(tmp_path), tmp_path / "out", to="safetensors").proof
    assert proof["pictures_from"].startswith("none: ")
    assert "pictures" not in proof
    assert proof["network_on_random_pixels"]["max_abs_logit_difference"] == 0


def test_export_model__refuses_bad_requests(tmp_path: Path) -> None:
    """An unknown target, another target's options and a taken place are refused; an older export goes if asked."""
    source = folder(tmp_path)
    with pytest.raises(RequestError, match="did you mean 'onnx'"):
        export_model(source, tmp_path / "out", to="onxx")
    with pytest.raises(RequestError, match="leave them out for timm"):
        export_model(source, tmp_path / "out", precision="int8")
    with pytest.raises(RequestError, match="opset is 12; it is from 18"):
        export_model(source, tmp_path / "out", to="onnx", opset=12)
    with pytest.raises(RequestError, match="is no folder that an export wrote"):
        export_model(source, source, overwrite=True)
    export_model(source, tmp_path / "out")
    with pytest.raises(RequestError, match="exists already"):
        export_model(source, tmp_path / "out")
    export_model(source, tmp_path / "out", to="safetensors", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.safetensors",
        "proof.json",
    ]


@pytest.mark.slow
def test_export_model__onnx_takes_bytes_of_any_size(tmp_path: Path, pictures: Path) -> None:
    """The ONNX file alone, given decoded bytes, has our best class and probabilities within 1e-3 for every picture."""
    import onnxruntime

    source = folder(tmp_path)
    result = export_model(source, tmp_path / "out", to="onnx", images=[pictures])
    assert result.proof["pictures"]["num_top1_agreeing"] == result.proof["pictures"]["num_pictures"] == 6
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    found = np.concatenate(
        [
            session.run(["probabilities"], {"images": np.asarray(decode_image(path))[None]})[0]
            for path in files(pictures)
        ]
    )
    ours = Predictor(source, device="cpu")(files(pictures)).probabilities
    assert (found.argmax(1) == ours.argmax(1)).all()
    assert np.abs(found - ours).max() < 1e-3

    scored = evaluate(source, pictures, predictor=Predictor(source, device="cpu"))
    same = evaluate(tmp_path / "out" / "model.onnx", pictures, predictor=OnnxPredictor(tmp_path / "out" / "model.onnx"))
    assert same.metrics["accuracy"] == scored.metrics["accuracy"]
    assert same.metrics["loss"] == pytest.approx(scored.metrics["loss"], abs=1e-2)
    predictions = OnnxPredictor(tmp_path / "out" / "model.onnx")(files(pictures))
    np.testing.assert_allclose(predictions.probabilities, found, atol=1e-6)
