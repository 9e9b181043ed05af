"""What the model looked at: attention rollout over the crop that it saw, for the few pictures of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from vit_finetune.common.errors import VitFinetuneError
from vit_finetune.pages.thumbnails import thumbnail
from vit_finetune.report.run_folder import RunFolder

if TYPE_CHECKING:
    from vit_finetune.predictor import Predictor

_MOST_BYTES = 1 << 30  # of the attention maps of one picture


class Looking:
    """Draws the attention of a run's model over pictures.

    Args:
        run: its folder; the model is loaded when the first picture comes.
        is_wanted: False draws nothing.
    """

    def __init__(self, run: RunFolder, *, is_wanted: bool = True) -> None:
        self._run = run
        self._predictor: Predictor | None = None
        self._reason = "" if is_wanted else "attention was not asked for"

    @property
    def told(self) -> str:
        """What the overlays are, or why there are none."""
        if self._reason:
            return f"No attention is shown: {self._reason}."
        return (
            "Beside each picture: the crop that the model saw, brighter where its attention went (attention rollout)."
        )

    def at(self, image: Image.Image, size: int) -> str:
        """Return the address of a picture as the model saw it, with its attention over it; empty where it cannot be.

        Args:
            image: in mode RGB.
            size: the longer side of the drawing, in pixels.
        """
        if self._reason:
            return ""
        try:
            self._predictor = self._predictor or _loaded(self._run)
            return thumbnail(_drawn(self._predictor, image), size)
        except (VitFinetuneError, NotImplementedError, AttributeError) as error:
            self._reason = str(error) or "this network has no attention maps"
            return ""


def _loaded(run: RunFolder) -> Predictor:
    """Return the run's model where its maps fit into memory."""
    from vit_finetune.common.errors import RequestError
    from vit_finetune.predictor import Predictor

    device = (run.config.get("run") or {}).get("device", "auto")
    predictor = Predictor(run.path, device=None if device == "auto" else device)
    config = predictor.model.config
    if 4 * config.depth * config.num_heads * config.num_tokens**2 > _MOST_BYTES:
        raise RequestError("the maps of one picture would take more than a gigabyte")
    return predictor


def _drawn(predictor: Predictor, image: Image.Image) -> Image.Image:
    """Return the crop that the model sees, with attention rollout over it."""
    import torch
    from torchvision.transforms.v2.functional import to_pil_image

    from vit_finetune.data.transforms import build_eval_crop, build_eval_rest
    from vit_finetune.evaluation.explain import attention_rollout, overlay
    from vit_finetune.models import attention_maps

    crop = build_eval_crop(predictor.preprocess)(image)
    x = build_eval_rest(predictor.preprocess)(crop)[None].to(predictor.device)
    model = predictor.model
    with torch.inference_mode():
        heat = attention_rollout(attention_maps(model, x), num_prefix_tokens=model.num_prefix_tokens)
    shown = crop if isinstance(crop, Image.Image) else to_pil_image(crop)
    return overlay(shown, heat[0].reshape(model.config.grid_size).cpu().numpy())
