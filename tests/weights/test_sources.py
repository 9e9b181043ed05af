"""Folders, preprocessing, timm's tags and the hub: online through a local server, offline through a cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from weights_helpers import NAME, NAMES, same, save_folder, save_tiny, tiny

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.preprocess import IMAGENET_MEAN
from vit_finetune.weights import from_pretrained, hub, load_pretrained, read_source
from vit_finetune.weights.sidecars import read_config, read_preprocessor

TAG = "test_vit.r160_in1k"  # timm's smallest: 0.4 M parameters

# Folders --------------------------------------------------------------------------------------------------------------


def test_read_folder__timm_hub_format(tmp_path):
    """Architecture, sizes, class names and preprocessing come from timm's config.json."""
    model = save_folder(tmp_path / "m")
    back, report = from_pretrained(tmp_path / "m")
    assert same(back, model)
    assert (report.architecture, report.class_names) == (NAME, NAMES)
    spec = report.preprocess
    assert (spec.mean, spec.std, spec.interpolation, spec.crop_pct) == ((0.5,) * 3, (0.25,) * 3, "bilinear", 0.9)
    assert spec.assumed == ()
    assert spec.source == str(tmp_path / "m" / "config.json")


def test_read_folder__what_timm_itself_writes(tmp_path):
    """A folder that timm saved opens with its architecture, its arguments and its logits."""
    theirs = timm.create_model(NAME, embed_dim=48, depth=2, num_heads=3, img_size=(64, 96), num_classes=7).eval()
    timm.models.save_for_hf(theirs, tmp_path / "m", safe_serialization=True)
    ours, report = from_pretrained(tmp_path / "m")
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert report.preprocess.mean == tuple(theirs.pretrained_cfg["mean"])
    assert report.preprocess.input_size == (3, 64, 96)


def test_read_folder__pytorch_model_bin(tmp_path):
    """An older folder with pytorch_model.bin reads too; beside safetensors it is left aside, and that is said."""
    model = save_folder(tmp_path / "m")
    torch.save(tiny(seed=3).state_dict(), tmp_path / "m" / "pytorch_model.bin")
    back, report = from_pretrained(tmp_path / "m")
    assert same(back, model)
    assert "read model.safetensors and left pytorch_model.bin in m aside" in report.notes
    (tmp_path / "m" / "model.safetensors").unlink()
    back, _ = from_pretrained(tmp_path / "m")
    assert same(back, tiny(seed=3))


def test_read_folder__errors(tmp_path):
    """Empty, ambiguous and run folders, and a config that is none, each say what to do."""
    with pytest.raises(RequestError, match=r"holds no weights; looked for model\.safetensors"):
        read_source(tmp_path)
    save_folder(tmp_path / "run" / "model")
    with pytest.raises(RequestError, match=r"did you mean .*run/model\?"):
        read_source(tmp_path / "run")
    folder = tmp_path / "several"
    folder.mkdir()
    save_tiny(folder / "a.safetensors")
    assert read_source(folder).architecture == NAME
    save_tiny(folder / "b.safetensors")
    with pytest.raises(RequestError, match=r"several weight files \(a\.safetensors, b\.safetensors\)"):
        read_source(folder)
    (tmp_path / "run" / "model" / "config.json").write_text('{"lr": 1}')
    with pytest.raises(RequestError, match="neither 'architecture' .* nor 'model_type'"):
        read_source(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "config.json").write_text("[]")
    with pytest.raises(RequestError, match="must hold a JSON object, not a list"):
        read_source(tmp_path / "run" / "model")


def test_read_folder__not_our_architecture(tmp_path):
    """A folder of another network says so when it is built, and its tensors say so when they are loaded."""
    save_folder(tmp_path / "m", architecture="resnet50", model_args={})
    with pytest.raises(RequestError, match="resnet50"):
        from_pretrained(tmp_path / "m")
    model = tiny(seed=1)
    load_pretrained(model, tmp_path / "m", head="keep")
    assert same(model, tiny())


def test_read_source__self_describing_file(tmp_path):
    """One safetensors file of ours says everything; without a word of preprocessing all of it is assumed, and named."""
    save_tiny(tmp_path / "a.safetensors")
    checkpoint = read_source(tmp_path / "a.safetensors")
    assert (checkpoint.architecture, checkpoint.class_names, checkpoint.preprocess) == (NAME, NAMES, None)
    _, report = from_pretrained(tmp_path / "a.safetensors")
    assert report.preprocess.mean == IMAGENET_MEAN
    assert set(report.preprocess.assumed) >= {"mean", "std", "interpolation", "crop_pct"}
    assert "assumed: " in report.lines()[2]


