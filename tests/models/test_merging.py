"""Token merging: who merges with whom, what a merged token counts for, and which networks can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models_helpers import images, small
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models import KNNReadout, MergedTokens, ReadoutModel, VisionTransformer
from vit_finetune.models.merging import TokenMerging, match_tokens

CLASS, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
AVERAGED, MAPPED = "vit_so150m_patch16_reg4_gap_256", "vit_base_patch16_siglip_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"
FAMILIES = (CLASS, DISTILLED, AVERAGED, MAPPED, REGISTERS)


def without_places(name: str, **overrides: Any) -> VisionTransformer:
    """Return a small network for which equal patches are equal tokens."""
    model = small(name, **overrides)
    with torch.no_grad():
        model.pos_embed.zero_()
    return model


def picture(model: VisionTransformer, kinds: list[int], *, batch: int = 2) -> Tensor:
    """Return pictures whose patches are of these kinds, row by row: those of one kind are equal."""
    height, width = model.config.patch_size
    rows, columns = model.config.grid_size
    generator = torch.Generator().manual_seed(3)
    looks = torch.randn(max(kinds) + 1, batch, 3, height, width, generator=generator, dtype=torch.float64)
    patches = looks[kinds].reshape(rows, columns, batch, 3, height, width)
    return patches.permute(2, 3, 0, 4, 1, 5).reshape(batch, 3, rows * height, columns * width)


@torch.no_grad()
def largest_difference(model: VisionTransformer, x: Tensor, merge_tokens: int) -> float:
    """Return how far the logits with merged tokens are from the network's own."""
    return float((MergedTokens(model, merge_tokens)(x) - model(x)).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("merge_tokens", [1, 4, 99])
def test_merging__equal_tokens_merge_without_loss(name: str, merge_tokens: int) -> None:
    """Of a picture whose patches are all equal any number may merge, block after block: the logits stay.

    That needs attention to count a token as what it holds, beside prefix tokens of size 1, and pooling to weigh it so.
    """
    model = without_places(name, depth=3)
    x = picture(model, [0] * (model.config.num_tokens - model.num_prefix_tokens))
    assert largest_difference(model, x, merge_tokens) < 1e-12


@pytest.mark.parametrize(("name", "depth"), [(CLASS, 2), (DISTILLED, 2), (REGISTERS, 2), (AVERAGED, 1), (MAPPED, 1)])
def test_merging__takes_the_equal_pairs(name: str, depth: int) -> None:
    """Where three pairs of twelve patches are equal, merging three finds them, with sizes 1 and 2 side by side; one
    more merges what differs.
    """
    model = without_places(name, depth=depth)
    x = picture(model, [0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8])
    assert largest_difference(model, x, 3) < 1e-12
    assert largest_difference(model, x, 4) > 1e-6


def restated(keys: np.ndarray, x: np.ndarray, sizes: np.ndarray, *, prefix: int, num: int) -> tuple[np.ndarray, ...]:
    """Return tokens, sizes and places after one merge of one picture, by the paper's words and plain loops."""
    count = len(keys)
    first, second = ([i for i in range(prefix, count) if i % 2 == parity] for parity in (0, 1))
    edges = []
    for i in first:
        cosines = [keys[i] @ keys[j] / np.linalg.norm(keys[i]) / np.linalg.norm(keys[j]) for j in second]
        edges.append((max(cosines), i, second[int(np.argmax(cosines))]))
    gone = {i: j for _, i, j in sorted(edges, key=lambda edge: -edge[0])[:num]}
    left = [*range(prefix), *(i for i in first if i not in gone), *second]
    groups = [[token, *(i for i, j in gone.items() if j == token)] for token in left]
    held = np.array([sizes[group].sum() for group in groups])
    merged = np.array([(sizes[group, None] * x[group]).sum(axis=0) for group in groups]) / held[:, None]
    places = np.array([next(n for n, group in enumerate(groups) if token in group) for token in range(count)])
    return merged, held, places


@pytest.mark.parametrize(("prefix", "num"), [(0, 1), (1, 3), (2, 2), (5, 5), (1, 6)])
def test_merging__equals_plain_loops(prefix: int, num: int) -> None:
    """Two merges in a row give the tokens, sizes and places of an independent statement in numpy."""
    generator = torch.Generator().manual_seed(prefix + num)
    count = prefix + 13
    x = torch.randn(3, count, 6, generator=generator, dtype=torch.float64)
    merging = TokenMerging(num, num_prefix_tokens=prefix)
    theirs = [(row, np.ones(count), np.arange(count)) for row in x.numpy()]
    for _ in range(2):
        keys = torch.randn(3, 2, x.shape[1], 4, generator=generator, dtype=torch.float64)
        bias = merging.look(keys)
        assert bias is None or torch.equal(bias[:, 0, 0].exp().round(), merging.sizes)
        most = min(num, (x.shape[1] - prefix) // 2)
        x = merging.merge(x)
        for row, (tokens, sizes, places) in enumerate(theirs):
            mean = keys[row].mean(dim=0).numpy()
            merged, held, moved = restated(mean, tokens, sizes, prefix=prefix, num=most)
            theirs[row] = merged, held, moved[places]
            np.testing.assert_allclose(x[row], merged, atol=1e-12)
            np.testing.assert_allclose(merging.sizes[row], held)  # type: ignore[index]
            np.testing.assert_array_equal(merging.places[row], moved[places])  # type: ignore[index]
    spread = merging.spread(x)
    assert spread.shape[1] == count
    for row, (tokens, sizes, _) in enumerate(theirs):
        weighted = (tokens * sizes[:, None]).sum(axis=0) / count
        np.testing.assert_allclose(spread[row].mean(dim=0), weighted, atol=1e-12)


@pytest.mark.parametrize("name", [CLASS, AVERAGED])
def test_merging__counts_and_the_short_last_block(name: str) -> None:
    """Each block loses r patches, never more than half of them; the last block of a class token makes it alone."""
    model = small(name, depth=4)
    seen: list[tuple[int, int]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[1], out.shape[1])))
    prefix, alone = model.num_prefix_tokens, model.num_pooled_tokens
    MergedTokens(model, 4)(images(model.config))
    patches = [(12, 8), (8, 4), (4, 2), (2, 1)]
    expected = [(before + prefix, after + prefix) for before, after in patches]
    assert seen == [*expected[:3], (expected[3][0], alone or expected[3][1])]


