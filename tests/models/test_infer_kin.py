"""What names and shapes tell of networks with rotary and relative positions."""

from __future__ import annotations

import pytest
import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.models import RelPosViTConfig, RopeViTConfig, ViTConfig, build_model, list_models, variant_config
from vit_finetune.models.infer_kin import family_of

NAMES = [name for name in list_models() if isinstance(variant_config(name), RopeViTConfig | RelPosViTConfig)]
# What leaves no trace, or only where it is more than one thing.
UNTOLD = ("num_heads", "norm_eps", "img_size", "global_pool", "use_rot_pos_emb", "no_embed_class", "use_post_norm")
UNTOLD += ("ref_feat_shape", "dynamic_img_size", "rope_rescale_coords", "attn_pool_num_heads", "attn_pool_mlp_ratio")
ROPE = ("rope_type", "rope_temperature", "rope_rotate_half", "rope_grid_indexing", "rope_grid_offset")


def shallow(name, *, depth=1, **fields):
    """Return a registered network's config with fewer blocks, whose heads share no keys."""
    alike = {"num_kv_heads": None} if "sapiens" in name else {}
    return variant_config(name).updated({"depth": depth, **alike, **fields})


def shapes(config):
    """Return a network's tensors on the meta device."""
    with torch.device("meta"):
        return build_model(config).state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_from_state_dict__finds_what_weights_tell(name):
    """A registered network is read off its own tensors, given what leaves no trace in them."""
    config = shallow(name, depth=2, num_classes=3)
    known = {key: value for key, value in config.to_mapping().items() if key in (*UNTOLD, *ROPE)}
    found = type(config).from_state_dict(shapes(config), known=known)
    for key in config.to_mapping():
        ours, wanted = found.acting(key), config.acting(key)
        if key == "init_values":
            assert (ours is None) == (wanted is None)
        elif key == "swiglu_align_to":
            assert (ours > 0) == (wanted > 0)
            assert found.hidden_width == config.hidden_width
        elif key == "mlp_ratio":
            assert shapes(found).keys() == shapes(config).keys()
        elif key not in {"weight_init", "drop_path_rate"}:
            assert ours == wanted, key


def test_from_state_dict__asks_for_what_weights_do_not_tell():
    """Missing fields and another layout are named; sizes may be single numbers."""
    dinov3, beit = variant_config("vit_small_patch16_dinov3"), variant_config("beit_base_patch16_224")
    with pytest.raises(RequestError, match="do not tell num_heads, norm_eps, img_size, global_pool, use_rot_pos_emb"):
        RopeViTConfig.from_state_dict(shapes(dinov3))
    with pytest.raises(RequestError, match="do not tell norm_eps; give it"):
        RelPosViTConfig.from_state_dict(shapes(beit))
    with pytest.raises(RequestError, match=r"no blocks\.0\.attn\.relative_position_bias_table"):
        RelPosViTConfig.from_state_dict(shapes(dinov3))
    found = RelPosViTConfig.from_state_dict(shapes(beit), known={"norm_eps": 1e-6, "img_size": 224})
    assert (found.img_size, found.num_heads) == ((224, 224), 12)


def test_family_of__tells_the_families_apart():
    """Marks in names tell the family; a Perception Encoder has a plain ViT's names."""
    families = {name: family_of(shapes(shallow(name))) for name in NAMES}
    wrong = {name for name, family in families.items() if family is not type(variant_config(name))}
    assert all("_pe_" in name and families[name] is ViTConfig for name in wrong), wrong
    assert family_of(shapes(variant_config("vit_base_patch16_224").updated({"depth": 1}))) is ViTConfig
