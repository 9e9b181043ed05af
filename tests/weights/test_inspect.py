"""What `inspect` says about files and folders, known and unknown."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from weights_helpers import NAME, NAMES, save_folder, save_tiny, tiny

from vit_finetune.common.errors import RequestError
from vit_finetune.models import ViTConfig, create_model, list_models, variant_config
from vit_finetune.weights import inspect_checkpoint
from vit_finetune.weights.inspect import closest_architectures


def test_inspect__a_file_that_says_everything(tmp_path):
    """Every fact of one of our files, as attributes, as lines and as JSON."""
    path = tmp_path / "a.safetensors"
    model = save_tiny(path)
    found = inspect_checkpoint(path)
    assert (found.format, found.architecture, found.closest) == ("timm", NAME, ())
    assert (found.grid, found.num_tokens, found.num_classes, found.class_names) == ((4, 4), 17, 5, NAMES)
    assert found.dtypes == {"float32": len(model.state_dict())}
    assert found.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.num_bytes == path.stat().st_size
    assert found.sha256 == {"a.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    text = "\n".join(found.lines())
    for part in ("timm", NAME, "17 (grid: 4x4 patches)", "5 classes (ant, bee", "not stated", found.sha256[path.name]):
        assert part in text
    assert json.loads(json.dumps(found.to_mapping()))["grid"] == [4, 4]


def test_inspect__folder(tmp_path):
    """A folder's preprocessing and class names are told."""
    save_folder(tmp_path / "m")
    found = inspect_checkpoint(str(tmp_path / "m"))
    assert found.preprocess is not None
    assert found.preprocess.mean == (0.5, 0.5, 0.5)
    assert "mean [0.5, 0.5, 0.5]" in "\n".join(found.lines())
    assert list(found.sha256) == ["model.safetensors"]


def test_inspect__closest_architectures(tmp_path):
    """A bare full-size state dict is recognised by its shapes, wrapper and all."""
    model = create_model("vit_tiny_patch16_384", weight_init="skip", num_classes=3)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    found = inspect_checkpoint(tmp_path / "a.pth")
    assert found.architecture is None
    assert found.closest[0] == "vit_tiny_patch16_384"
    assert "vit_tiny_patch16_224" in found.closest
    assert (found.grid, found.num_tokens, found.num_classes) == ((24, 24), 577, 3)
    assert any("took 'model'" in note for note in found.notes)
    assert "not stated; closest: vit_tiny_patch16_384" in "\n".join(found.lines())


def test_closest_architectures__each_finds_itself_first():
    """A registered plain network is its own closest, or shares all that shapes tell with the one before it."""
    plain = [name for name in list_models() if isinstance(variant_config(name), ViTConfig)]
    for name in plain[::8]:
        closest = closest_architectures(variant_config(name))
        first, own = variant_config(closest[0]), variant_config(name)
        assert (first.embed_dim, first.depth, first.patch_size, first.img_size) == (
            own.embed_dim,
            own.depth,
            own.patch_size,
            own.img_size,
        )


def test_inspect__unknown_layout_and_unknown_grid(tmp_path):
    """What can't be told is said to be unknown, with the reason, and the rest still stands."""
    save_file({"conv1.weight": torch.zeros(4, 4)}, tmp_path / "a.safetensors")
    found = inspect_checkpoint(tmp_path / "a.safetensors")
    assert (found.format, found.grid, found.num_tokens, found.num_parameters) == ("unknown", None, None, 16)
    assert any("no known ViT layout" in note for note in found.notes)
    save_file(tiny(img_size=(64, 128)).state_dict(), tmp_path / "b.safetensors")
    found = inspect_checkpoint(tmp_path / "b.safetensors")
    assert found.grid is None
    assert any("img_size" in note for note in found.notes)
    with pytest.raises(RequestError, match="there is no file or folder"):
        inspect_checkpoint(tmp_path / "c.safetensors")
