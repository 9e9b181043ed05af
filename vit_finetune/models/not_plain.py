"""The relatives of the plain ViT that timm registers too, and why `create_model` doesn't build them. Data only.

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
    "it is timm's EVA family: rotary positions, or query and value biases of its own": """
        eva02_base_patch14_224 eva02_base_patch14_448 eva02_base_patch16_clip_224 eva02_enormous_patch14_clip_224
        eva02_large_patch14_224 eva02_large_patch14_448 eva02_large_patch14_clip_224 eva02_large_patch14_clip_336
        eva02_small_patch14_224 eva02_small_patch14_336 eva02_tiny_patch14_224 eva02_tiny_patch14_336
        eva_giant_patch14_224 eva_giant_patch14_336 eva_giant_patch14_560 eva_giant_patch14_clip_224
        vit_5b_patch16_sapiens2 vit_7b_patch16_dinov3 vit_base_patch16_dinov3 vit_base_patch16_dinov3_qkvb
        vit_base_patch16_lingbot vit_base_patch16_rope_224 vit_base_patch16_rope_ape_224
        vit_base_patch16_rope_mixed_224 vit_base_patch16_rope_mixed_ape_224 vit_base_patch16_rope_reg1_gap_256
        vit_base_patch16_sapiens2 vit_betwixt_patch16_rope_reg4_gap_256 vit_giant_patch16_lingbot
        vit_giant_patch16_sapiens2 vit_huge_patch16_sapiens2 vit_huge_plus_patch16_dinov3
        vit_huge_plus_patch16_dinov3_qkvb vit_large_patch16_dinov3 vit_large_patch16_dinov3_qkvb
        vit_large_patch16_lingbot vit_large_patch16_rope_224 vit_large_patch16_rope_ape_224
        vit_large_patch16_rope_mixed_224 vit_large_patch16_rope_mixed_ape_224 vit_large_patch16_sapiens2
        vit_medium_patch16_rope_reg1_gap_256 vit_mediumd_patch16_rope_reg1_gap_256 vit_pe_core_base_patch16_224
        vit_pe_core_gigantic_patch14_448 vit_pe_core_large_patch14_336 vit_pe_core_small_patch16_384
        vit_pe_core_tiny_patch16_384 vit_pe_lang_gigantic_patch14_448 vit_pe_lang_large_patch14_448
        vit_pe_spatial_base_patch16_512 vit_pe_spatial_gigantic_patch14_448 vit_pe_spatial_large_patch14_448
        vit_pe_spatial_small_patch16_512 vit_pe_spatial_tiny_patch16_512 vit_small_patch16_dinov3
        vit_small_patch16_dinov3_qkvb vit_small_patch16_lingbot vit_small_patch16_rope_224
        vit_small_patch16_rope_ape_224 vit_small_patch16_rope_mixed_224 vit_small_patch16_rope_mixed_ape_224
        vit_small_plus_patch16_dinov3 vit_small_plus_patch16_dinov3_qkvb vit_tiny_patch16_dinov3_qkvb
    """,
    "it has relative position biases (BEiT)": """
        beit_base_patch16_224 beit_base_patch16_384 beit_large_patch16_224 beit_large_patch16_384
        beit_large_patch16_512 beitv2_base_patch16_224 beitv2_large_patch16_224
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