# Preprocessing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"size": {"height": 224, "width": 192}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            {"input_size": (3, 224, 192), "interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 1.0},
        ),
        (
            {"size": 224, "resample": 3},
            {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_mode": "squash"},
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
                "do_rescale": True,
                "rescale_factor": 0.00392156862745098,
            },
            {"input_size": (3, 224, 224), "crop_mode": "center", "crop_pct": 0.875},
        ),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, {"crop_mode": "center", "crop_pct": 0.875}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"resample": 1}, {"interpolation": "lanczos"}),
    ],
)
def test_read_preprocessor(config, expected):
    """transformers' preprocessor_config.json in its old and new spellings."""
    spec = read_preprocessor(config, "preprocessor_config.json")
    assert {key: getattr(spec, key) for key in expected} == expected
    assert not set(spec.assumed) & set(expected)


def test_read_preprocessor__refuses_another_range():
    """Pixels scaled to [-1, 1] before the mean can't be said, so they aren't guessed."""
    with pytest.raises(RequestError, match="instead of 1/255"):
        read_preprocessor({"rescale_factor": 1 / 127.5}, "p.json")
    with pytest.raises(RequestError, match=r"the preprocessing in p\.json can't be used: mean has 1"):
        read_preprocessor({"image_mean": [0.5]}, "p.json")


def test_read_folder__transformers_preprocessor(tmp_path):
    """In a transformers folder the preprocessing comes from preprocessor_config.json, names from id2label."""
    save_folder(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({"model_type": "vit", "id2label": {str(index): name for index, name in enumerate(NAMES)}})
    )
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "size": 64}))
    checkpoint = read_source(tmp_path / "m")
    assert checkpoint.preprocess is not None
    assert checkpoint.preprocess.mean == (0.1, 0.2, 0.3)
    assert checkpoint.class_names == NAMES
    assert checkpoint.architecture is None


