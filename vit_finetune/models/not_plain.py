"""The relatives of the ViTs here that timm registers too, and why `create_model` doesn't build them. Data only.

Source: the registry of timm 1.0.31.
"""

from __future__ import annotations

_REASONS = {
    "its patches come from a convolutional network (hybrid)": """
        vit_base_mci_224 vit_base_r26_s32_224 vit_base_r50_s16_224 vit_base_r50_s16_384 vit_base_resnet26d_224
        vit_base_resnet50d_224 vit_large_r50_s32_224 vit_large_r50_s32_384 vit_small_r26_s32_224 vit_small_r26_s32_384
        vit_small_resnet26d_224 vit_small_resnet50d_s16_224 vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384
    """,
    "it has relative instead of absolute positions": """
        test_vit_relpos vit_relpos_base_patch16_224 vit_relpos_base_patch16_cls_224 vit_relpos_base_patch16_clsgap_224
        vit_relpos_base_patch16_plus_240 vit_relpos_base_patch16_rpn_224 vit_relpos_base_patch32_plus_rpn_256
        vit_relpos_medium_patch16_224 vit_relpos_medium_patch16_cls_224 vit_relpos_medium_patch16_rpn_224
        vit_relpos_small_patch16_224 vit_relpos_small_patch16_rpn_224 vit_srelpos_medium_patch16_224
        vit_srelpos_small_patch16_224
    """,
    "it has windowed attention with relative positions and no classifier (Segment Anything)": """
        samvit_base_patch16 samvit_base_patch16_224 samvit_huge_patch16 samvit_large_patch16
    """,
    "it takes packed patches of any aspect (NaFlex)": """
        naflexvit_base_patch16_gap naflexvit_base_patch16_map naflexvit_base_patch16_par_gap
        naflexvit_base_patch16_parfac_gap naflexvit_base_patch16_radio_v3 naflexvit_base_patch16_siglip
        naflexvit_giant_patch16_radio_v3 naflexvit_huge_patch16_radio_v3 naflexvit_huge_patch16_radio_v4
        naflexvit_large_patch16_radio_v3 naflexvit_so150m2_patch16_reg1_gap naflexvit_so150m2_patch16_reg1_map
        naflexvit_so400m_patch16_radio_v4 naflexvit_so400m_patch16_siglip
    """,
}

NOT_PLAIN: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names.split()}
