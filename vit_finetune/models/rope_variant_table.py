"""Every network of timm 1.0's EVA family, one row each: data only, read by `variants.py`.

A row is patch size and image size in pixels, number of classes, a size (width, depth, heads, MLP ratio) and a style
(the RopeViTConfig fields that differ from EVA's). Not here: pretrained tags and preprocessing, which travel with the
weights.

Source: the entry points of `timm/models/eva.py`, read off timm 1.0.31.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]


def _size(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> Fields:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}


def _grouped(embed_dim: int, depth: int, num_heads: int, whole: int) -> Fields:
    """Two query heads for one key head, except in the first and the last `whole` blocks."""
    kv_heads = [num_heads] * whole + [num_heads // 2] * (depth - 2 * whole) + [num_heads] * whole
    return {**_size(embed_dim, depth, num_heads), "num_kv_heads": tuple(kv_heads)}


TINY = _size(192, 12, 3)
SMALL = _size(384, 12, 6)
MEDIUM = _size(512, 12, 8)
MEDIUMD = _size(512, 20, 8)
BETWIXT = _size(640, 12, 10)
BASE = _size(768, 12, 12)
LARGE = _size(1024, 24, 16)
LARGE_23 = _size(1024, 23, 16)
HUGE_PLUS = _size(1280, 32, 20)
GIANT = _size(1408, 40, 16, 6144 / 1408)
GIANT_GATED = _size(1536, 40, 24, 8 / 3)
GIGANTIC = _size(1536, 50, 16, 8960 / 1536)
GIGANTIC_47 = _size(1536, 47, 16, 8960 / 1536)
ENORMOUS = _size(1792, 64, 16, 15360 / 1792)
SEVEN_BILLION = _size(4096, 40, 32, 2.0)
TINY_GATED = _size(192, 12, 3, 8 / 3)
SMALL_GATED = _size(384, 12, 6, 8 / 3)
BASE_GATED = _size(768, 12, 12, 8 / 3)
LARGE_GATED = _size(1024, 24, 16, 8 / 3)
SAPIENS_BASE = _grouped(768, 12, 12, 6)
SAPIENS_LARGE = _grouped(1024, 24, 16, 8)
SAPIENS_HUGE = _grouped(1280, 32, 16, 8)
SAPIENS_GIANT = _grouped(1536, 40, 24, 8)
SAPIENS_5B = _grouped(2432, 56, 32, 8)

EVA: Fields = {}
EVA_CLIP: Fields = {"global_pool": "token"}
EVA02: Fields = {"swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (16, 16)}
EVA02_NORMED: Fields = {**EVA02, "qkv_fused": False, "scale_mlp": True}
EVA02_CLIP: Fields = {**EVA02_NORMED, "scale_attn_inner": True, "global_pool": "token"}
EVA02_POST: Fields = {"use_post_norm": True, "global_pool": "token"}

ROTARY_ONLY: Fields = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "init_values": 1e-5}
REG1: Fields = {**ROTARY_ONLY, "class_token": False, "num_reg_tokens": 1, "ref_feat_shape": (16, 16)}
REG1_NO_BIAS: Fields = {**REG1, "qkv_bias": False}
REG4: Fields = {**REG1, "num_reg_tokens": 4}

ROPE_VIT: Fields = {
    **ROTARY_ONLY,
    "attn_type": "rope",
    "global_pool": "token",
    "rope_grid_indexing": "xy",
    "rope_temperature": 100.0,
}
ROPE_VIT_BASE: Fields = {**ROPE_VIT, "use_fc_norm": False}
ROPE_VIT_APE: Fields = {**ROPE_VIT, "use_abs_pos_emb": True, "no_embed_class": True}
ROPE_VIT_MIXED: Fields = {**ROPE_VIT, "rope_type": "mixed", "rope_temperature": 10.0}
ROPE_VIT_MIXED_APE: Fields = {**ROPE_VIT_MIXED, "use_abs_pos_emb": True, "no_embed_class": True}

PE: Fields = {
    "attn_type": "rope",
    "use_pre_transformer_norm": True,
    "use_rot_pos_emb": True,
    "rope_grid_indexing": "xy",
    "norm_eps": 1e-5,
}
PE_CLASS: Fields = {**PE, "rope_grid_offset": 1.0}
PE_MAP: Fields = {"global_pool": "map", "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 4.0}
PE_CORE_14: Fields = {**PE_CLASS, **PE_MAP, "ref_feat_shape": (14, 14)}
PE_CORE_24: Fields = {**PE_CLASS, **PE_MAP, "ref_feat_shape": (24, 24)}
PE_CORE_G: Fields = {**PE, **PE_MAP, "class_token": False, "ref_feat_shape": (32, 32)}
PE_BARE: Fields = {"use_post_transformer_norm": False, "use_fc_norm": False, "ref_feat_shape": (32, 32)}
PE_SPATIAL: Fields = {**PE_CLASS, **PE_BARE}
PE_LANG: Fields = {**PE_SPATIAL, "init_values": 0.1}
PE_BARE_G: Fields = {**PE, **PE_BARE, "class_token": False, "init_values": 0.1}

DINOV3_QKVB: Fields = {
    **ROTARY_ONLY,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
    "norm_eps": 1e-5,
    "dynamic_img_size": True,
}
DINOV3: Fields = {**DINOV3_QKVB, "qkv_bias": False}
DINOV3_PLUS_QKVB: Fields = {**DINOV3_QKVB, "swiglu_mlp": True, "swiglu_align_to": 8}
DINOV3_PLUS: Fields = {**DINOV3_PLUS_QKVB, "qkv_bias": False}
DINOV3_7B: Fields = {**DINOV3_PLUS, "swiglu_align_to": 64}
LINGBOT: Fields = {**DINOV3_QKVB, "global_pool": "token"}
LINGBOT_G: Fields = {**DINOV3_PLUS, "global_pool": "token"}
SAPIENS2: Fields = {
    **LINGBOT,
    "attn_type": "rope",
    "qkv_fused": False,
    "qk_norm": True,
    "swiglu_mlp": True,
    "init_values": 1.0,
    "attn_only_layer_scale": True,
    "rope_rescale_coords": 2.0,
    "num_reg_tokens": 8,
    "norm_layer": "rmsnorm",
    "norm_eps": 1e-6,
}

ROPE_VARIANTS: dict[str, tuple[int, int | tuple[int, int], int, Fields, Fields]] = {
    "eva02_base_patch14_224": (14, 224, 0, BASE_GATED, EVA02_NORMED),
    "eva02_base_patch14_448": (14, 448, 1000, BASE_GATED, EVA02_NORMED),
    "eva02_base_patch16_clip_224": (16, 224, 512, BASE_GATED, EVA02_CLIP),
    "eva02_enormous_patch14_clip_224": (14, 224, 1024, ENORMOUS, EVA02_POST),
    "eva02_large_patch14_224": (14, 224, 0, LARGE_GATED, EVA02_NORMED),
    "eva02_large_patch14_448": (14, 448, 1000, LARGE_GATED, EVA02_NORMED),
    "eva02_large_patch14_clip_224": (14, 224, 768, LARGE_GATED, EVA02_CLIP),
    "eva02_large_patch14_clip_336": (14, 336, 768, LARGE_GATED, EVA02_CLIP),
    "eva02_small_patch14_224": (14, 224, 0, SMALL_GATED, EVA02),
    "eva02_small_patch14_336": (14, 336, 1000, SMALL_GATED, EVA02),
    "eva02_tiny_patch14_224": (14, 224, 0, TINY_GATED, EVA02),
    "eva02_tiny_patch14_336": (14, 336, 1000, TINY_GATED, EVA02),
    "eva_giant_patch14_224": (14, 224, 1000, GIANT, EVA),
    "eva_giant_patch14_336": (14, 336, 1000, GIANT, EVA),
    "eva_giant_patch14_560": (14, 560, 1000, GIANT, EVA),
    "eva_giant_patch14_clip_224": (14, 224, 1024, GIANT, EVA_CLIP),
    "vit_5b_patch16_sapiens2": (16, (1024, 768), 0, SAPIENS_5B, SAPIENS2),
    "vit_7b_patch16_dinov3": (16, 256, 0, SEVEN_BILLION, DINOV3_7B),
    "vit_base_patch16_dinov3": (16, 256, 0, BASE, DINOV3),
    "vit_base_patch16_dinov3_qkvb": (16, 256, 0, BASE, DINOV3_QKVB),
    "vit_base_patch16_lingbot": (16, 512, 0, BASE, LINGBOT),
    "vit_base_patch16_rope_224": (16, 224, 1000, BASE, ROPE_VIT_BASE),
    "vit_base_patch16_rope_ape_224": (16, 224, 1000, BASE, ROPE_VIT_APE),
    "vit_base_patch16_rope_mixed_224": (16, 224, 1000, BASE, ROPE_VIT_MIXED),
    "vit_base_patch16_rope_mixed_ape_224": (16, 224, 1000, BASE, ROPE_VIT_MIXED_APE),
    "vit_base_patch16_rope_reg1_gap_256": (16, 256, 1000, BASE, REG1),
    "vit_base_patch16_sapiens2": (16, (1024, 768), 0, SAPIENS_BASE, SAPIENS2),
    "vit_betwixt_patch16_rope_reg4_gap_256": (16, 256, 1000, BETWIXT, REG4),
    "vit_giant_patch16_lingbot": (16, 512, 0, GIANT_GATED, LINGBOT_G),
    "vit_giant_patch16_sapiens2": (16, (1024, 768), 0, SAPIENS_GIANT, SAPIENS2),
    "vit_huge_patch16_sapiens2": (16, (1024, 768), 0, SAPIENS_HUGE, SAPIENS2),
    "vit_huge_plus_patch16_dinov3": (16, 256, 0, HUGE_PLUS, DINOV3_PLUS),
    "vit_huge_plus_patch16_dinov3_qkvb": (16, 256, 0, HUGE_PLUS, DINOV3_PLUS_QKVB),
    "vit_large_patch16_dinov3": (16, 256, 0, LARGE, DINOV3),
    "vit_large_patch16_dinov3_qkvb": (16, 256, 0, LARGE, DINOV3_QKVB),
    "vit_large_patch16_lingbot": (16, 512, 0, LARGE, LINGBOT),
    "vit_large_patch16_rope_224": (16, 224, 1000, LARGE, ROPE_VIT),
    "vit_large_patch16_rope_ape_224": (16, 224, 1000, LARGE, ROPE_VIT_APE),
    "vit_large_patch16_rope_mixed_224": (16, 224, 1000, LARGE, ROPE_VIT_MIXED),
    "vit_large_patch16_rope_mixed_ape_224": (16, 224, 1000, LARGE, ROPE_VIT_MIXED_APE),
    "vit_large_patch16_sapiens2": (16, (1024, 768), 0, SAPIENS_LARGE, SAPIENS2),
    "vit_medium_patch16_rope_reg1_gap_256": (16, 256, 1000, MEDIUM, REG1),
    "vit_mediumd_patch16_rope_reg1_gap_256": (16, 256, 1000, MEDIUMD, REG1_NO_BIAS),
    "vit_pe_core_base_patch16_224": (16, 224, 1024, BASE, PE_CORE_14),
    "vit_pe_core_gigantic_patch14_448": (14, 448, 1280, GIGANTIC, PE_CORE_G),
    "vit_pe_core_large_patch14_336": (14, 336, 1024, LARGE, PE_CORE_24),
    "vit_pe_core_small_patch16_384": (16, 384, 512, SMALL, PE_CORE_24),
    "vit_pe_core_tiny_patch16_384": (16, 384, 512, TINY, PE_CORE_24),
    "vit_pe_lang_gigantic_patch14_448": (14, 448, 0, GIGANTIC_47, PE_BARE_G),
    "vit_pe_lang_large_patch14_448": (14, 448, 0, LARGE_23, PE_LANG),
    "vit_pe_spatial_base_patch16_512": (16, 512, 0, BASE, PE_SPATIAL),
    "vit_pe_spatial_gigantic_patch14_448": (14, 448, 0, GIGANTIC, PE_BARE_G),
    "vit_pe_spatial_large_patch14_448": (14, 448, 0, LARGE, PE_SPATIAL),
    "vit_pe_spatial_small_patch16_512": (16, 512, 0, SMALL, PE_SPATIAL),
    "vit_pe_spatial_tiny_patch16_512": (16, 512, 0, TINY, PE_SPATIAL),
    "vit_small_patch16_dinov3": (16, 256, 0, SMALL, DINOV3),
    "vit_small_patch16_dinov3_qkvb": (16, 256, 0, SMALL, DINOV3_QKVB),
    "vit_small_patch16_lingbot": (16, 512, 0, SMALL, LINGBOT),
    "vit_small_patch16_rope_224": (16, 224, 1000, SMALL, ROPE_VIT),
    "vit_small_patch16_rope_ape_224": (16, 224, 1000, SMALL, ROPE_VIT_APE),
    "vit_small_patch16_rope_mixed_224": (16, 224, 1000, SMALL, ROPE_VIT_MIXED),
    "vit_small_patch16_rope_mixed_ape_224": (16, 224, 1000, SMALL, ROPE_VIT_MIXED_APE),
    "vit_small_plus_patch16_dinov3": (16, 256, 0, SMALL, DINOV3_PLUS),
    "vit_small_plus_patch16_dinov3_qkvb": (16, 256, 0, SMALL, DINOV3_PLUS_QKVB),
    "vit_tiny_patch16_dinov3_qkvb": (16, 256, 0, TINY, DINOV3_QKVB),
}