def test_read_config__label_forms():
    """Names as a list, as a mapping, as older timm wrote them, and transformers' placeholders."""
    assert read_config({"architecture": "a", "label_names": ["x", "y"]}, "c").class_names == ("x", "y")
    assert read_config({"architecture": "a", "label_names": {"1": "y", "0": "x"}}, "c").class_names == ("x", "y")
    assert read_config({"architecture": "a", "label_names": {"5": "y", "0": "x"}}, "c").class_names is None
    assert read_config({"architecture": "a", "labels": ["x"]}, "c").class_names == ("x",)
    assert read_config({"model_type": "vit", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "c").class_names is None


# timm's tags and the hub ----------------------------------------------------------------------------------------------


def test_read_source__unknown_timm_names():
    """An unknown tag lists the tags there are; an unknown name suggests."""
    with pytest.raises(RequestError, match=r"timm has no weights 'test_vit\.foo'; it has test_vit\.r160_in1k"):
        read_source("timm:test_vit.foo")
    with pytest.raises(RequestError, match="timm has no weights 'vit_bse_patch16_224'"):
        read_source("timm:vit_bse_patch16_224")


def test_read_source__bad_repository_names():
    """What can't be a repository is refused before anything is asked."""
    for name in ("justname", "a/b/c", "a/b@", ""):
        with pytest.raises(RequestError, match="is not a repository name"):
            read_source(f"hf-hub:{name}")


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """Give huggingface_hub an empty cache of its own and take its network away."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into_cache(cache: Path, repository: str, commit: str = "c0ffee" + "0" * 34) -> Path:
    """Lay out an empty snapshot as huggingface_hub's cache does."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def test_hub__offline_without_cache_names_the_file_and_the_way(offline_cache):
    """Nothing in the cache and no network: one line that names file, repository, cache and what to do."""
    for source, repository in (("hf-hub:me/model@v2", "me/model"), (f"timm:{TAG}", f"timm/{TAG}")):
        with pytest.raises(WorkError) as caught:
            read_source(source)
        message = str(caught.value)
        assert message.startswith(f"model.safetensors (with config.json) of {repository} (revision ")
        assert "HF_HUB_OFFLINE is set" in message
        assert f"hf download {repository}" in message
        assert str(offline_cache) in message
        assert f"models--{repository.replace('/', '--')}" in message
        assert "\n" not in message


def test_hub__offline_with_cache(offline_cache):
    """A prepared cache is enough, by branch and by commit."""
    snapshot = put_into_cache(offline_cache, "me/model")
    model = save_folder(snapshot)
    for source in ("hf-hub:me/model", "hf-hub:me/model@main", f"hf-hub:me/model@{snapshot.name}"):
        back, report = from_pretrained(source)
        assert same(back, model)
        assert report.source == source
        assert report.class_names == NAMES


def test_timm__offline_with_cache(offline_cache):
    """A timm tag from the cache: architecture and preprocessing from timm's own description, timm's logits."""
    snapshot = put_into_cache(offline_cache, f"timm/{TAG}")
    theirs = timm.create_model("test_vit").eval()
    timm.models.save_for_hf(theirs, snapshot, safe_serialization=True)
    ours, report = from_pretrained(f"timm:{TAG}")
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert report.source == f"timm:{TAG}"
    assert report.preprocess.crop_pct == timm.get_pretrained_cfg(TAG).crop_pct
    default, _ = from_pretrained("timm:test_vit")
    assert same(default, ours)


def test_hub__unreachable(tmp_path, monkeypatch):
    """A hub that can't be looked up, and one that doesn't answer, are one clear line too, the first at once."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    asked = []

    def refuse(*_args, local_files_only, **_options):
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    for proxies in ({}, {"https": "http://proxy:3128"}):
        monkeypatch.setattr(hub, "getproxies", lambda proxies=proxies: proxies)
        with pytest.raises(WorkError, match="the hub can't be reached"):
            read_source("hf-hub:me/model")
    assert asked == [True, False]  # without a way to look the hub up, only the cache is asked: no half minute of tries


CHILD = '''
import hashlib, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import os

ROOT, COMMIT = Path(sys.argv[1]), "ab" * 20

class Hub(BaseHTTPRequestHandler):
    """The three routes of the hub that a download asks for."""

    def answer(self, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        repository, revision, name = ROOT / parts[0] / parts[1], parts[3], "/".join(parts[4:])
        error = None
        if not repository.is_dir():
            error = "RepoNotFound"
        elif revision not in ("main", "v1", COMMIT):
            error = "RevisionNotFound"
        elif not (repository / name).is_file():
            error = "EntryNotFound"
        if error:
            self.send_response(404)
            self.send_header("X-Error-Code", error)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = (repository / name).read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"' + hashlib.sha256(content).hexdigest() + '"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *args):
        pass

if "HF_HUB_OFFLINE" not in os.environ:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from vit_finetune.common.errors import VitFinetuneError
from vit_finetune.weights import from_pretrained

for source in sys.argv[2:]:
    try:
        model, report = from_pretrained(source)
        print("OK", source, report.architecture, report.class_names, model.norm.weight.sum().item(), flush=True)
    except VitFinetuneError as error:
        print(type(error).__name__, source, str(error), flush=True)
'''


def ask(tmp_path, *sources, **environment):
    """Run the child with a hub of its own and a cache, and return its lines."""
    clean = {
        key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")
    }
    finished = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "repositories"), *sources],
        env={
            **clean,
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_hub__downloads_then_works_offline(tmp_path):
    """Through HF_ENDPOINT: branch, tag, shards, timm's tag, and each thing missing; then all again without network."""
    root = tmp_path / "repositories"
    plain = save_folder(root / "me" / "plain")
    sharded = root / "me" / "sharded"
    save_folder(sharded)
    save_tiny(sharded / "only-00001.safetensors")
    (sharded / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(plain.state_dict(), "only-00001.safetensors")}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "me" / "empty").mkdir()
    theirs = timm.create_model("test_vit")
    timm.models.save_for_hf(theirs, root / "timm" / TAG, safe_serialization=True)

    good = ["hf-hub:me/plain", "hf-hub:me/plain@v1", "hf-hub:me/sharded", f"timm:{TAG}"]
    bad = ["hf-hub:me/empty", "hf-hub:me/nobody", "hf-hub:me/plain@v9"]
    total = plain.norm.weight.sum().item()
    online = ask(tmp_path, *good, *bad)
    for line, source in zip(online[:3], good, strict=False):
        assert line == f"OK {source} {NAME} {NAMES} {total}"
    assert online[3].startswith(f"OK timm:{TAG} test_vit None")
    assert "RequestError hf-hub:me/empty the repository me/empty holds no weights" in online[4]
    assert "RequestError hf-hub:me/nobody there is no repository me/nobody" in online[5]
    assert "RequestError hf-hub:me/plain@v9 the repository me/plain has no revision 'v9'" in online[6]

    offline = ask(tmp_path, *good[:3], "hf-hub:me/never", HF_HUB_OFFLINE="1")
    assert offline[:3] == online[:3]
    assert offline[3].startswith(
        "WorkError hf-hub:me/never model.safetensors (with config.json) of me/never (revision main) is needed"
    )
