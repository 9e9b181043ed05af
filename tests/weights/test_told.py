"""An architecture's name and the source's own configuration: where they differ, nothing is decided in silence."""

from __future__ import annotations

import pytest
import torch
from formats_helpers import randomize

from vit_finetune.common.errors import RequestError
from vit_finetune.models import create_model
from vit_finetune.weights import from_pretrained, load_pretrained

NAME = "vit_tiny_patch16_224"
SIZES = {"embed_dim": 32, "depth": 2, "img_size": 32, "patch_size": 8, "mlp_ratio": 2.0}


@pytest.fixture
def hf(tmp_path):
    """Save a network of transformers' that computes with another activation and epsilon than timm's name says."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-3,
        num_labels=3,
    )
    model = randomize(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


@torch.no_grad()
def test_from_pretrained__the_sources_activation_counts(hf):
    """With a name given, the network computes what transformers does but for the epsilon, and both are said."""
    model, folder = hf
    ours, report = from_pretrained(folder, name=NAME, num_heads=4, **SIZES)
    assert report.notes == (
        "act_layer='quick_gelu' is the source's; the architecture as named has 'gelu'",
        "norm_eps=1e-06 is the network's; the source was made with 0.001, as norm_eps=0.001 gives",
    )
    exact, told = from_pretrained(folder, name=NAME, num_heads=4, norm_eps=1e-3, act_layer="quick_gelu", **SIZES)
    assert told.notes == ()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(exact.eval()(images), model(images).logits, atol=1e-5, rtol=1e-5)
    assert ours.config.act_layer == "quick_gelu"
    assert not torch.equal(ours.eval()(images), exact(images))


def test_from_pretrained__another_number_of_heads_is_refused(hf):
    """A name whose heads are not the source's computes something else; what is asked for in words stands."""
    _, folder = hf
    with pytest.raises(RequestError, match="the source says num_heads=4, the architecture has 3: name the one"):
        from_pretrained(folder, name=NAME, **SIZES)
    model, _ = from_pretrained(folder, name=NAME, num_heads=2, **SIZES)
    assert model.config.num_heads == 2


def test_from_pretrained__an_activation_asked_for_stands(hf):
    """Whoever says the activation has decided, and needs no note."""
    model, report = from_pretrained(hf[1], name=NAME, num_heads=4, act_layer="gelu", norm_eps=1e-3, **SIZES)
    assert (model.config.act_layer, report.notes) == ("gelu", ())


def test_load_pretrained__says_what_a_model_in_place_does_otherwise(hf):
    """A network that exists keeps its activation; the report says that the source has another one."""
    model = create_model(NAME, num_heads=4, norm_eps=1e-3, **SIZES)
    notes = load_pretrained(model, hf[1]).notes
    assert notes == ("act_layer='gelu' is the network's; the source was made with 'quick_gelu', as "
                     "act_layer='quick_gelu' gives",)  # fmt: skip
    assert model.config.act_layer == "gelu"
