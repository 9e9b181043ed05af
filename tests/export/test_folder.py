"""The model folder: timm and transformers open it and give our logits; nothing is lost, overwritten or half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from export_helpers import FAMILIES, images_for, spec_for, tiny_model
from safetensors import safe_open

from vit_finetune import export_model_folder, from_pretrained, replace_head
from vit_finetune.common.errors import RequestError
from vit_finetune.export.folder import timm_model_args
from vit_finetune.models import variant_config

NAMES = ["Kauz", "Rot-Milan", "Zaunkönig"]
families = pytest.mark.parametrize(
    ("name", "overrides"), FAMILIES, ids=lambda value: value if isinstance(value, str) else ""
)


def export(tmp_path: Path, name: str, overrides: dict[str, Any]) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Export a tiny network; return the folder, images, and our logits for them."""
    model = tiny_model(name, **overrides)
    folder = export_model_folder(model, tmp_path / "model", preprocess=spec_for(model), class_names=NAMES)
    images = images_for(model)
    with torch.inference_mode():
        return folder, images, model(images)


@families
def test_export__timm_gives_our_logits(tmp_path: Path, name: str, overrides: dict[str, Any]) -> None:
    """`timm.create_model("local-dir:...")` builds each family from the folder alone and gives our logits."""
    folder, images, logits = export(tmp_path, name, overrides)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), logits, atol=1e-5, rtol=0)
    data_config = timm.data.resolve_model_data_config(theirs)
    assert tuple(data_config["input_size"]) == tuple(images.shape[1:])
    assert tuple(data_config["mean"]) == (0.4,) * images.shape[1]
    assert data_config["interpolation"] == "bilinear"
    assert data_config["crop_pct"] == 0.9
    assert theirs.pretrained_cfg["label_names"] == NAMES


@families
def test_export__transformers_gives_our_logits(tmp_path: Path, name: str, overrides: dict[str, Any]) -> None:
    """`AutoModelForImageClassification` opens the same folder, knows the classes, and gives our logits."""
    from transformers import AutoModelForImageClassification

    folder, images, logits = export(tmp_path, name, overrides)
    theirs, loading = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(images).logits, logits, atol=1e-5, rtol=0)
    assert theirs.config.id2label == dict(enumerate(NAMES))


def test_export__transformers_opens_the_preprocessing(tmp_path: Path) -> None:
    """`AutoImageProcessor` reads the evaluation transform from the same folder."""
    from transformers import AutoImageProcessor

    folder, *_ = export(tmp_path, "vit_small_patch14_dinov2", {"img_size": (56, 84)})
    data_config = AutoImageProcessor.from_pretrained(folder).data_config
    assert tuple(data_config["input_size"]) == (3, 56, 84)
    assert tuple(data_config["std"]) == (0.3, 0.3, 0.3)


@families
def test_export__we_open_the_folder_and_the_file_alone(tmp_path: Path, name: str, overrides: dict[str, Any]) -> None:
    """Both the folder and its weight file alone rebuild the network with classes, preprocessing and logits."""
    folder, images, logits = export(tmp_path, name, overrides)
    for source in (folder, folder / "model.safetensors"):
        model, report = from_pretrained(str(source))
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(images), logits, atol=1e-5, rtol=0)
        assert report.class_names == tuple(NAMES)
        assert report.architecture == name
        assert report.preprocess.mean == (0.4,) * images.shape[1]
        assert not report.preprocess.assumed


def test_export__distilled_model_with_one_head(tmp_path: Path) -> None:
    """One head on the mean of both tokens is held twice, and timm's mean of two heads is the same."""
    model = replace_head(tiny_model("deit_tiny_distilled_patch16_224", img_size=(64, 64)), 3, init=0.5).eval()
    folder = export_model_folder(model, tmp_path / "model", preprocess=spec_for(model), class_names=NAMES)
    images = images_for(model)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=0)
    assert torch.equal(theirs.head.weight, theirs.head_dist.weight)


def test_export__config_holds_what_differs(tmp_path: Path) -> None:
    """`model_args` is the picture size and each difference from the registered name, and never the classes."""
    folder, *_ = export(tmp_path, "vit_small_patch14_dinov2", {"img_size": (56, 84)})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "vit_small_patch14_dinov2"
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 3
    assert config["model_args"] == {"img_size": [56, 84], "embed_dim": 48, "depth": 2, "num_heads": 2}
    assert config["pretrained_cfg"]["input_size"] == [3, 56, 84]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_export__model_args_of_a_registered_network() -> None:
    """A network as registered needs nothing but its picture size."""
    assert timm_model_args(variant_config("vit_base_patch16_224"), "vit_base_patch16_224") == {"img_size": [224, 224]}


def test_export__without_class_names(tmp_path: Path) -> None:
    """A model whose classes have no names is exported, and timm opens it; so is one without a head."""
    for num_classes in (3, 0):
        model = tiny_model("vit_tiny_patch16_224", num_classes=num_classes, img_size=(64, 64))
        folder = export_model_folder(model, tmp_path / str(num_classes), preprocess=spec_for(model), class_names=None)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            torch.testing.assert_close(theirs(images_for(model)), model(images_for(model)), atol=1e-5, rtol=0)


