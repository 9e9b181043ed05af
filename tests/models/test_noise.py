"""The noise of training: uniform, independent, and a function of nothing but seed and site."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_helpers import images, small

from vit_finetune.models.noise import DropPath, PatchDropout, hash_words, uniform

SAMPLES = 1 << 16
SEEDS = {
    "consecutive": torch.arange(SAMPLES),
    "strided": torch.arange(SAMPLES) * (1 << 40) - (1 << 55),
    "random": torch.from_numpy(np.random.default_rng(0).integers(0, 2**63 - 1, SAMPLES)),
}


def test_hash_words__equals_splitmix64_by_hand():
    """The tensor arithmetic is the unsigned arithmetic of the definition, overflow and all."""

    def mix(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    golden, seeds = 0x9E3779B97F4A7C15, [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    for site in (0, 1, 17):
        want = [mix((mix((seed + golden) % 2**64) + (site + 1) * golden) % 2**64) for seed in seeds]
        got = [word % 2**64 for word in hash_words(torch.tensor(seeds), site).tolist()]
        assert got == want


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS.keys())
def test_uniform__is_uniform(seeds):
    """Chi-square over 256 bins, for seeds of any pattern and several sites (threshold: 1 in 10^6)."""
    for site in (0, 1, 2, 49):
        draws = uniform(seeds, site)
        assert draws.min() >= 0 and draws.max() < 1
        counts = torch.histc(draws.double(), bins=256, min=0, max=1)
        chi_square = ((counts - SAMPLES / 256) ** 2 / (SAMPLES / 256)).sum()
        assert 155 < chi_square < 372


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS.keys())
def test_uniform__sites_and_samples_are_independent(seeds):
    """Correlations between sites, and between neighbours in the list of seeds, are those of chance (5 sigma)."""
    draws = torch.stack([uniform(seeds, site) for site in range(12)]).double() - 0.5
    bound = 5 / SAMPLES**0.5
    between_sites = torch.corrcoef(draws) - torch.eye(12)
    assert between_sites.abs().max() < bound
    for lag in (1, 2, 64):
        neighbours = (draws[:, lag:] * draws[:, :-lag]).mean(dim=1) * 12
        assert neighbours.abs().max() < bound
    kept = (draws > 0).double()  # decisions of two sites, jointly: each of the four outcomes a quarter
    assert abs((kept[0] * kept[1]).mean() - 0.25) < bound


def test_drop_path__rate_and_scale():
    """The share of dropped samples is the rate, the others are scaled so that the mean stays."""
    layer = DropPath(0.3, site=5).train()
    out = layer(torch.ones(SAMPLES, 1, 1), SEEDS["consecutive"]).flatten()
    assert abs((out == 0).float().mean() - 0.3) < 5 * (0.21 / SAMPLES) ** 0.5
    torch.testing.assert_close(out[out != 0].unique(), torch.tensor([1 / 0.7]))
    assert torch.equal(layer.eval()(torch.ones(2, 1, 1), torch.tensor([1, 2])), torch.ones(2, 1, 1))


def test_drop_path__without_seeds_uses_torchs_generator():
    """Without seeds the global generator decides, as in timm; with seeds it is left alone."""
    layer, x = DropPath(0.5, site=1).train(), torch.ones(64, 1, 1)
    torch.manual_seed(0)
    first = layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first)
    state = torch.random.get_rng_state()
    layer(x, torch.arange(64))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_patch_dropout__same_number_each_and_each_patch_alike():
    """timm's keep count for every sample, prefix untouched, and no patch favoured over another."""
    num_patches, batch = 20, 4096
    layer = PatchDropout(0.3, num_prefix_tokens=2).train()
    x = torch.arange(2 + num_patches).float()[None, :, None].expand(batch, -1, 1)
    out = layer(x, torch.arange(batch))[:, :, 0]
    assert out.shape == (batch, 2 + 14)
    assert torch.equal(out[:, :2], x[:, :2, 0])
    assert all(len(set(row)) == 16 for row in out[:64].tolist())
    share = torch.bincount(out[:, 2:].long().flatten(), minlength=22)[2:] / batch
    assert (share - 0.7).abs().max() < 5 * (0.21 / batch) ** 0.5
    assert PatchDropout(0.99, num_prefix_tokens=0).train()(x, torch.arange(batch)).shape[1] == 1


def test_forward__decisions_follow_the_sample_not_the_batch():
    """A sample's logits in training depend on its own seed alone: not on its place, neighbours or batch size."""
    model = small("vit_small_patch16_18x2_224", drop_path_rate=0.5, patch_drop_rate=0.4, depth=4).train()
    x, seeds = images(model.config, batch=6), torch.tensor([3, 1, 4, 15, 92, 65])
    together = model(x, sample_seeds=seeds)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    torch.testing.assert_close(model(x[order], sample_seeds=seeds[order]), together[order])
    for index in range(6):
        alone = model(x[index : index + 1], sample_seeds=seeds[index : index + 1])
        torch.testing.assert_close(alone, together[index : index + 1])
    assert not torch.allclose(model(x, sample_seeds=seeds + 1), together)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"])
def test_sites__are_distinct_and_rates_rise(name):
    """No two branches share a site, and the rates rise linearly from 0 to drop_path_rate."""
    model = small(name, drop_path_rate=0.3, depth=4)
    layers = [module for module in model.modules() if isinstance(module, DropPath)]
    assert len({layer.site for layer in layers} | {0}) == len(layers) + 1
    assert sorted({round(layer.rate, 12) for layer in layers}) == [0.0, 0.1, 0.2, 0.3]
