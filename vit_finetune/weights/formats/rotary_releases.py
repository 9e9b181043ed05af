"""Releases of networks with rotary positions that are not read as they are: known by name, to say what to take instead.

Source: the names that timm 1.0's `checkpoint_filter_fn` in `eva.py` looks for, of baaivision/EVA (EVA-02) and
facebookresearch/sapiens2. Detected on restated names only.
"""

from __future__ import annotations

from vit_finetune.weights.rules import Format, Rule


def _refused(name: str, library: str, *, what: str, instead: str, present: tuple[str, ...]) -> Format:
    """Return a format that is recognised, and neither read nor written.

    Args:
        name: of the format.
        library: the repository of the release.
        what: the network, for people.
        instead: weights of timm's that are the same.
        present: its fingerprint, as in `Format`.
    """
    return Format(
        name=name,
        library=library,
        present=present,
        rules=(Rule("{rest}", "{rest}"),),  # neither way is open: the two fields below close them
        refuse={"{rest}": f"this is {what} as it was released, which isn't read: take timm's copy, such as {instead}"},
        check=lambda config: f"the names of {what}'s release, which isn't written",  # noqa: ARG005 - as all
    )


BAAI_EVA02 = _refused(
    "baai_eva02",
    "baaivision/EVA",
    what="EVA-02",
    instead="timm:eva02_base_patch14_224.mim_in22k",
    present=("patch_embed.proj.weight", "rope.freqs_cos|mlp.ffn_ln.weight|attn.inner_attn_ln.weight"),
)
SAPIENS2 = _refused(
    "sapiens2",
    "facebookresearch/sapiens2",
    what="Sapiens2",
    instead="timm:vit_base_patch16_sapiens2",
    present=("patch_embed.projection.weight", "storage_tokens", "attn.wq.weight"),
)

FORMATS = (BAAI_EVA02, SAPIENS2)
