"""Random decisions in training: which branches (DropPath) and which patches (patch dropout) a sample goes without.

With `sample_seeds` a decision is a pure function of (seed of the sample, site): a counter-based hash in plain integer
arithmetic, so it is the same in any batch, position, process, device and recomputation, compiled or not, and no
generator has a state to keep. Without, torch's global generator decides, as in timm.

Sources: Stochastic Depth (arXiv 1603.09382), PatchDropout (2208.07220); splitmix64 (Steele, Lea and Flood, OOPSLA 2014)
and counter-based generators in general (Salmon et al., SC 2011).
Legend: B batch, N tokens incl. prefix, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
PATCH_SITE = 0
SITES_PER_BLOCK = 4


def _signed(value: int) -> int:
    """Return the int64 that has the bits of an unsigned 64-bit word: torch has no unsigned arithmetic."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift zeros in from the left; torch's own shift of int64 would copy the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    """Scramble 64-bit words so that each bit depends on each bit: the finaliser of splitmix64."""
    words = (words ^ _shift_right(words, 30)) * _signed(_MULTIPLIERS[0])  # products wrap around modulo 2**64
    words = (words ^ _shift_right(words, 27)) * _signed(_MULTIPLIERS[1])
    return words ^ _shift_right(words, 31)


def hash_words(sample_seeds: Tensor, site: int) -> Tensor:
    """Return one random-looking 64-bit word per sample for one site.

    Args:
        sample_seeds: int64, any shape.
        site: a non-negative integer, distinct for each place that decides something.

    Returns:
        int64 of the shape of `sample_seeds`.
    """
    return _mix(_mix(sample_seeds + _signed(_GOLDEN)) + _signed((site + 1) * _GOLDEN))


def uniform(sample_seeds: Tensor, site: int) -> Tensor:
    """Return a number in [0, 1) per sample for one site, float32 of the shape of `sample_seeds`."""
    return _shift_right(hash_words(sample_seeds, site), 40).float() * 2.0**-24  # 24 bits fit a float32 exactly


def _word_per_patch(words: Tensor, count: int) -> Tensor:
    """Return one word per sample and patch, [B, count]; equal ones are as good as impossible."""
    return _mix(words[:, None] + torch.arange(1, count + 1, device=words.device) * _signed(_GOLDEN))


class DropPath(nn.Module):
    """Leaves a residual branch out for some samples in training and scales the others up (stochastic depth).

    Args:
        rate: share of samples that go without, in [0, 1).
        site: this place's number, distinct in the network.
    """

    def __init__(self, rate: float, *, site: int) -> None:
        super().__init__()
        self.rate, self.site = rate, site

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return the branch's output, zeros for samples that go without.

        Args:
            x: what the branch adds, [B, N, D].
            sample_seeds: int64 [B], or None for torch's generator.
        """
        if not self.training or self.rate == 0:
            return x
        draw = torch.rand(x.shape[0], device=x.device) if sample_seeds is None else uniform(sample_seeds, self.site)
        keep = (draw >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * keep[:, None, None]

    def extra_repr(self) -> str:
        """Say the rate when the module is printed."""
        return f"rate={self.rate:.3f}, site={self.site}"


class PatchDropout(nn.Module):
    """Lets each sample go on with a random subset of its patches in training, the same number for each.

    Args:
        rate: share of patches left out, in [0, 1); at least one patch stays.
        num_prefix_tokens: tokens in front that always stay.
    """

    def __init__(self, rate: float, *, num_prefix_tokens: int) -> None:
        super().__init__()
        self.rate, self.num_prefix_tokens = rate, num_prefix_tokens

    def choose(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor | None:
        """Return the numbers of the patches that stay, int64 [B, fewer] in an arbitrary order, or None for all.

        Args:
            x: tokens [B, N, D].
            sample_seeds: int64 [B], or None for torch's generator.
        """
        if not self.training or self.rate == 0:
            return None
        count = x.shape[1] - self.num_prefix_tokens
        if sample_seeds is None:
            order = torch.rand(x.shape[0], count, device=x.device)
        else:
            order = _word_per_patch(hash_words(sample_seeds, PATCH_SITE), count)
        return order.argsort(dim=1)[:, : max(1, int(count * (1 - self.rate)))]

    def keep(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return the prefix tokens and the patches numbered in `kept` [B, fewer] of tokens [B, N, D]."""
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        return torch.cat([prefix, patches.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))], dim=1)

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return the tokens that stay, [B, fewer, D]; attention does not see in which order.

        Args:
            x: tokens with their positions added, [B, N, D].
            sample_seeds: int64 [B], or None for torch's generator.
        """
        kept = self.choose(x, sample_seeds)
        return x if kept is None else self.keep(x, kept)

    def extra_repr(self) -> str:
        """Say the rate when the module is printed."""
        return f"rate={self.rate:.3f}"
