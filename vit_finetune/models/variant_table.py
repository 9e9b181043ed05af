"""Every plain ViT that timm 1.0 registers, one row each: data only, read by `variants.py`.

A row is patch size and image size in pixels, number of classes, a size (width, depth, heads, MLP ratio) and a style
(the ViTConfig fields that differ from the original ViT's). Not here: pretrained tags and preprocessing, which travel
with the weights, and the relatives in `not_plain.py`.

Source: the entry points of `timm/models/vision_transformer.py` and `deit.py`, read off timm 1.0.31.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]


def _size(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> Fields:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}


XSMALL = _size(256, 10, 4)
TINY = _size(192, 12, 3)
SMALL = _size(384, 12, 6)
SMALL_18 = _size(384, 18, 6)
SMALL_36 = _size(384, 36, 6)
MEDIUM = _size(512, 12, 8)
MEDIUMD = _size(512, 20, 8)
BETWIXT = _size(640, 12, 10)
BASE = _size(768, 12, 12)
BASE_18 = _size(768, 18, 12)
BASE_16H = _size(768, 12, 16)
BASE_PLUS = _size(896, 12, 14)
LARGE = _size(1024, 24, 16)
HUGE = _size(1280, 32, 16)
GIANT = _size(1408, 40, 16, 48 / 11)
GIANT_BEIT3 = _size(1408, 40, 16, 4.3637)
GIANT_DINO = _size(1536, 40, 24, 5.33334)
GIANT_RADIO = _size(1536, 40, 24)
GIANT_OPT = _size(1536, 40, 16)
GIGANTIC = _size(1664, 48, 16, 64 / 13)
WEE = _size(256, 14, 4, 5.0)
PWEE = _size(256, 16, 4, 5.0)
LITTLE = _size(320, 14, 5, 5.6)
SO150M = _size(896, 18, 14, 2.572)
SO150M2 = _size(832, 21, 13, 34 / 13)
SO400M = _size(1152, 27, 16, 3.7362)
SO400M_4304 = _size(1152, 27, 16, 4304 / 1152)
AIM_LARGE = _size(1024, 24, 8, 2.75)
AIM_HUGE = _size(1536, 24, 12, 2.6667)
AIM_1B = _size(2048, 24, 16, 2.75)
AIM_3B = _size(3072, 24, 24, 2.6667)
TEST_6 = _size(64, 6, 2, 3.0)
TEST_8 = _size(64, 8, 2, 3.0)
TEST_9 = _size(96, 9, 3, 2.0)
TEST_9_WIDE = _size(96, 9, 3, 3.0)

PLAIN: Fields = {}
NO_QKV_BIAS: Fields = {"qkv_bias": False}
DISTILLED: Fields = {"distilled": True}
AVG: Fields = {"global_pool": "avg"}
SCALED: Fields = {"init_values": 1e-5}
FLEXI: Fields = {"no_embed_class": True}
DEIT3: Fields = {**FLEXI, "init_values": 1e-6}
CLIP: Fields = {"pre_norm": True, "norm_eps": 1e-5}
CLIP_QUICK: Fields = {**CLIP, "act_layer": "quick_gelu"}
MAP: Fields = {"class_token": False, "global_pool": "map"}
MAP_TANH: Fields = {**MAP, "act_layer": "gelu_tanh"}
MAP_REG4: Fields = {**MAP, "reg_tokens": 4}
GAP: Fields = {"class_token": False, "global_pool": "avg", "fc_norm": False}
GAP_TANH: Fields = {**GAP, "act_layer": "gelu_tanh"}
GAP_REG4: Fields = {**GAP, "reg_tokens": 4}
GAP_NO_QKV_BIAS: Fields = {**GAP, "qkv_bias": False, "init_values": 1e-6}
REG4: Fields = {**FLEXI, "class_token": False, "reg_tokens": 4, "global_pool": "avg"}
REG4_SCALED: Fields = {**REG4, "init_values": 1e-5}
REG1_SCALED: Fields = {**REG4_SCALED, "reg_tokens": 1}
REG1_DIFF: Fields = {**REG1_SCALED, "attn_layer": "diff"}
REG1_PARALLEL: Fields = {**REG1_SCALED, "block_fn": "parallel_scaling"}
REG1_PARALLEL_DIFF: Fields = {**REG1_SCALED, "block_fn": "diff_parallel_scaling"}
REG1_ALL_POS: Fields = {**REG1_SCALED, "no_embed_class": False}
SO2: Fields = {**REG1_ALL_POS, "qkv_bias": False}
RES_POST: Fields = {**SCALED, "class_token": False, "global_pool": "avg", "qkv_bias": False, "block_fn": "res_post"}
THINGS: Fields = {**SCALED, "block_fn": "parallel_things"}
XP: Fields = {
    **FLEXI,
    "pre_norm": True,
    "qkv_bias": False,
    "qk_norm": True,
    "norm_layer": "rmsnorm",
    "block_fn": "parallel_scaling",
}
DINO_GIANT: Fields = {**SCALED, "mlp_layer": "swiglu_packed", "act_layer": "silu"}
DINO_REG4: Fields = {**SCALED, "no_embed_class": True, "reg_tokens": 4}
DINO_REG4_GIANT: Fields = {**DINO_GIANT, **DINO_REG4}
TIPS: Fields = {**DINO_REG4, "reg_tokens": 1, "init_values": 1.0}
TIPS_GIANT: Fields = {**DINO_GIANT, **TIPS}
RADIO7: Fields = {**FLEXI, "reg_tokens": 7, "final_norm": False}
RADIO7_SCALED: Fields = {**RADIO7, "init_values": 1e-5}
RADIO9: Fields = {**RADIO7, "reg_tokens": 9}
INTERN: Fields = {"init_values": 0.1, "final_norm": False, "dynamic_img_size": True}
BEIT3: Fields = {**AVG, "scale_attn_norm": True, "scale_mlp_norm": True, "norm_eps": 1e-5}
AIM_NORM: Fields = {"norm_layer": "rmsnorm", "norm_eps": 1e-5, "embed_norm": True}
AIM: Fields = {**GAP, **AIM_NORM, "qkv_bias": False, "proj_bias": False, "mlp_layer": "swiglu", "act_layer": "silu"}
DYNAMIC: Fields = {"dynamic_img_size": True}
TEST_REG1: Fields = {**REG1_ALL_POS, **DYNAMIC}
TEST_RMS: Fields = {**TEST_REG1, "norm_layer": "rmsnorm"}
TEST_MAP: Fields = {**MAP, **SCALED, "reg_tokens": 1, "pool_include_prefix": True}

# name: (patch_size, img_size, num_classes, size, style)
VARIANTS: dict[str, tuple[int, int, int, Fields, Fields]] = {
    "aimv2_1b_patch14_224": (14, 224, 0, AIM_1B, AIM),
    "aimv2_1b_patch14_336": (14, 336, 0, AIM_1B, AIM),
    "aimv2_1b_patch14_448": (14, 448, 0, AIM_1B, AIM),
    "aimv2_3b_patch14_224": (14, 224, 0, AIM_3B, AIM),
    "aimv2_3b_patch14_336": (14, 336, 0, AIM_3B, AIM),
    "aimv2_3b_patch14_448": (14, 448, 0, AIM_3B, AIM),
    "aimv2_huge_patch14_224": (14, 224, 0, AIM_HUGE, AIM),
    "aimv2_huge_patch14_336": (14, 336, 0, AIM_HUGE, AIM),
    "aimv2_huge_patch14_448": (14, 448, 0, AIM_HUGE, AIM),
    "aimv2_large_patch14_224": (14, 224, 0, AIM_LARGE, AIM),
    "aimv2_large_patch14_336": (14, 336, 0, AIM_LARGE, AIM),
    "aimv2_large_patch14_448": (14, 448, 0, AIM_LARGE, AIM),
    "beit3_base_patch16_224": (16, 224, 1000, BASE, BEIT3),
    "beit3_giant_patch14_224": (14, 224, 1000, GIANT_BEIT3, BEIT3),
    "beit3_giant_patch14_336": (14, 336, 1000, GIANT_BEIT3, BEIT3),
    "beit3_large_patch16_224": (16, 224, 1000, LARGE, BEIT3),
    "deit3_base_patch16_224": (16, 224, 1000, BASE, DEIT3),
    "deit3_base_patch16_384": (16, 384, 1000, BASE, DEIT3),
    "deit3_huge_patch14_224": (14, 224, 1000, HUGE, DEIT3),
    "deit3_large_patch16_224": (16, 224, 1000, LARGE, DEIT3),
    "deit3_large_patch16_384": (16, 384, 1000, LARGE, DEIT3),
    "deit3_medium_patch16_224": (16, 224, 1000, MEDIUM, DEIT3),
    "deit3_small_patch16_224": (16, 224, 1000, SMALL, DEIT3),
    "deit3_small_patch16_384": (16, 384, 1000, SMALL, DEIT3),
    "deit_base_distilled_patch16_224": (16, 224, 1000, BASE, DISTILLED),
    "deit_base_distilled_patch16_384": (16, 384, 1000, BASE, DISTILLED),
    "deit_base_patch16_224": (16, 224, 1000, BASE, PLAIN),
    "deit_base_patch16_384": (16, 384, 1000, BASE, PLAIN),
    "deit_small_distilled_patch16_224": (16, 224, 1000, SMALL, DISTILLED),
    "deit_small_patch16_224": (16, 224, 1000, SMALL, PLAIN),
    "deit_tiny_distilled_patch16_224": (16, 224, 1000, TINY, DISTILLED),
    "deit_tiny_patch16_224": (16, 224, 1000, TINY, PLAIN),
    "eva_large_patch14_196": (14, 196, 1000, LARGE, AVG),
    "eva_large_patch14_336": (14, 336, 1000, LARGE, AVG),
    "flexivit_base": (16, 240, 1000, BASE, FLEXI),
    "flexivit_large": (16, 240, 1000, LARGE, FLEXI),
    "flexivit_small": (16, 240, 1000, SMALL, FLEXI),
    "test_vit": (16, 160, 1000, TEST_6, DYNAMIC),
    "test_vit2": (16, 160, 1000, TEST_8, TEST_REG1),
    "test_vit3": (16, 160, 1000, TEST_9, TEST_MAP),
    "test_vit4": (16, 160, 1000, TEST_9_WIDE, TEST_RMS),
    "vit_base_patch14_dinov2": (14, 518, 0, BASE, SCALED),
    "vit_base_patch14_reg1_tipsv2": (14, 448, 0, BASE, TIPS),
    "vit_base_patch14_reg4_dinov2": (14, 518, 0, BASE, DINO_REG4),
    "vit_base_patch16_18x2_224": (16, 224, 1000, BASE_18, THINGS),
    "vit_base_patch16_224": (16, 224, 1000, BASE, PLAIN),
    "vit_base_patch16_224_miil": (16, 224, 11221, BASE, NO_QKV_BIAS),
    "vit_base_patch16_384": (16, 384, 1000, BASE, PLAIN),
    "vit_base_patch16_clip_224": (16, 224, 1000, BASE, CLIP),
    "vit_base_patch16_clip_384": (16, 384, 1000, BASE, CLIP),
    "vit_base_patch16_clip_quickgelu_224": (16, 224, 512, BASE, CLIP_QUICK),
    "vit_base_patch16_gap_224": (16, 224, 1000, BASE_16H, GAP),
    "vit_base_patch16_plus_240": (16, 240, 1000, BASE_PLUS, SCALED),
    "vit_base_patch16_plus_clip_240": (16, 240, 640, BASE_PLUS, CLIP),
    "vit_base_patch16_radio_v3": (16, 512, 0, BASE, RADIO7_SCALED),
    "vit_base_patch16_reg4_gap_256": (16, 256, 1000, BASE, REG4),
    "vit_base_patch16_rpn_224": (16, 224, 1000, BASE, RES_POST),
    "vit_base_patch16_siglip_224": (16, 224, 0, BASE, MAP),
    "vit_base_patch16_siglip_256": (16, 256, 0, BASE, MAP),
    "vit_base_patch16_siglip_384": (16, 384, 0, BASE, MAP),
    "vit_base_patch16_siglip_512": (16, 512, 0, BASE, MAP),
    "vit_base_patch16_siglip_gap_224": (16, 224, 0, BASE, GAP),
    "vit_base_patch16_siglip_gap_256": (16, 256, 0, BASE, GAP),
    "vit_base_patch16_siglip_gap_384": (16, 384, 0, BASE, GAP),
    "vit_base_patch16_siglip_gap_512": (16, 512, 0, BASE, GAP),
    "vit_base_patch16_xp_224": (16, 224, 1000, BASE, XP),
    "vit_base_patch32_224": (32, 224, 1000, BASE, PLAIN),
    "vit_base_patch32_384": (32, 384, 1000, BASE, PLAIN),
    "vit_base_patch32_clip_224": (32, 224, 1000, BASE, CLIP),
    "vit_base_patch32_clip_256": (32, 256, 512, BASE, CLIP),
    "vit_base_patch32_clip_384": (32, 384, 1000, BASE, CLIP),
    "vit_base_patch32_clip_448": (32, 448, 1000, BASE, CLIP),
    "vit_base_patch32_clip_quickgelu_224": (32, 224, 512, BASE, CLIP_QUICK),
    "vit_base_patch32_plus_256": (32, 256, 1000, BASE_PLUS, SCALED),
    "vit_base_patch32_siglip_256": (32, 256, 0, BASE, MAP_TANH),
    "vit_base_patch32_siglip_gap_256": (32, 256, 0, BASE, GAP_TANH),
    "vit_base_patch8_224": (8, 224, 1000, BASE, PLAIN),
    "vit_betwixt_patch16_gap_256": (16, 256, 1000, BETWIXT, GAP_NO_QKV_BIAS),
    "vit_betwixt_patch16_reg1_gap_256": (16, 256, 1000, BETWIXT, REG1_SCALED),
    "vit_betwixt_patch16_reg4_gap_256": (16, 256, 1000, BETWIXT, REG4_SCALED),
    "vit_betwixt_patch16_reg4_gap_384": (16, 384, 1000, BETWIXT, REG4_SCALED),
    "vit_betwixt_patch32_clip_224": (32, 224, 512, BETWIXT, CLIP),
    "vit_dlittle_patch16_reg1_gap_256": (16, 256, 1000, LITTLE, REG1_DIFF),
    "vit_dpwee_patch16_reg1_gap_256": (16, 256, 1000, PWEE, REG1_PARALLEL_DIFF),
    "vit_dwee_patch16_reg1_gap_256": (16, 256, 1000, WEE, REG1_DIFF),
    "vit_giant_patch14_224": (14, 224, 1000, GIANT, PLAIN),
    "vit_giant_patch14_clip_224": (14, 224, 1024, GIANT, CLIP),
    "vit_giant_patch14_dinov2": (14, 518, 0, GIANT_DINO, DINO_GIANT),
    "vit_giant_patch14_reg1_tipsv2": (14, 448, 0, GIANT_DINO, TIPS_GIANT),
    "vit_giant_patch14_reg4_dinov2": (14, 518, 0, GIANT_DINO, DINO_REG4_GIANT),
    "vit_giant_patch16_gap_224": (16, 224, 0, GIANT, GAP),
    "vit_giant_patch16_radio_v3": (16, 512, 0, GIANT_RADIO, RADIO7),
    "vit_giantopt_patch16_siglip_256": (16, 256, 0, GIANT_OPT, MAP_TANH),
    "vit_giantopt_patch16_siglip_384": (16, 384, 0, GIANT_OPT, MAP_TANH),
    "vit_giantopt_patch16_siglip_gap_256": (16, 256, 0, GIANT_OPT, GAP_TANH),
    "vit_giantopt_patch16_siglip_gap_384": (16, 384, 0, GIANT_OPT, GAP_TANH),
    "vit_gigantic_patch14_224": (14, 224, 1000, GIGANTIC, PLAIN),
    "vit_gigantic_patch14_clip_224": (14, 224, 1280, GIGANTIC, CLIP),
    "vit_gigantic_patch14_clip_378": (14, 378, 1280, GIGANTIC, CLIP),
    "vit_gigantic_patch14_clip_quickgelu_224": (14, 224, 1280, GIGANTIC, CLIP_QUICK),
    "vit_huge_patch14_224": (14, 224, 0, HUGE, PLAIN),
    "vit_huge_patch14_clip_224": (14, 224, 1000, HUGE, CLIP),
    "vit_huge_patch14_clip_336": (14, 336, 1000, HUGE, CLIP),
    "vit_huge_patch14_clip_378": (14, 378, 1024, HUGE, CLIP),
    "vit_huge_patch14_clip_quickgelu_224": (14, 224, 1024, HUGE, CLIP_QUICK),
    "vit_huge_patch14_clip_quickgelu_378": (14, 378, 1024, HUGE, CLIP_QUICK),
    "vit_huge_patch14_gap_224": (14, 224, 0, HUGE, GAP),
    "vit_huge_patch14_xp_224": (14, 224, 1000, HUGE, XP),
    "vit_huge_patch16_gap_448": (16, 448, 0, HUGE, GAP),
    "vit_huge_patch16_radio_v3": (16, 512, 0, HUGE, RADIO7),
    "vit_huge_patch16_radio_v4": (16, 512, 0, HUGE, RADIO9),
    "vit_intern300m_patch14_448": (14, 448, 0, LARGE, INTERN),
    "vit_large_patch14_224": (14, 224, 1000, LARGE, PLAIN),
    "vit_large_patch14_clip_224": (14, 224, 1000, LARGE, CLIP),
    "vit_large_patch14_clip_336": (14, 336, 1000, LARGE, CLIP),
    "vit_large_patch14_clip_quickgelu_224": (14, 224, 768, LARGE, CLIP_QUICK),
    "vit_large_patch14_clip_quickgelu_336": (14, 336, 768, LARGE, CLIP_QUICK),
    "vit_large_patch14_dinov2": (14, 518, 0, LARGE, SCALED),
    "vit_large_patch14_reg1_tipsv2": (14, 448, 0, LARGE, TIPS),
    "vit_large_patch14_reg4_dinov2": (14, 518, 0, LARGE, DINO_REG4),
    "vit_large_patch14_xp_224": (14, 224, 1000, LARGE, XP),
    "vit_large_patch16_224": (16, 224, 1000, LARGE, PLAIN),
    "vit_large_patch16_384": (16, 384, 1000, LARGE, PLAIN),
    "vit_large_patch16_radio_v3": (16, 512, 0, LARGE, RADIO7_SCALED),
    "vit_large_patch16_siglip_256": (16, 256, 0, LARGE, MAP),
    "vit_large_patch16_siglip_384": (16, 384, 0, LARGE, MAP),
    "vit_large_patch16_siglip_512": (16, 512, 0, LARGE, MAP_TANH),
    "vit_large_patch16_siglip_gap_256": (16, 256, 0, LARGE, GAP),
    "vit_large_patch16_siglip_gap_384": (16, 384, 0, LARGE, GAP),
    "vit_large_patch16_siglip_gap_512": (16, 512, 0, LARGE, GAP_TANH),
    "vit_large_patch32_224": (32, 224, 0, LARGE, PLAIN),
    "vit_large_patch32_384": (32, 384, 1000, LARGE, PLAIN),
    "vit_little_patch16_reg1_gap_256": (16, 256, 1000, LITTLE, REG1_SCALED),
    "vit_little_patch16_reg4_gap_256": (16, 256, 1000, LITTLE, REG4_SCALED),
    "vit_medium_patch16_clip_224": (16, 224, 512, MEDIUM, CLIP),
    "vit_medium_patch16_gap_240": (16, 240, 11821, MEDIUM, GAP_NO_QKV_BIAS),
    "vit_medium_patch16_gap_256": (16, 256, 1000, MEDIUM, GAP_NO_QKV_BIAS),
    "vit_medium_patch16_gap_384": (16, 384, 1000, MEDIUM, GAP_NO_QKV_BIAS),
    "vit_medium_patch16_reg1_gap_256": (16, 256, 1000, MEDIUM, REG1_SCALED),
    "vit_medium_patch16_reg4_gap_256": (16, 256, 1000, MEDIUM, REG4_SCALED),
    "vit_medium_patch32_clip_224": (32, 224, 512, MEDIUM, CLIP),
    "vit_mediumd_patch16_reg4_gap_256": (16, 256, 1000, MEDIUMD, REG4_SCALED),
    "vit_mediumd_patch16_reg4_gap_384": (16, 384, 1000, MEDIUMD, REG4_SCALED),
    "vit_pwee_patch16_reg1_gap_256": (16, 256, 1000, PWEE, REG1_PARALLEL),
    "vit_small_patch14_dinov2": (14, 518, 0, SMALL, SCALED),
    "vit_small_patch14_reg4_dinov2": (14, 518, 0, SMALL, DINO_REG4),
    "vit_small_patch16_18x2_224": (16, 224, 1000, SMALL_18, THINGS),
    "vit_small_patch16_224": (16, 224, 1000, SMALL, PLAIN),
    "vit_small_patch16_36x1_224": (16, 224, 1000, SMALL_36, SCALED),
    "vit_small_patch16_384": (16, 384, 1000, SMALL, PLAIN),
    "vit_small_patch32_224": (32, 224, 1000, SMALL, PLAIN),
    "vit_small_patch32_384": (32, 384, 1000, SMALL, PLAIN),
    "vit_small_patch8_224": (8, 224, 0, SMALL, PLAIN),
    "vit_so150m2_patch16_reg1_gap_256": (16, 256, 1000, SO150M2, SO2),
    "vit_so150m2_patch16_reg1_gap_384": (16, 384, 1000, SO150M2, SO2),
    "vit_so150m2_patch16_reg1_gap_448": (16, 448, 1000, SO150M2, SO2),
    "vit_so150m_patch16_reg4_gap_256": (16, 256, 1000, SO150M, GAP_REG4),
    "vit_so150m_patch16_reg4_gap_384": (16, 384, 1000, SO150M, GAP_REG4),
    "vit_so150m_patch16_reg4_map_256": (16, 256, 1000, SO150M, MAP_REG4),
    "vit_so400m_patch14_reg1_tipsv2": (14, 448, 0, SO400M_4304, TIPS),
    "vit_so400m_patch14_siglip_224": (14, 224, 0, SO400M, MAP),
    "vit_so400m_patch14_siglip_378": (14, 378, 0, SO400M, MAP),
    "vit_so400m_patch14_siglip_384": (14, 384, 0, SO400M, MAP),
    "vit_so400m_patch14_siglip_gap_224": (14, 224, 0, SO400M, GAP),
    "vit_so400m_patch14_siglip_gap_378": (14, 378, 0, SO400M, GAP),
    "vit_so400m_patch14_siglip_gap_384": (14, 384, 0, SO400M, GAP),
    "vit_so400m_patch14_siglip_gap_448": (14, 448, 0, SO400M, GAP),
    "vit_so400m_patch14_siglip_gap_896": (14, 896, 0, SO400M, GAP),
    "vit_so400m_patch16_radio_v4": (16, 512, 0, SO400M_4304, RADIO9),
    "vit_so400m_patch16_siglip_256": (16, 256, 0, SO400M, MAP_TANH),
    "vit_so400m_patch16_siglip_384": (16, 384, 0, SO400M, MAP_TANH),
    "vit_so400m_patch16_siglip_512": (16, 512, 0, SO400M, MAP_TANH),
    "vit_so400m_patch16_siglip_gap_256": (16, 256, 0, SO400M, GAP_TANH),
    "vit_so400m_patch16_siglip_gap_384": (16, 384, 0, SO400M, GAP_TANH),
    "vit_so400m_patch16_siglip_gap_512": (16, 512, 0, SO400M, GAP_TANH),
    "vit_tiny_patch16_224": (16, 224, 1000, TINY, PLAIN),
    "vit_tiny_patch16_384": (16, 384, 1000, TINY, PLAIN),
    "vit_wee_patch16_reg1_gap_256": (16, 256, 1000, WEE, REG1_SCALED),
    "vit_xsmall_patch16_clip_224": (16, 224, 512, XSMALL, CLIP),
}
