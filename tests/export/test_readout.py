"""Readouts as model folders: timm's where it computes the same, proved by logits; else our own, read back whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vit_finetune import Predictor, from_pretrained, inspect_checkpoint
from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.export import export_onnx, export_readout
from vit_finetune.models import (
    AttentiveReadout,
    FeatureLayout,
    KNNReadout,
    LinearReadout,
    Readout,
    ReadoutModel,
    create_model,
)

NAMES = ("kauz", "milan", "wren")
SPEC = PreprocessSpec(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LAYOUT = FeatureLayout((0, 1), 7)


def tiny(**overrides: Any) -> Any:
    torch.manual_seed(0)
    fields = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64, "num_classes": 0}
    model = create_model("vit_tiny_patch16_224", **(fields | overrides)).eval()
    if hasattr(model.norm, "weight"):
        torch.nn.init.uniform_(model.norm.weight, 0.5, 3)
        torch.nn.init.normal_(model.norm.bias)
    return model


def filled(readout: Readout) -> Readout:
    torch.manual_seed(1)
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return readout.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


@pytest.mark.parametrize("overrides", [{}, {"global_pool": "avg"}, {"global_pool": "map"}])
def test_export__a_linear_readout_of_the_embedding_is_a_timm_folder(overrides: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the network pools: timm opens the folder and computes the logits of network and readout."""
    model = tiny(**overrides)
    readout = filled(LinearReadout((("embedding", -1),), num_features=48, num_classes=3))
    done = export_readout(model, readout, LAYOUT, tmp_path / "out", preprocess=SPEC, class_names=NAMES)
    assert done.kind == "timm"
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    ours = ReadoutModel(model, readout, layout=LAYOUT, num_classes=3)
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-5, rtol=0)


def test_export__an_attentive_probe_is_timms_attention_pooling(tmp_path: Path) -> None:
    """With a query per head on all tokens of the last block, timm's own attention pooling computes the probe."""
    model = tiny()
    readout = filled(AttentiveReadout((("grid", 1),), dim=48, num_queries=3, num_classes=3))
    done = export_readout(model, readout, LAYOUT, tmp_path / "out", preprocess=SPEC, class_names=NAMES)
    assert done.kind == "timm"
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert theirs.attn_pool is not None
    ours = ReadoutModel(model, readout, layout=LAYOUT, num_classes=3)
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-4, rtol=0)


def ours_only() -> dict[str, Readout]:
    knn = KNNReadout((("embedding", -1),), num_features=48, num_classes=3, num_stored=9, k=4, temperature=0.07)
    knn.bank.copy_(torch.nn.functional.normalize(torch.randn(9, 48), dim=1))
    knn.labels.copy_(torch.arange(9) % 3)
    return {
        "spatial": LinearReadout((("grid", 0), ("grid", 1)), num_features=2 * 16 * 48, num_classes=3),
        "multilayer": LinearReadout((("cls", 0), ("avg", 1)), num_features=96, num_classes=3),
        "knn": knn,
        "attentive": AttentiveReadout((("grid", 1),), dim=48, num_queries=6, num_classes=3),
    }


@pytest.mark.parametrize("kind", list(ours_only()))
def test_export__other_readouts_become_our_folder_and_come_back(kind: str, tmp_path: Path) -> None:
    """from_pretrained, Predictor and inspect open it; logits are the same to the bit, names and preprocessing kept."""
    model, readout = tiny(), filled(ours_only()[kind])
    done = export_readout(model, readout, LAYOUT, tmp_path / "out", preprocess=SPEC, class_names=NAMES)
    assert done.kind == "own"
    back, report = from_pretrained(tmp_path / "out")
    assert report.class_names == NAMES
    assert report.preprocess.to_mapping() == SPEC.to_mapping()
    expected = logits(ReadoutModel(model, readout, layout=LAYOUT, num_classes=3))
    assert torch.equal(logits(back), expected)
    pixels = (torch.rand(64, 64, 3) * 255).byte().numpy()
    assert Predictor(tmp_path / "out")(pixels).labels[0] in NAMES
    found = inspect_checkpoint(tmp_path / "out")
    assert (found.format, found.num_classes, found.class_names) == ("vit_finetune readout", 3, NAMES)


def test_from_pretrained__a_new_head_takes_the_backbone(tmp_path: Path) -> None:
    """Fine-tuning may start from a readout's folder: its backbone under a new head, the readout reported as dropped."""
    model, readout = tiny(), filled(ours_only()["multilayer"])
    export_readout(model, readout, LAYOUT, tmp_path / "out", preprocess=SPEC, class_names=NAMES)
    back, report = from_pretrained(tmp_path / "out", num_classes=5)
    assert back.num_classes == 5
    assert "readout.linear.weight" in report.dropped
    assert torch.equal(back.state_dict()["blocks.1.mlp.fc1.weight"], model.state_dict()["blocks.1.mlp.fc1.weight"])


def test_read_readout_folder__refuses_what_is_damaged(tmp_path: Path) -> None:
    """A later format, a missing key and another readout's tensors are refused in one line each."""
    export_readout(
        tiny(), filled(ours_only()["multilayer"]), LAYOUT, tmp_path / "out", preprocess=SPEC, class_names=NAMES
    )
    path = tmp_path / "out" / "readout.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"format": 2}, "format 2, this version reads 1"),
        ({"layers": None}, "damaged"),
        ({"readout": {**config["readout"], "num_features": 48}}, "do not belong together"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(RequestError, match=message):
            from_pretrained(tmp_path / "out")


def test_export__never_over_what_is_there(tmp_path: Path) -> None:
    """An older folder stays unless overwrite is asked for."""
    arguments: dict[str, Any] = {"preprocess": SPEC, "class_names": NAMES}
    readout = filled(ours_only()["multilayer"])
    export_readout(tiny(), readout, LAYOUT, tmp_path / "out", **arguments)
    with pytest.raises(RequestError, match="exists already"):
        export_readout(tiny(), readout, LAYOUT, tmp_path / "out", **arguments)
    export_readout(tiny(), readout, LAYOUT, tmp_path / "out", **arguments, overwrite=True)


@pytest.mark.slow
def test_export_onnx__onnxruntime_computes_the_same(tmp_path: Path) -> None:
    """The ONNX file of a spatial readout takes any number of pictures and gives torch's logits."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    readout = filled(LinearReadout((("grid", 0),), num_features=4 * 48, num_classes=3))
    whole = ReadoutModel(tiny(), readout, layout=FeatureLayout((0,), 2), num_classes=3).eval()
    export_onnx(whole, tmp_path / "onnx", input_size=(3, 64, 64))
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    (theirs,) = session.run(None, {"images": IMAGES[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(theirs), logits(whole)[:1], atol=1e-4, rtol=0)
