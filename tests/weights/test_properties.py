"""What holds for every format and any network: there and back, in any order, and one right error for one wrong tensor.

Networks are drawn from what a format says it holds, so that a claim too many fails here.
"""

from __future__ import annotations

import pytest
import torch
from convert_helpers import NAMES, hints_of, network_for, options
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vit_finetune import RequestError, convert_state_dict, detect_format
from vit_finetune.weights.conversion import to_timm
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.lazy import Plan, lazily
from vit_finetune.weights.network import network_of
from vit_finetune.weights.reading import plan_to_timm

PROFILE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=5,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Whose constants are folded into weights, each rounded once.
FOLDED = ("zuppichini", "zuppichini_separate_scaled_after", "zuppichini_separate_scaled_by_width")
# What such files are detected as, where it isn't their own name.
DETECTED = {
    "facebook_mae": "timm",  # an encoder without the decoder has timm's names
    "openai_clip": "open_clip",  # the sizes that tell OpenAI's files are of the text tower too
}
AMBIGUOUS = "zuppichini_separate"


def fields_for(name, *, depths=(1, 2)):
    """Return the strategy of a network's fields that a format says it holds."""
    sizes = {
        "num_heads": [1, 2, 4],
        "embed_dim": [8, 16, 24],
        "depth": depths,
        "patch_size": [(2, 2), (4, 4)],
        "img_size": [(8, 8), (8, 8), (8, 12)],
        "num_classes": [3, 0],
        "mlp_ratio": [2.0, 1.0, 1.5],
    }
    return st.fixed_dictionaries({field: st.sampled_from(values) for field, values in (options(name) | sizes).items()})


@PROFILE
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_round_trip__any_network_in_any_order(name, data):
    """To a format and back is bitwise, whatever the order of the tensors; the network is read off what was written."""
    found = network_for(name, data.draw(fields_for(name)))
    assume(found is not None)
    config, ours, theirs = found
    shuffled = {key: theirs[key] for key in data.draw(st.permutations(list(theirs)))}
    if not name.startswith(AMBIGUOUS):
        assert detect_format(shuffled) == DETECTED.get(name, name)
    back = to_timm(shuffled, FORMATS[name], hints_of(config))
    added = back.tensors.keys() - ours.keys()
    assert ours.keys() <= back.tensors.keys()
    assert all(".ls" in key and bool((back.tensors[key] == 1).all()) for key in added)  # a LayerScale that does nothing
    for key, value in ours.items():
        if name in FOLDED:
            torch.testing.assert_close(back.tensors[key], value, rtol=3e-7, atol=0)
        else:
            assert torch.equal(back.tensors[key], value), key
    told = network_of(Plan(lazily(back.tensors), fields=back.fields), FORMATS[name], stated=None)
    for field, value in config.to_mapping().items():
        if field != "init_values" and (field != "no_embed_class" or config.num_prefix_tokens):
            assert told.to_mapping()[field] == value, field


BREAKS = {
    "missing": lambda value: None,
    "misshapen": lambda value: torch.cat([value, value[:1]]),
    "integers": lambda value: (10 * value).long(),
    "NaN": lambda value: torch.full_like(value, torch.nan),
}
_CLIP_HEADS = ("visual.proj", "visual.head.proj.weight", "visual_projection.weight")


@PROFILE
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_broken__one_tensor_is_one_error_that_names_it(name, data):
    """A tensor that is missing, misshapen, of integers or NaN, or one too many: refused, and the message says which.

    What is missing or misshapen is named itself, or what then contradicts it is: the layer's other tensor, the count
    of positions. One thing can't be told: a CLIP tower whose projection, a head of one tensor, is gone is a tower
    without one.
    """
    found = network_for(name, data.draw(fields_for(name, depths=(2,))))
    assume(found is not None)
    config, _, theirs = found
    layout, hints = FORMATS[name], hints_of(config)
    plan = plan_to_timm(lazily(theirs), layout, hints)
    key = data.draw(st.sampled_from(sorted(theirs.keys() - plan.dropped.keys())))
    kind = data.draw(st.sampled_from([*BREAKS, "extra"]))
    assume(theirs[key].numel() and not (kind == "missing" and key in _CLIP_HEADS))
    broken = dict(theirs)
    if kind == "extra":
        broken[f"{key}_too"] = theirs[key]
    elif kind == "missing":
        del broken[key]
    else:
        broken[key] = BREAKS[kind](theirs[key])
    with pytest.raises(RequestError) as caught:
        convert_state_dict(broken, to=name, source=name, config=hints)
    assert any(word in str(caught.value) for word in _words_for(key, kind, plan, layout)), (kind, key)


def _words_for(key, kind, plan, layout):
    """Return what a message may call a tensor: the file's name, ours, or what contradicts it then."""
    if kind == "extra":
        return {f"{key}_too"}
    bare = next((key.removeprefix(prefix) for prefix in layout.prefixes if key.startswith(prefix)), key)
    words = {bare, *(target for target, lazy in plan.tensors.items() if key in lazy.sources)}
    if kind in {"missing", "misshapen"}:
        words |= {word.rpartition(".")[0] for word in words if "." in word}
        words |= {"class and register tokens", "no register tokens"} if "token" in key else set()
        # The width is read off the patches' weight: with another one, everything else is wrong.
        words |= {"embed_dim", "of another shape"} if "patch_embed.proj.weight" in words else set()
    return words
