"""Folders in, folders out: what the other library opens, proven there, whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from formats_helpers import randomize
from PIL import Image
from safetensors.torch import load_file, save_file
from weights_helpers import NAMES, save_folder, tiny

from vit_finetune import (
    NotRepresentable,
    RequestError,
    WorkError,
    convert_checkpoint,
    from_pretrained,
    picture_batches,
)
from vit_finetune.weights import diff_checkpoints, read_source
from vit_finetune.weights.lazy import lazily
from vit_finetune.weights.writers import write_safetensors, write_tensors

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
LABELS = {0: "ant", 1: "bee", 2: "cat"}


@pytest.fixture
def hf_folder(tmp_path):
    """Save a small classifier as transformers' users do, with labels and an image processor."""
    import transformers

    config = transformers.ViTConfig(**SIZES, id2label=LABELS, label2id={name: k for k, name in LABELS.items()})
    randomize(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "hf")
    transformers.ViTImageProcessor(size=32, resample=3).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def logits_of(folder, images):
    """Run a folder of transformers' by transformers."""
    import transformers

    model = transformers.ViTForImageClassification.from_pretrained(folder, attn_implementation="sdpa")
    return model.eval()(images).logits


@torch.no_grad()
def test_convert_checkpoint__timm_opens_the_result(hf_folder, tmp_path):
    """timm builds the network from the folder alone, with labels and preprocessing, and computes the same."""
    report = convert_checkpoint(hf_folder, tmp_path / "timm", to="timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), logits_of(hf_folder, images), atol=1e-5, rtol=1e-5)
    assert list(model.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5]
    assert model.pretrained_cfg["label_names"] == list(LABELS.values())
    assert report.verification.by == ("vit_finetune", "timm")
    assert report.verification.max_abs_difference < 1e-5
    assert report.verification.top1_agreement == 1.0


@torch.no_grad()
def test_convert_checkpoint__transformers_opens_the_result(hf_folder, tmp_path):
    """There and back is the file that transformers wrote, bitwise, with its labels and preprocessing."""
    import transformers

    convert_checkpoint(hf_folder, tmp_path / "timm", to="timm", verify=False)
    report = convert_checkpoint(tmp_path / "timm", tmp_path / "back", to="hf_vit")
    before, after = (load_file(folder / "model.safetensors") for folder in (hf_folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert report.verification.by == ("vit_finetune", "transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "back")
    assert model.config.id2label == LABELS
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]
    assert dict(processor.size) == {"height": 32, "width": 32}


@torch.no_grad()
def test_convert_checkpoint__torchvision_opens_the_result(hf_folder, tmp_path):
    """`load_state_dict(strict=True)` takes the file, and the logits agree."""
    from torchvision.models import VisionTransformer

    convert_checkpoint(hf_folder, tmp_path / "tv", to="torchvision")
    model = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=3).eval()
    model.load_state_dict(torch.load(tmp_path / "tv" / "model.pth", weights_only=True), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), logits_of(hf_folder, images), atol=1e-5, rtol=1e-5)


def test_convert_checkpoint__tells_the_fate_of_every_tensor(hf_folder, tmp_path):
    """`conversion.json` holds source, target, operation, shape, type and hash of each tensor, and the proof."""
    report = convert_checkpoint(hf_folder, tmp_path / "out", to="timm")
    told = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert told == json.loads(json.dumps(report.to_mapping()))
    rows = {row["target"]: row for row in told["tensors"]}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert rows.keys() == written.keys()
    fused = rows["blocks.0.attn.qkv.weight"]
    assert len(fused["sources"]) == 3
    assert fused["shape"] == [96, 32]
    assert fused["operation"] == "qkv o ... -> (qkv o) ..."
    assert rows["cls_token"]["operation"] == "as it is"
    sources = {name for row in rows.values() for name in row["sources"]}
    assert sources == load_file(hf_folder / "model.safetensors").keys()
    assert len({row["sha256"] for row in rows.values()}) == len(rows)
    assert "hf_vit -> timm, 32 tensors written" in report.lines()[0]
    assert len(report.table_lines()) == 32


@torch.no_grad()
def test_convert_checkpoint__another_size_is_the_librarys(hf_folder, tmp_path):
    """At another picture size the result gives what transformers gives with interpolated positions, and loads there."""
    import transformers

    convert_checkpoint(hf_folder, tmp_path / "large", to="hf_vit", img_size=48)
    images = torch.randn(2, 3, 48, 48)
    old = transformers.ViTForImageClassification.from_pretrained(hf_folder, attn_implementation="sdpa").eval()
    expected = old(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(logits_of(tmp_path / "large", images), expected, atol=1e-5, rtol=1e-5)
    processor = json.loads((tmp_path / "large" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 48, "width": 48}


def test_convert_checkpoint__shards_types_and_heads(hf_folder, tmp_path):
    """Shards in and out, another type, and no head: transformers opens them."""
    import transformers

    out = tmp_path / "shards"
    report = convert_checkpoint(hf_folder, out, to="hf_vit", dtype="bf16", max_shard_size="20KB", head="drop")
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert {row.dtype for row in report.tensors} == {"bfloat16"}
    assert transformers.AutoModel.from_pretrained(out).config.architectures == ["ViTModel"]
    again = convert_checkpoint(out, tmp_path / "one", to="hf_vit", verify=False)
    assert again.files == ("config.json", "model.safetensors", "preprocessor_config.json", "conversion.json")
    with pytest.raises(RequestError, match="timm reads no weights in several files"):
        convert_checkpoint(hf_folder, tmp_path / "no", to="timm", max_shard_size="1GB")


@pytest.mark.parametrize(("dtype", "least", "most"), [("fp16", 1e-6, 1e-2), ("bf16", 1e-4, 1e-1)])
def test_convert_checkpoint__the_proof_shows_what_a_type_costs(hf_folder, tmp_path, dtype, least, most):
    """The source's side is computed from the source's own values, so that rounding to fewer bits is measured."""
    report = convert_checkpoint(hf_folder, tmp_path / "out", to="hf_vit", dtype=dtype)
    assert least < report.verification.max_abs_difference < most


def test_convert_checkpoint__says_where_the_caller_knows_better(hf_folder, tmp_path):
    """A hint that contradicts the source's configuration is done and said; one that repeats it is not."""
    hints = {"act": "gelu_tanh", "num_heads": 4}
    report = convert_checkpoint(hf_folder, tmp_path / "out", to="timm", config=hints, verify=False)
    said = [note for note in report.notes if "asked for" in note]
    assert said == ["act_layer='gelu_tanh' was asked for; the source itself says 'gelu'"]


def test_convert_checkpoint__assumed_preprocessing_is_said(hf_folder, tmp_path):
    """timm's configuration holds a preprocessing always; where nothing tells it, a note says that it is a default."""
    told = convert_checkpoint(hf_folder, tmp_path / "told", to="timm", verify=False)
    (hf_folder / "preprocessor_config.json").unlink()
    untold = convert_checkpoint(hf_folder, tmp_path / "untold", to="timm", verify=False)
    said = "nothing tells the preprocessing: timm's config.json, which must, says ImageNet's"
    assert (said in told.notes, said in untold.notes) == (False, True)


def test_convert_checkpoint__sets_aside_what_has_no_place(tmp_path):
    """A mask token is kept beside the result, and said."""
    import transformers

    config = transformers.Dinov2Config(**{key: SIZES[key] for key in SIZES if key != "intermediate_size"})
    randomize(transformers.Dinov2Model(config)).save_pretrained(tmp_path / "dinov2")
    report = convert_checkpoint(tmp_path / "dinov2", tmp_path / "timm", to="timm")
    assert report.set_aside == ("embeddings.mask_token",)
    kept = load_file(tmp_path / "timm" / "set_aside.safetensors")
    assert torch.equal(
        kept["embeddings.mask_token"], load_file(tmp_path / "dinov2" / "model.safetensors")["embeddings.mask_token"]
    )
    assert report.verification.compared == "tokens"


@torch.no_grad()
def test_convert_checkpoint__keeps_a_head_of_the_librarys_own(tmp_path):
    """DINOv2's wide classifier: into its own format, or through timm and back, transformers gives the same logits."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    sizes = {key: SIZES[key] for key in SIZES if key != "intermediate_size"}
    model = randomize(Dinov2ForImageClassification(Dinov2Config(**sizes, id2label=LABELS)))
    model.save_pretrained(tmp_path / "theirs")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "again", to="hf_dinov2")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "timm", to="timm")
    report = convert_checkpoint(tmp_path / "timm", tmp_path / "back", to="hf_dinov2")
    assert report.verification.by == ("vit_finetune", "transformers")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    for name in ("again", "back"):
        after = load_file(tmp_path / name / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        opened = Dinov2ForImageClassification.from_pretrained(tmp_path / name).eval()
        torch.testing.assert_close(opened(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)
        assert opened.config.id2label == LABELS
    convert_checkpoint(tmp_path / "theirs", tmp_path / "bare", to="hf_dinov2", head="drop")
    bare = load_file(tmp_path / "bare" / "model.safetensors")
    assert bare.keys() == {name.removeprefix("dinov2.") for name in before if not name.startswith("classifier.")}


def test_convert_checkpoint__another_network_beside_an_old_report(tmp_path):
    """Weights that were put into a result's folder afterwards don't get what was set aside of others."""
    import transformers

    config = transformers.Dinov2Config(**{key: SIZES[key] for key in SIZES if key != "intermediate_size"})
    randomize(transformers.Dinov2Model(config)).save_pretrained(tmp_path / "theirs")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "timm", to="timm", verify=False)
    state = load_file(tmp_path / "timm" / "model.safetensors")
    state["pos_embed"] = torch.cat([state["pos_embed"], state["pos_embed"][:, 1:2]], dim=1)
    save_file(state, tmp_path / "timm" / "model.safetensors")
    notes = read_source(tmp_path / "timm").notes
    assert notes == ("conversion.json is about other tensors than the weights beside it and was left aside",)
    (tmp_path / "timm" / "conversion.json").write_text("{}")
    with pytest.raises(RequestError, match="conversion.json is not what a conversion of this version wrote"):
        read_source(tmp_path / "timm")


def test_convert_checkpoint__what_timms_json_cannot_say_is_said(tmp_path):
    """An epsilon of 1e-12 is noted, and read back by us from the header."""
    import transformers

    config = transformers.ViTConfig(**{**SIZES, "layer_norm_eps": 1e-12}, num_labels=3)
    randomize(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "hf")
    report = convert_checkpoint(tmp_path / "hf", tmp_path / "timm", to="timm")
    assert any("can't say norm_eps=1e-12" in note for note in report.notes)
    model, _ = from_pretrained(tmp_path / "timm")
    assert model.config.norm_eps == 1e-12


def test_convert_checkpoint__never_half(hf_folder, tmp_path):
    """A failure in the middle leaves nothing, and a result in place is replaced only when asked, and only if ours."""
    state = load_file(hf_folder / "model.safetensors")
    state["vit.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(state, hf_folder / "model.safetensors")
    with pytest.raises(RequestError, match="NaN"):
        convert_checkpoint(hf_folder, tmp_path / "out", to="timm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]

    save_folder(tmp_path / "good")
    convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_vit", verify=False)
    with pytest.raises(RequestError, match="exists already"):
        convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_vit", verify=False)
    convert_checkpoint(tmp_path / "good", tmp_path / "out", to="timm", verify=False, overwrite=True)
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    with pytest.raises(RequestError, match="no folder that a conversion wrote"):
        convert_checkpoint(tmp_path / "good", hf_folder, to="timm", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "hf", "out"]


def test_convert_checkpoint__dry_run_writes_nothing(tmp_path):
    """A dry run refuses what the real one would, and leaves the disk as it was."""
    save_folder(tmp_path / "good")
    report = convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_vit", dry_run=True)
    assert report.lines()[1] == "nothing written (dry run)"
    with pytest.raises(NotRepresentable, match="hf_deit has no words for this network: reg_tokens=0"):
        convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_deit", dry_run=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


def test_convert_checkpoint__a_wrong_result_is_not_kept(tmp_path, monkeypatch):
    """If the library computed something else, the folder would not appear."""
    from dataclasses import replace

    from vit_finetune.weights.formats import FORMATS

    save_folder(tmp_path / "good")
    wrong = replace(FORMATS["hf_vit"], reference=lambda folder, config: lambda images: torch.zeros(len(images), 5))
    monkeypatch.setitem(FORMATS, "hf_vit", wrong)
    with pytest.raises(WorkError, match="transformers computes something else"):
        convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_vit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


def save_pictures(folder, *, count=3):
    """Save small random pictures of several sizes."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_convert_checkpoint__compares_on_given_pictures_too(hf_folder, tmp_path, monkeypatch):
    """Given pictures go through both sides after the source's own preprocessing, and a difference on them counts."""
    from dataclasses import replace

    from vit_finetune.weights.formats import FORMATS

    pictures = picture_batches(save_pictures(tmp_path / "pictures"), batch_size=2)
    report = convert_checkpoint(hf_folder, tmp_path / "timm", to="timm", verify_images=pictures)
    assert report.verification.images == "4 random and 3 given pictures of 32x32 pixels"
    assert report.verification.top1_agreement == 1.0
    told = json.loads((tmp_path / "timm" / "conversion.json").read_text())["verification"]
    assert told["images"] == report.verification.images and told["max_abs_difference"] < 1e-5

    right = FORMATS["timm"].reference

    def reference(folder, config):
        forward = right(folder, config)
        return lambda images: forward(images) if len(images) == 4 else forward(images) + 1

    monkeypatch.setitem(FORMATS, "timm", replace(FORMATS["timm"], reference=reference))
    with pytest.raises(WorkError, match="timm computes something else"):
        convert_checkpoint(hf_folder, tmp_path / "wrong", to="timm", verify_images=pictures)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        (torch.zeros(2, 3, 16, 16), {}, r"float32 \[2, 3, 16, 16\]; the network takes floats \[B, 3, 64, 64\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), {}, "are torch.uint8"),
        ("folder", {}, "verify_images is a str; give a batch of pictures, or picture_batches"),
        (torch.zeros(2, 3, 32, 32), {"verify": False}, "need a result and a comparison"),
        (torch.zeros(2, 3, 32, 32), {"dry_run": True}, "need a result and a comparison"),
    ],
)
def test_convert_checkpoint__wrong_pictures(tmp_path, pictures, options, message):
    """Pictures that can't be compared on are refused, and nothing appears."""
    save_folder(tmp_path / "good")
    with pytest.raises(RequestError, match=message):
        convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_vit", verify_images=pictures, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype='fp8' is none of fp32, fp16, bf16"),
        ({"pos_embed": "nearest"}, "pos_embed='nearest' is none of bicubic, bilinear, hf"),
        ({"head": "match"}, "head='match' is none of keep, drop"),
        ({"max_shard_size": "5"}, "max_shard_size='5' is no size"),
        ({"img_size": 4}, "larger than img_size"),
    ],
)
def test_convert_checkpoint__wrong_options(tmp_path, options, message):
    """Each mistake is one line, and nothing appears."""
    save_folder(tmp_path / "good")
    with pytest.raises(RequestError, match=message):
        convert_checkpoint(tmp_path / "good", tmp_path / "out", to="hf_vit", verify=False, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


def test_diff_checkpoints__across_formats(hf_folder, tmp_path):
    """A conversion differs in nothing; one changed value is found by name and size."""
    convert_checkpoint(hf_folder, tmp_path / "tv", to="torchvision", verify=False)
    assert {row.what for row in diff_checkpoints(hf_folder, tmp_path / "tv")} == {"equal"}
    state = torch.load(tmp_path / "tv" / "model.pth", weights_only=True)
    state["encoder.ln.bias"][2] += 0.5
    torch.save(state, tmp_path / "changed.pth")
    changed = [row for row in diff_checkpoints(hf_folder, tmp_path / "changed.pth") if row.what != "equal"]
    assert [row.name for row in changed] == ["norm.bias"]
    assert changed[0].max_abs_difference == pytest.approx(0.5)
    other = tiny(embed_dim=48)
    save_folder(tmp_path / "other", other)
    kinds = {row.what for row in diff_checkpoints(hf_folder, tmp_path / "other")}
    assert kinds == {"shape"}


def test_write_safetensors__is_the_librarys_bytes(tmp_path):
    """A streamed file equals what `save_file` writes, byte for byte, whatever the types."""
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7).half(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bf": torch.randn(2, 2).bfloat16(),
        "i": torch.arange(5),
    }
    write_safetensors(tmp_path / "ours.safetensors", lazily(tensors), metadata={"format": "pt"})
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["model.npz", "model.pth"])
def test_write_tensors__other_kinds_of_files(tmp_path, file):
    """numpy and torch read what was streamed; equal tensors give equal files; nothing else is left behind."""
    tensors = {"a/b": torch.randn(3, 5), "c": torch.randn(2).half(), "e": torch.zeros(0, 2)}
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        digests = write_tensors(folder, file, lazily(tensors), metadata={}, max_shard_size=None)
        assert digests.keys() == tensors.keys()
        assert [path.name for path in folder.iterdir()] == [file]
    path = tmp_path / "1" / file
    read = np.load(path, allow_pickle=False) if file.endswith("npz") else torch.load(path, weights_only=True)
    assert all(torch.equal(torch.as_tensor(read[name]), value) for name, value in tensors.items())
    assert path.read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_write_tensors__bfloat16_as_jax_saves_it(tmp_path):
    """`numpy.savez` of JAX's own bfloat16 arrays holds the same bytes, and our reader gives the tensors again."""
    import ml_dtypes

    tensors = {"a/kernel": torch.randn(3, 5).bfloat16(), "scalar": torch.tensor(1.5).bfloat16()}
    write_tensors(tmp_path, "model.npz", lazily(tensors), metadata={}, max_shard_size=None)
    arrays = {name: value.float().numpy().astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    np.savez(tmp_path / "jax.npz", **arrays)
    ours, theirs = (np.load(tmp_path / name, allow_pickle=False) for name in ("model.npz", "jax.npz"))
    for name, array in arrays.items():
        assert ours[name].dtype.kind == theirs[name].dtype.kind == "V"
        assert ours[name].tobytes() == theirs[name].tobytes()
        assert np.array_equal(ours[name].view(ml_dtypes.bfloat16), array)
    read = read_source(tmp_path / "model.npz").tensors
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_labels__only_those_of_this_head(tmp_path):
    """Class names go with the head that they are of."""
    save_folder(tmp_path / "good")
    convert_checkpoint(tmp_path / "good", tmp_path / "kept", to="hf_vit", verify=False)
    assert list(json.loads((tmp_path / "kept" / "config.json").read_text())["id2label"].values()) == list(NAMES)
    convert_checkpoint(tmp_path / "good", tmp_path / "dropped", to="hf_vit", verify=False, head="drop")
    assert "id2label" not in json.loads((tmp_path / "dropped" / "config.json").read_text())
