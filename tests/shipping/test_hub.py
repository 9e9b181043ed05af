"""Pushing to a hub that runs on this machine: private, whole, with its card, and never over what is there unasked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from export_helpers import spec_for, tiny_model
from huggingface_hub import ModelCard
from model_hub import ModelHub, model_hub

from vit_finetune import export_model_folder, push_model
from vit_finetune.common.errors import RequestError, WorkError

NAMES = ["Kauz", "Rot-Milan", "Zaunkönig"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ModelHub]]:
    """Serve a hub where huggingface_hub looks for the Hub."""
    from huggingface_hub import constants

    with model_hub() as (address, held):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield held


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model folder of a tiny network."""
    model = tiny_model("vit_tiny_patch16_224", img_size=(64, 64))
    place = tmp_path_factory.mktemp("source") / "model"
    return export_model_folder(model, place, preprocess=spec_for(model), class_names=NAMES)


def test_push_model__sends_the_folder_privately(hub: type[ModelHub], source: Path) -> None:
    """A new repository is private and holds exactly the export; its weights are ours byte for byte."""
    pushed = push_model(source, "me/birds")
    held = hub.repositories["me/birds"]
    assert hub.private["me/birds"]
    assert set(held) == set(pushed.files) == {"README.md", "config.json", "model.safetensors", "proof.json"}
    assert held["model.safetensors"] == (source / "model.safetensors").read_bytes()
    assert pushed.url is not None
    card = ModelCard(held["README.md"].decode())
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert 'timm.create_model("hf-hub:me/birds"' in card.text
    assert "`Zaunkönig`" in card.text


def test_push_model__dry_run_sends_nothing(hub: type[ModelHub], source: Path) -> None:
    """A dry run makes no repository, and says what it would send."""
    pushed = push_model(source, "me/birds", dry_run=True)
    assert hub.repositories == {}
    assert pushed.url is None
    assert "dry run: nothing was sent to me/birds (private)" in pushed.lines()


def test_push_model__never_replaces_unasked(hub: type[ModelHub], source: Path) -> None:
    """A repository that holds files is left alone; with overwrite the export's are replaced and the others stay."""
    hub.repositories["me/birds"] = {".gitattributes": b"", "README.md": b"mine", "notes.txt": b"mine"}
    hub.private["me/birds"] = False
    with pytest.raises(RequestError, match=r"holds files already \(README.md, notes.txt\).*replaces README.md"):
        push_model(source, "me/birds")
    assert hub.repositories["me/birds"]["README.md"] == b"mine"
    pushed = push_model(source, "me/birds", overwrite=True, private=False)
    assert pushed.replaced == ("README.md",)
    assert hub.repositories["me/birds"]["README.md"] != b"mine"
    assert hub.repositories["me/birds"]["notes.txt"] == b"mine"


def test_push_model__says_who_may_not_write(hub: type[ModelHub], source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without permission, with a bad name and without a hub there is one line that says so."""
    hub.refuses_writing = True
    with pytest.raises(RequestError, match="does not let you write to other/birds: run `hf auth login`"):
        push_model(source, "other/birds")
    with pytest.raises(RequestError, match="write owner/name"):
        push_model(source, "birds")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorkError, match="could not be reached"):
        push_model(source, "me/birds")
