"""Every format through its real library: detected, converted, loaded strictly, equal in float64, and back.

The cases are in `cases_*.py` beside this file; `formats_helpers.py` says how to write one. Run with `-s` to see the
table of all of them: format, tensors in and out, largest error.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from formats_helpers import Case, ours_on

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.models import build_model
from vit_finetune.weights import convert_checkpoint, detect_format, read_source
from vit_finetune.weights.architecture import source_config
from vit_finetune.weights.conversion import converted_from, from_timm, to_timm
from vit_finetune.weights.formats import FORMATS


def all_cases() -> list[Case]:
    """Collect the cases of every module beside this one."""
    cases = []
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases += module.CASES
    return cases


CASES = all_cases()


@pytest.fixture(scope="module")
def table():
    """Collect one row per case and print them at the end."""
    rows = []
    yield rows
    print(f"\n{'case':<34} {'format':<24} {'in':>5} {'out':>5}  {'error':>8}  back")
    for row in rows:
        print("{:<34} {:<24} {:>5} {:>5}  {:>8.1e}  {}".format(*row))


def loaded(tensors, config):
    """Return our network of a config, in float64, with exactly these tensors."""
    model = build_model(config.updated({"weight_init": "skip"})).double()
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def difference(model, case, images, expected):
    """Return the largest absolute difference of our network to what the reference gave."""
    with torch.no_grad():
        value = ours_on(model, images, case.compare)
    assert value.shape == expected.shape
    return float((value - expected).abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_format__equals_its_library_and_comes_back(case, tmp_path, table):
    """A file of the library gives its outputs in our network, and becomes that file, or its function, again."""
    torch.manual_seed(0)
    reference, source = case.build(tmp_path)
    checkpoint = read_source(source)
    if case.detected:
        assert detect_format(checkpoint.tensors) == case.format
    else:
        with pytest.raises(RequestError, match=rf"fit several layouts \(.*\b{case.format}\b"):
            detect_format(checkpoint.tensors)
    layout = FORMATS[case.format]
    converted = converted_from(checkpoint, case.hints, source=case.format)
    config = source_config(checkpoint, converted, name=None, known={})

    images = torch.randn(2, config.in_chans, *case.img_size, dtype=torch.float64)
    with torch.no_grad():
        expected = case.forward(reference.double(), images)
    error = difference(loaded(converted.tensors, config), case, images, expected)
    table.append((case.name, case.format, len(checkpoint.tensors), len(converted.tensors), error, case.back))
    assert error <= case.tolerance

    if case.back == "refused":
        with pytest.raises(NotRepresentable):
            from_timm(converted.tensors, layout, config)
    elif case.back == "functional":
        again = to_timm(from_timm(converted.tensors, layout, config), layout, case.hints | config.to_mapping())
        assert difference(loaded(again.tensors, config), case, images, expected) <= case.tolerance
    elif case.back == "bitwise":
        again = from_timm(converted.tensors, layout, config, remainder=converted.remainder)
        lost = converted.dropped.keys() - converted.remainder.aside.keys()
        assert again.keys() == checkpoint.tensors.keys() - lost
        different = [name for name, value in again.items() if not torch.equal(value, checkpoint.tensors[name])]
        assert not different


@pytest.mark.parametrize("case", [case for case in CASES if case.back == "bitwise"], ids=lambda case: case.name)
def test_format__comes_back_from_disk(case, tmp_path):
    """Through two folders, a file becomes itself again: what timm has no place for and spellings included."""
    _, source = case.build(tmp_path)
    before = read_source(source)
    hints = {**case.hints, "img_size": case.img_size}
    try:
        report = convert_checkpoint(
            source, tmp_path / "ours", to="timm", source=case.format, config=hints, verify=False
        )
    except NotRepresentable as error:  # then there is no way out, and none back
        assert re.search("patch_norm_in=True|attn_head_dim=", str(error))
        return
    convert_checkpoint(tmp_path / "ours", tmp_path / "back", to=case.format, config=hints, verify=False)
    after = read_source(tmp_path / "back").tensors
    lost = report.dropped.keys() - set(report.set_aside)
    assert after.keys() == before.tensors.keys() - lost
    assert not [name for name, value in after.items() if not torch.equal(value, before.tensors[name])]


def test_formats__each_has_a_case():
    """No format is entered into the list without a model that proves it."""
    read = {name for name, layout in FORMATS.items() if "{rest}" not in layout.refuse}
    assert read == {case.format for case in CASES}
