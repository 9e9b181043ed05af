"""An exported ONNX file at work, through onnxruntime: what it says of itself, and its outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.export.onnx import LOGITS, PROBABILITIES
from vit_finetune.export.preprocess_graph import IMAGES
from vit_finetune.weights.metadata import Embedded, read_embedded


class OnnxNetwork(nn.Module):
    """An ONNX file of ours as a module: pictures in, logits out.

    Args:
        path: what `write_onnx` wrote.

    Attributes:
        about: classes, preprocessing and, for several classes a picture, thresholds.
        takes_bytes: the graph prepares pictures itself.
        temperature: that logits are divided by for the file's probabilities.

    Raises:
        RequestError: onnxruntime is missing or cannot open the file, or it does not say its classes and preprocessing.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if importlib.util.find_spec("onnxruntime") is None:
            raise RequestError("an ONNX file runs through onnxruntime; pip install 'vit-finetune[onnx]'")
        import onnxruntime

        if not Path(path).is_file():
            raise RequestError(f"there is no file {path}")
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base of their own
            raise RequestError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0]}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        about = read_embedded(metadata)
        outputs = [output.name for output in self.session.get_outputs()]
        if about is None or about.class_names is None or about.preprocess is None or outputs[:1] != [LOGITS]:
            raise RequestError(
                f"{path} does not say its classes and preprocessing; write it with `vit-finetune export RUN OUT --to "
                "onnx`, or evaluate the model that it was made from"
            )
        self.about: Embedded = about
        self.temperature = about.temperature or 1.0
        self.input_name = self.session.get_inputs()[0].name
        self.takes_bytes = self.input_name == IMAGES

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [B, K] of pixels [B, C, H, W], or of bytes [B, 3, height, width] where the graph takes them."""
        return torch.from_numpy(self._run(pictures, LOGITS))

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return the file's own probabilities [B, K] of what `forward` takes."""
        return torch.from_numpy(self._run(pictures, PROBABILITIES))

    def _run(self, pictures: Tensor, output: str) -> np.ndarray:
        given = pictures.permute(0, 2, 3, 1).contiguous() if self.takes_bytes else pictures
        found: np.ndarray = self.session.run([output], {self.input_name: given.cpu().numpy()})[0]
        return found
