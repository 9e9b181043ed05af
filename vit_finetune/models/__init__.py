"""The network: plain Vision Transformers in timm's layout. Knows torch and einops; no files, no network."""
