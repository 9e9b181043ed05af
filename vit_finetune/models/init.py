"""How weights start when none are loaded: timm's default scheme and the original JAX one.

Norms, LayerScale and the lambdas of differential attention are born right; this sets the rest.

Sources: `init_weights_vit_timm` and `init_weights_vit_jax` of timm 1.0 describe the schemes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

_TRUNCATED = partial(nn.init.trunc_normal_, std=0.02)
_TINY = partial(nn.init.normal_, std=1e-6)
_TOKENS = {"pos_embed": _TRUNCATED, "dist_token": _TRUNCATED, "cls_token": _TINY, "reg_token": _TINY}


def _init_timm(name: str, module: nn.Module) -> None:
    """Linear layers from a truncated normal of std 0.02, biases zero; the patch convolution keeps torch's default."""
    del name
    if isinstance(module, nn.Linear):
        _TRUNCATED(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_jax(name: str, module: nn.Module) -> None:
    """Xavier-uniform linear layers, LeCun-normal patches, a zero head, as the paper's code does."""
    if isinstance(module, nn.Linear) and name.startswith("head"):
        nn.init.zeros_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d):
        # A normal cut at two standard deviations has 0.87962566 of the uncut one's.
        std = math.sqrt(1 / module.weight[0].numel()) / 0.87962566103423978
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        (_TINY if "mlp" in name else nn.init.zeros_)(module.bias)


SCHEMES: dict[str, Callable[[str, nn.Module], None]] = {"": _init_timm, "jax": _init_jax}


@torch.no_grad()
def init_weights(model: nn.Module, *, scheme: str) -> None:
    """Draw a network's weights from torch's global generator, in place.

    Args:
        model: a VisionTransformer.
        scheme: a key of `SCHEMES`; "" is timm's default.
    """
    for name, parameter in model.named_parameters(recurse=False):
        _TOKENS[name](parameter)
    for name, module in reversed(
        list(model.named_modules())
    ):  # children first: a gated MLP changes its own layers after
        SCHEMES[scheme](name, module)
        own = getattr(module, "init_weights", None)
        if own is not None:
            own()