@pytest.mark.parametrize("name", FAMILIES)
def test_merging__short_last_block_changes_nothing(name: str) -> None:
    """Logits are those of all tokens made in the last block, too, which `forward_features` gives."""
    model = small(name, depth=3)
    merged, x = MergedTokens(model, 3), images(model.config)
    tokens = merged.forward_features(x)
    assert tokens.shape == model.forward_features(x).shape
    assert len(tokens[0, model.num_prefix_tokens :].round(decimals=9).unique(dim=0)) < 12, "nothing was merged"
    torch.testing.assert_close(merged.forward_head(tokens), merged(x), atol=1e-12, rtol=0)


def test_merging__a_picture_does_not_depend_on_its_batch() -> None:
    """Logits of pictures together, in another order and alone are the same, and so is a second time, bit for bit."""
    model = small(CLASS, depth=3)
    merged, x = MergedTokens(model, 3), images(model.config, batch=4)
    whole = merged(x)
    assert torch.equal(merged(x), whole)
    torch.testing.assert_close(merged(x.flip(0)).flip(0), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat([merged(row[None]) for row in x]), whole, atol=1e-12, rtol=0)


def test_merging__matches_in_full_precision_under_autocast() -> None:
    """bfloat16 would call near cosines equal; under autocast the pairs are those of float32."""
    keys = torch.randn(2, 65, 8, generator=torch.Generator().manual_seed(0)) * 0.01 + 1
    plain = match_tokens(keys, 16, num_prefix_tokens=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = match_tokens(keys, 16, num_prefix_tokens=1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(coarse, plain, strict=True))


def test_merging__counts_exactly_in_bfloat16() -> None:
    """401 tokens become 1 + 1, and the sizes still add up: bfloat16 itself has no 257."""
    merging, x = TokenMerging(400, num_prefix_tokens=1), torch.ones(2, 401, 4, dtype=torch.bfloat16)
    while x.shape[1] > 2:
        merging.look(x[:, None])
        x = merging.merge(x)
    assert x.dtype == torch.bfloat16
    assert merging.sizes is not None
    assert merging.sizes.tolist() == [[1, 400]] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_small_patch16_rope_224", "for plain ViTs, and this is a ViT with rotary positions"),
        ("beit_base_patch16_224", "for plain ViTs, and this is a ViT with relative positions"),
        ("vit_base_patch16_rpn_224", "block_fn res_post with attn_layer attention"),
        ("vit_dwee_patch16_reg1_gap_256", "block_fn block with attn_layer diff"),
    ],
)
def test_merging__refuses_other_families(name: str, message: str) -> None:
    """Networks whose blocks know no merged tokens are refused in one line."""
    with pytest.raises(RequestError, match=message):
        MergedTokens(small(name), 2)


def test_merging__refuses_no_tokens_and_readouts() -> None:
    """A number that merges nothing, and a readout of several blocks, are refused."""
    model = small(CLASS)
    with pytest.raises(RequestError, match="merge_tokens is -1; give a number of tokens above 0"):
        MergedTokens(model, -1)
    readout = KNNReadout([("cls", 0)], num_features=4, num_classes=2, num_stored=3, k=1, temperature=0.1)
    with pytest.raises(RequestError, match="networks that pool their last tokens"):
        MergedTokens(ReadoutModel(model, readout, layout=None, num_classes=2), 2)  # type: ignore[arg-type]