def test_export__keeps_dtype_and_leaves_the_model_alone(tmp_path: Path) -> None:
    """The weights keep their dtype bit by bit, and exporting changes neither the model nor its mode."""
    model = tiny_model("vit_tiny_patch16_224", img_size=(64, 64)).to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = export_model_folder(model, tmp_path / "model", preprocess=spec_for(model), class_names=NAMES)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(before)
        assert all(torch.equal(file.get_tensor(name), before[name]) for name in before)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_export__refuses_to_overwrite_unasked(tmp_path: Path) -> None:
    """A taken place is refused; overwrite=True replaces a model folder, never one with something else in it."""
    old, new = tiny_model("vit_tiny_patch16_224", img_size=(64, 64)), tiny_model("vit_tiny_patch16_224", depth=1)
    place = export_model_folder(old, tmp_path / "model", preprocess=spec_for(old), class_names=NAMES)
    with pytest.raises(RequestError, match="exists already; choose another place or pass overwrite=True"):
        export_model_folder(new, place, preprocess=spec_for(new), class_names=NAMES)
    export_model_folder(new, place, preprocess=spec_for(new), class_names=NAMES, overwrite=True)
    assert json.loads((place / "config.json").read_text(encoding="utf-8"))["model_args"]["depth"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    (place / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match=r"is not just a model folder \(notes\.txt\)"):
        export_model_folder(new, place, preprocess=spec_for(new), class_names=NAMES, overwrite=True)
    assert (place / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_export__failing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails half-way leaves no folder, and an older one as it was."""
    model = tiny_model("vit_tiny_patch16_224", img_size=(64, 64))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit_finetune.export.folder.write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_model_folder(model, tmp_path / "model", preprocess=spec_for(model), class_names=NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"norm_eps": 1e-3}, "differs from vit_tiny_patch16_224 in norm_eps \\(timm takes it inside"),
        ({"mlp_layer": "swiglu"}, "mlp_layer \\(timm takes a Python class"),
        ({"patch_norm_in": True}, "patch_norm_in \\(no plain ViT of timm's has such a norm"),
        ({"attn_head_dim": 8}, "attn_head_dim \\(timm's plain ViT divides its width"),
        ({"block_fn": "res_post", "norm_eps": 1e-5}, "norm_eps .*, block_fn |block_fn .*, norm_eps "),
    ],
)
def test_export__what_timm_cannot_hold(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    """A network that timm's JSON has no words for is refused, with every difference and its reason."""
    model = tiny_model("vit_tiny_patch16_224", img_size=(64, 64), **overrides)
    with pytest.raises(RequestError, match=message):
        export_model_folder(model, tmp_path / "model", preprocess=spec_for(model), class_names=NAMES)
    assert list(tmp_path.iterdir()) == []


def test_export__norm_by_name_has_one_epsilon(tmp_path: Path) -> None:
    """Another kind of norm is refused where its epsilon is not the one that timm gives a norm asked for by name."""
    model = tiny_model("aimv2_large_patch14_224", img_size=(56, 56), norm_layer="layernorm")
    with pytest.raises(RequestError, match=r"norm_layer \(timm's norms by name have an epsilon of 1e-06\)"):
        export_model_folder(model, tmp_path / "model", preprocess=spec_for(model), class_names=NAMES)


def test_export__refuses_what_does_not_fit(tmp_path: Path) -> None:
    """Class names and preprocessing of another model, and a nameless network, are refused in one line each."""
    model = tiny_model("vit_tiny_patch16_224", img_size=(64, 64))
    spec = spec_for(model)
    with pytest.raises(RequestError, match="2 class names for 3 classes"):
        export_model_folder(model, tmp_path / "model", preprocess=spec, class_names=NAMES[:2])
    with pytest.raises(
        RequestError, match=r"32x32 pixels, the network takes 64x64; pass preprocess.with_size\(64, 64\)"
    ):
        export_model_folder(model, tmp_path / "model", preprocess=spec.with_size(32, 32), class_names=NAMES)
    grey = tiny_model("vit_tiny_patch16_224", img_size=(64, 64), in_chans=1)
    with pytest.raises(RequestError, match="makes 3 channels, the network takes 1"):
        export_model_folder(grey, tmp_path / "model", preprocess=spec, class_names=NAMES)
    with pytest.raises(RequestError, match="vit_tiny_patch16_22"):
        export_model_folder(
            model, tmp_path / "model", preprocess=spec, class_names=NAMES, architecture="vit_tiny_patch16_22"
        )
    model.name = None
    with pytest.raises(RequestError, match="has no name in timm; give architecture="):
        export_model_folder(model, tmp_path / "model", preprocess=spec, class_names=NAMES)
    assert list(tmp_path.iterdir()) == []
