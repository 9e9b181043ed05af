"""A network as ONNX: bytes of any size in, or pixels; logits and, of a classifier that is shipped, probabilities out.

The file says what its classes are and how pictures are prepared, in the words of our safetensors headers
(`weights/metadata.py`), and `export/onnx_session.py` runs it. fp16 is the network in half precision between float32
ends; int8 holds the weights of matrix products as bytes, and quantises activations as they come.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.files import atomic_folder
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.export.preprocess_graph import PIXELS, ModelProto, preprocess_graph

ONNX_NAME = "model.onnx"
LOGITS, PROBABILITIES = "logits", "probabilities"
PRECISIONS = ("fp32", "fp16", "int8")
OPSETS = range(18, 24)  # antialiased resizing began with 18; torch writes and onnxruntime reads up to 23
_NEEDED = ("onnx", "onnxscript")
_MOST_BYTES = (1 << 31) - (1 << 20)  # what one file of protocol buffers can hold


def missing_for_onnx() -> list[str]:
    """Return the packages of the extra `onnx` that an export needs and that are not installed."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def export_onnx(model: nn.Module, dst: Path, *, input_size: tuple[int, int, int], tolerance: float = 1e-3) -> None:
    """Write a network as `dst/model.onnx`, pixels in and logits out, the number of pictures left open.

    Args:
        model: on the CPU, in eval mode.
        dst: the folder to make.
        input_size: (channels, height, width).
        tolerance: the largest difference of logits between torch and onnxruntime, where that is installed.

    Raises:
        WorkError: onnxruntime computes something else.
    """
    with atomic_folder(dst) as folder:
        program = _exported(model, input_size, outputs=[LOGITS], name="images", opset=OPSETS.start)
        (folder / ONNX_NAME).write_bytes(program.SerializeToString())
        if importlib.util.find_spec("onnxruntime") is not None:
            _check(model, folder / ONNX_NAME, input_size, tolerance)


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    spec: PreprocessSpec,
    preprocessing: bool,
    metadata: Mapping[str, str],
    multilabel: bool = False,
    temperature: float = 1.0,
    precision: str = "fp32",
    opset: int = OPSETS.start,
) -> None:
    """Write a classifier as one ONNX file.

    Args:
        model: on the CPU, in eval mode; it is not changed.
        path: the file to appear.
        spec: the evaluation transform.
        preprocessing: take it into the graph: the input is `images`, uint8 [batch, height, width, 3] of any size; else
            `pixels`, float32 [batch, C, H, W], prepared.
        metadata: strings to strings, for the file; they tell its reader the temperature, too.
        multilabel: probabilities are sigmoids of the logits, else their softmax.
        temperature: that logits are divided by for the probabilities, above 0.
        precision: fp32, fp16 or int8, of the network; preprocessing and outputs are always float32.
        opset: of `OPSETS`.

    Raises:
        RequestError: a package is missing, an argument is outside of what it allows, or the file would be over 2 GiB.
        NotRepresentable: ONNX cannot follow the preprocessing.
    """
    check_onnx(precision, opset)
    before = preprocess_graph(spec, opset=opset) if preprocessing else None
    size = sum(value.numel() * (2 if precision == "fp16" else 4) for value in model.state_dict().values())
    if size > _MOST_BYTES:
        raise RequestError(
            f"an ONNX file holds at most 2 GiB, and this network takes {size / 2**30:.1f}; take precision fp16, or "
            "export to torch_export or safetensors"
        )
    network = copy.deepcopy(model).half() if precision == "fp16" else model
    whole = _Classifier(network, half=precision == "fp16", multilabel=multilabel, temperature=temperature)
    program = _exported(whole, spec.input_size, outputs=[LOGITS, PROBABILITIES], name=PIXELS, opset=opset)
    if precision == "int8":
        program = _quantised(program)
    if before is not None:
        program = _joined(before, program)
    for key, value in metadata.items():
        program.metadata_props.add(key=key, value=value)
    path.write_bytes(program.SerializeToString())


def check_onnx(precision: str, opset: int) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        RequestError: as `write_onnx`.
    """
    needed = [*missing_for_onnx(), *([] if importlib.util.find_spec("onnxruntime") else ["onnxruntime"])]
    if needed:
        raise RequestError(f"an ONNX export needs {', '.join(needed)}; pip install 'vit-finetune[onnx]'")
    if precision not in PRECISIONS:
        raise RequestError(f"precision is {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if opset not in OPSETS:
        raise RequestError(f"opset is {opset}; it is from {OPSETS.start} to {OPSETS.stop - 1}")


class _Classifier(nn.Module):
    """A network whose logits are followed by their probabilities, both in float32."""

    def __init__(self, network: nn.Module, *, half: bool, multilabel: bool, temperature: float) -> None:
        super().__init__()
        self.network, self.half_inside = network, half
        self.multilabel, self.temperature = multilabel, temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities [B, K] of pixels [B, C, H, W]."""
        logits = self.network(pixels.half() if self.half_inside else pixels).float()
        scaled = logits / self.temperature
        return logits, scaled.sigmoid() if self.multilabel else scaled.softmax(dim=1)


def _exported(
    model: nn.Module, input_size: tuple[int, int, int], *, outputs: Sequence[str], name: str, opset: int
) -> ModelProto:
    """Trace a network, the number of pictures left open."""
    example = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # both the exporter's, about itself
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model.eval(),
            (example,),
            input_names=[name],
            output_names=list(outputs),
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    return program.model_proto


def _quantised(program: ModelProto) -> ModelProto:
    """Return the network with the weights of its matrix products in 8 bits, one scale for each output."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del program.graph.value_info[:]  # shapes that quantising would contradict; they are inferred again
    with tempfile.TemporaryDirectory() as place:
        whole, small = Path(place) / "whole.onnx", Path(place) / "small.onnx"
        onnx.save(program, whole)
        quantize_dynamic(
            whole,
            small,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # seven bits: processors without VNNI overflow with eight
        )
        return onnx.load(small)


def _joined(before: ModelProto, network: ModelProto) -> ModelProto:
    """Return one graph of both."""
    from onnx import compose

    before.ir_version = network.ir_version
    renamed = compose.add_prefix(before, "preprocess/", rename_inputs=False, rename_outputs=False)
    known = {entry.domain for entry in renamed.opset_import}
    renamed.opset_import.extend(entry for entry in network.opset_import if entry.domain not in known)
    return compose.merge_models(renamed, network, io_map=[(PIXELS, PIXELS)])


def _check(model: nn.Module, path: Path, input_size: tuple[int, int, int], tolerance: float) -> None:
    """Compare with torch on three pictures, another number than it was traced with."""
    import onnxruntime

    images = torch.randn(3, *input_size, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        ours = model(images).numpy()
    difference = float(np.abs(theirs - ours).max())
    if not difference <= tolerance:
        raise WorkError(f"onnxruntime's logits differ from torch's by {difference:.2g}, more than {tolerance:g}")
