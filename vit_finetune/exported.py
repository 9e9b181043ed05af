"""An exported ONNX file in the place of a finished model: the same figures and predictions, through onnxruntime."""

from __future__ import annotations

from pathlib import Path

import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.data.corruptions import Corruption
from vit_finetune.data.pixels import ToTensor
from vit_finetune.data.transforms import Transform
from vit_finetune.export.onnx_session import OnnxNetwork
from vit_finetune.predictor import Predictor


class OnnxPredictor(Predictor):
    """Classifies pictures with an ONNX file that `export_model` wrote; pictures are decoded by our decoder.

    Where the graph prepares pictures itself it gets them one at a time, as each may have a size of its own.

    Args:
        path: the file.
        batch_size: pictures per run, of a file that takes prepared pixels.
        temperature: what logits are divided by; None takes the file's own.
        min_probability: below it the model abstains; in [0, 1].

    Raises:
        RequestError: onnxruntime is missing or cannot open the file, or it does not say its classes.
    """

    def __init__(  # nothing of a torch network is loaded
        self,
        path: str | Path,
        *,
        batch_size: int = 32,
        temperature: float | None = None,
        min_probability: float | None = None,
    ) -> None:
        self.graph = OnnxNetwork(path)
        about = self.graph.about
        assert about.class_names is not None
        assert about.preprocess is not None
        self.preprocess, self.class_names, self.thresholds = about.preprocess, about.class_names, about.thresholds
        self.temperature = self.graph.temperature if temperature is None else temperature
        self.min_probability = min_probability
        self.device = torch.device("cpu")
        self.batch_size = 1 if self.graph.takes_bytes else batch_size
        self.model = self.network = self.graph  # type: ignore[assignment]  # logits are all that is asked of it
        self._transform = self.transform()

    def transform(self, corruption: Corruption | None = None) -> Transform:
        """Return what makes the file's input of a decoded picture: its bytes, or prepared pixels.

        Raises:
            RequestError: corrupted pictures are asked of a graph that prepares pictures itself.
        """
        if not self.graph.takes_bytes:
            return super().transform(corruption)
        if corruption is not None:
            raise RequestError(
                "corruptions are done to the cropped picture, and this file crops inside; export it with "
                "--no-preprocessing to measure them"
            )
        return ToTensor()


def is_onnx(model: str | Path) -> bool:
    """Say whether a name is that of an ONNX file."""
    return str(model).endswith(".onnx")
